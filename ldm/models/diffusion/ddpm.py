"""The latent diffusion model: an autoencoder, a conditioner and a denoiser under one roof (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.sampling.model import PARAMETERIZATIONS
from ldm.sampling.schedule import NoiseSchedule, make_beta_schedule, q_sample
from ldm.util import instantiate_from_config

# What the original's configs say to its trainer: no meaning here, so accepted and left alone.
_TRAINING_ONLY = frozenset(
    "num_timesteps_cond log_every_t monitor scheduler_config loss_type original_elbo_weight l_simple_weight "
    "v_posterior clip_denoised cond_stage_forward learn_logvar logvar_init use_positional_encodings".split()
)


class DiffusionWrapper(nn.Module):
    """Hands the conditionings to the network the way `conditioning_key` says. Named by the checkpoints' keys."""

    KEYS = (None, "concat", "crossattn", "hybrid", "adm")

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in self.KEYS:
            raise ValueError(f"conditioning_key={conditioning_key!r} is unknown; choose one of {self.KEYS}")
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Sequence[Tensor] | None = None,
        c_crossattn: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """`c_concat` joins x along the channels, `c_crossattn` (B, L, D) along the tokens; "adm" takes labels (B,)."""
        key = self.conditioning_key
        for name, given, wanted in (
            ("c_concat", c_concat, key in ("concat", "hybrid")),
            ("c_crossattn", c_crossattn, key in ("crossattn", "hybrid", "adm")),
        ):
            if bool(given) != wanted:
                verb, remedy = ("needs", "pass it in") if wanted else ("does not take", "leave it out of")
                raise ValueError(f"conditioning_key={key!r} {verb} {name}: {remedy} the conditioning")
        if key in ("concat", "hybrid"):
            x = torch.cat([x, *c_concat], dim=1)
        if key in ("crossattn", "hybrid"):
            return self.diffusion_model(x, t, context=torch.cat(list(c_crossattn), dim=1))
        if key == "adm":
            return self.diffusion_model(x, t, y=c_crossattn[0])
        return self.diffusion_model(x, t)


class LatentDiffusion(nn.Module):
    """Diffusion over the latents of `first_stage_config`, conditioned on the output of `cond_stage_config`.

    Parameters are the original's and their defaults too. `linear_start`, `linear_end`, `timesteps`, `beta_schedule`
    (or `given_betas`, (T,)) fix the noise schedule; `parameterization` what the network predicts ("eps", "v", "x0");
    `conditioning_key` how it is conditioned (None: "concat", or "crossattn" where `concat_mode` is false);
    `scale_factor` brings the latents to about unit variance, and with `scale_by_std` it is measured in training and
    kept in the checkpoint; `image_size` and `channels` are those of the latents. `min_snr_gamma` weighs the loss
    (Hang et al. 2023; 5 is usual), None leaves it even in the network's own target.

    The schedule's buffers stay float32 whatever `.half()` or `.to(dtype)` do to the networks.
    """

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str,
        unet_config: Mapping[str, Any],
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        conditioning_key: str | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        *,
        concat_mode: bool = True,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        parameterization: str = "eps",
        first_stage_key: str = "image",
        image_size: int | Sequence[int] = 256,
        channels: int = 3,
        use_ema: bool = True,
        min_snr_gamma: float | None = None,
        **training_only: Any,
    ):
        super().__init__()
        if unknown := sorted(set(training_only) - _TRAINING_ONLY):
            raise TypeError(f"LatentDiffusion has no parameter {', '.join(unknown)}; check the config's model.params")
        if parameterization not in PARAMETERIZATIONS:
            choices = ", ".join(PARAMETERIZATIONS)
            raise ValueError(f"parameterization={parameterization!r} is unknown; choose one of {choices}")
        if conditioning_key is None and cond_stage_config != "__is_unconditional__":
            conditioning_key = "concat" if concat_mode else "crossattn"  # the original's rule
        self.parameterization, self.min_snr_gamma = parameterization, min_snr_gamma
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.image_size, self.channels = image_size, channels
        self._register_schedule(
            given_betas
            if given_betas is not None
            else make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        )
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.model_ema = LitEma(self.model) if use_ema else None
        self.first_stage_model = instantiate_from_config(first_stage_config).eval().requires_grad_(False)
        self.cond_stage_trainable = cond_stage_trainable
        if cond_stage_config == "__is_first_stage__":
            self.cond_stage_model = self.first_stage_model
        else:
            self.cond_stage_model = instantiate_from_config(cond_stage_config)
        if self.cond_stage_model is not None and not cond_stage_trainable:
            self.cond_stage_model.eval().requires_grad_(False)
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
            self._kept_in_float32 += ("scale_factor",)
        else:
            self.scale_factor = scale_factor

    def _register_schedule(self, betas: Sequence[float]) -> None:
        buffers = NoiseSchedule.from_betas(betas).buffers()
        self._kept_in_float32 = tuple(buffers)
        self.num_timesteps = len(buffers["betas"])
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LatentDiffusion:
        """Moves and casts the networks; the schedule is only moved (ᾱ in half precision has two or three digits)."""
        kept = {name: getattr(self, name) for name in self._kept_in_float32}
        super()._apply(fn, recurse)
        for name, values in kept.items():
            if not values.is_meta:
                setattr(self, name, values.to(getattr(self, name).device))
        return self

    @property
    def device(self) -> torch.device:
        return self.betas.device

    # ------------------------------------------------------------------------------------------ pictures and captions

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> DiagonalGaussianDistribution | Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] → what the autoencoder's encoder returns."""
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """A sample of the autoencoder's posterior (or a plain latent), scaled to about unit variance."""
        z = posterior.sample() if isinstance(posterior, DiagonalGaussianDistribution) else posterior
        return self.scale_factor * z

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Latents (B, channels, h, w) → pictures (B, 3, H, W), about in [-1, 1]."""
        return self.first_stage_model.decode(z / self.scale_factor)

    def get_learned_conditioning(self, c: Any) -> Any:
        """What the user says (captions, labels, pictures) → what the network is conditioned on."""
        encode = getattr(self.cond_stage_model, "encode", self.cond_stage_model)
        if encode is None:
            raise ValueError("this model is unconditional: it has no cond_stage_model to encode a conditioning with")
        encoded = encode(c)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    # ------------------------------------------------------------------------------------------------------ diffusion

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The network's output for latents (B, C, H, W) at timesteps t (B,); `cond`: a tensor, a list, or a dict of
        lists under `c_concat` and `c_crossattn`."""
        if not isinstance(cond, Mapping):
            name = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
            cond = {} if cond is None else {name: cond if isinstance(cond, (list, tuple)) else [cond]}
        return self.model(x_noisy, t, **cond)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t of x_start at timesteps t (B,): Ho et al. 2020, eq. 4. Without `noise` it is drawn."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return q_sample(x_start, self._alpha_bar(t, x_start), noise)

    def _alpha_bar(self, t: Tensor, x: Tensor) -> Tensor:
        return self.alphas_cumprod[t].reshape(-1, *[1] * (x.ndim - 1))

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss at timesteps t, and what to log: mean squared error in what the network predicts."""
        noise = torch.randn_like(x_start) if noise is None else noise
        alpha_bar = self._alpha_bar(t, x_start)
        target = {
            "eps": noise,
            "x0": x_start,
            "v": alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_start,
        }[self.parameterization]
        output = self.apply_model(q_sample(x_start, alpha_bar, noise), t, cond)
        error = (output.float() - target).square().flatten(1).mean(1)
        loss = (error * self._loss_weight(alpha_bar.flatten())).mean()
        prefix = "train" if self.training else "val"
        return loss, {f"{prefix}/loss_simple": error.mean().detach(), f"{prefix}/loss": loss.detach()}

    def _loss_weight(self, alpha_bar: Tensor) -> Tensor:
        """Hang et al. 2023: min(SNR, γ) in terms of x0, carried over to what the network predicts."""
        if self.min_snr_gamma is None:
            return torch.ones_like(alpha_bar)
        snr = alpha_bar / (1 - alpha_bar)
        return snr.clamp(max=self.min_snr_gamma) / {"eps": snr, "v": snr + 1, "x0": 1.0}[self.parameterization]

    def forward(self, x: Tensor, c: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of latents x at random timesteps; c is encoded here if the conditioner is being trained."""
        t = torch.randint(0, self.num_timesteps, (len(x),), device=x.device)
        if self.cond_stage_trainable and c is not None:
            c = self.get_learned_conditioning(c)
        return self.p_losses(x, c, t, *args, **kwargs)

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Inside, the denoiser has its averaged weights; without an average nothing changes."""
        if self.model_ema is None:
            yield
            return
        self.model_ema.store(self.model.parameters())
        self.model_ema.copy_to(self.model)
        try:
            yield
        finally:
            self.model_ema.restore(self.model.parameters())
