"""The latent diffusion model: an autoencoder, a conditioner and a denoiser under one roof (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ldm.models.autoencoder import VQModelInterface
from ldm.models.diffusion.batches import Batches
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.diffusionmodules.scheduled import ScheduledModule
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.sampling.model import PARAMETERIZATIONS
from ldm.sampling.schedule import make_beta_schedule, q_sample
from ldm.util import instantiate_from_config

# What the original's configs say to its trainer: no meaning here, so accepted and left alone.
_TRAINING_ONLY = frozenset("log_every_t monitor scheduler_config clip_denoised".split())
# What would change its loss, by the value that changes nothing: any other is refused.
_UNCHANGED = {
    "num_timesteps_cond": (None, 1), "original_elbo_weight": (0,), "l_simple_weight": (1,), "learn_logvar": (False,),
    "logvar_init": (0,), "use_positional_encodings": (False,), "v_posterior": (0,), "force_null_conditioning": (False,),
    "ckpt_path": (None,), "ignore_keys": (None, []), "load_only_unet": (False,), "reset_ema": (False,),
    "reset_num_ema_updates": (False,), "make_it_fit": (False,), "ucg_training": (None,),
}  # fmt: skip
_CAPTION_KEYS = ("caption", "txt")
_ERRORS = {"l2": torch.square, "l1": torch.abs}


class LatentDiffusion(Batches, ScheduledModule):
    """Diffusion over the latents of `first_stage_config`, conditioned on the output of `cond_stage_config`.

    Parameters are the original's and their defaults too. `linear_start`, `linear_end`, `timesteps`, `beta_schedule`
    (or `given_betas`, (T,)) fix the noise schedule; `parameterization` what the network predicts ("eps", "v", "x0");
    `conditioning_key` how it is conditioned (None: "concat", or "crossattn" where `concat_mode` is false);
    `scale_factor` brings the latents to about unit variance, and with `scale_by_std` it is measured in training and
    kept in the checkpoint; `image_size` and `channels` are those of the latents; `cond_stage_forward` names the
    conditioner's method to call, `encode` by default. `loss_type` is "l2" or "l1"; `min_snr_gamma` weighs the loss
    (Hang et al. 2023; 5 is usual), None leaves it even in the network's own target.
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
        cond_stage_forward: str | None = None,
        loss_type: str = "l2",
        min_snr_gamma: float | None = None,
        **training_only: Any,
    ):
        super().__init__()
        _check_training(training_only, loss_type)
        if parameterization not in PARAMETERIZATIONS:
            choices = ", ".join(PARAMETERIZATIONS)
            raise ValueError(f"parameterization={parameterization!r} is unknown; choose one of {choices}")
        if cond_stage_config == "__is_unconditional__":  # the original's rules
            conditioning_key = None
        elif conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        self.parameterization, self.min_snr_gamma, self.loss_type = parameterization, min_snr_gamma, loss_type
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.image_size, self.channels = image_size, channels
        self.cond_stage_forward = cond_stage_forward
        self._register_schedule(
            given_betas
            if given_betas is not None
            else make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        )
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.model_ema = LitEma(self.model) if use_ema else None
        self.first_stage_model = instantiate_from_config(first_stage_config).eval().requires_grad_(False)
        self.cond_stage_trainable = cond_stage_trainable
        if cond_stage_config == "__is_first_stage__":  # not as a submodule: checkpoints hold its weights once
            object.__setattr__(self, "cond_stage_model", self.first_stage_model)
        else:
            self.cond_stage_model = instantiate_from_config(cond_stage_config)
        if self.cond_stage_model is not None and not cond_stage_trainable:
            self.cond_stage_model.eval().requires_grad_(False)
        if isinstance(scale_factor, bool) or not isinstance(scale_factor, int | float) or not scale_factor > 0:
            raise ValueError(f"scale_factor={scale_factor!r}: give a number above 0 (Stable Diffusion's is 0.18215)")
        if scale_by_std:
            self._register_float32("scale_factor", scale_factor)
        else:
            self.scale_factor = scale_factor

    def train(self, mode: bool = True) -> LatentDiffusion:
        """What is frozen stays in eval(), whatever the mode."""
        super().train(mode)
        self.first_stage_model.eval()
        if self.cond_stage_model is not None and not self.cond_stage_trainable:
            self.cond_stage_model.eval()
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
        if not isinstance(z, Tensor):
            raise ValueError(
                f"{type(self.first_stage_model).__name__}.encode returned a {type(z).__name__}, which is no latent; "
                "as first stage take VQModelInterface or AutoencoderKL"
            )
        return self.scale_factor * z

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, predict_cids: bool = False, force_not_quantize: bool = False) -> Tensor:
        """Latents (B, channels, h, w) → pictures (B, 3, H, W), about in [-1, 1].

        For a VQ first stage: `predict_cids` takes codes, as indices (B, h, w) or as scores (B, n_embed, h, w), instead
        of latents; `force_not_quantize` leaves the latents between the codes.
        """
        return self.differentiable_decode_first_stage(z, predict_cids, force_not_quantize)

    def differentiable_decode_first_stage(
        self, z: Tensor, predict_cids: bool = False, force_not_quantize: bool = False
    ) -> Tensor:
        """`decode_first_stage` with gradients."""
        if predict_cids:
            return self.first_stage_model.decode_code(z.argmax(1) if z.ndim == 4 else z)
        quantizes = isinstance(self.first_stage_model, VQModelInterface)
        options = {"force_not_quantize": True} if quantizes and force_not_quantize else {}
        return self.first_stage_model.decode(z / self.scale_factor, **options)

    def get_learned_conditioning(self, c: Any) -> Any:
        """What the user says (captions, labels, pictures) → what the network is conditioned on."""
        if self.cond_stage_model is None:
            raise ValueError("this model is unconditional: it has no cond_stage_model to encode a conditioning with")
        if self.cond_stage_forward is not None:
            encode = getattr(self.cond_stage_model, self.cond_stage_forward)
        else:
            encode = getattr(self.cond_stage_model, "encode", self.cond_stage_model)
        encoded = encode(c)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    @torch.no_grad()
    def get_unconditional_conditioning(self, batch_size: int, null_label: Any = None) -> Any:
        """The conditioning that says nothing, `batch_size` times: of `null_label` (a caption, a batch of one), or else
        the conditioner's own, or else of the empty caption."""
        own = getattr(self.cond_stage_model, "get_unconditional_conditioning", None)
        if null_label is None and own is not None:
            return self.get_learned_conditioning(own(batch_size, device=self.device))
        if null_label is None and self.cond_stage_key in _CAPTION_KEYS:
            null_label = ""
        if null_label is None:
            raise ValueError(f"nothing is known to stand for no {self.cond_stage_key!r}; pass null_label")
        if isinstance(null_label, Tensor):
            null_label = null_label.to(self.device)
        c = self.get_learned_conditioning([null_label] if isinstance(null_label, str) else null_label)
        if isinstance(c, (list, tuple)):
            return [_repeat(each, batch_size) for each in c]
        return _repeat(c, batch_size)

    # ------------------------------------------------------------------------------------------------------ diffusion

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The network's output for latents (B, C, H, W) at timesteps t (B,); `cond`: a tensor, a list, or a dict of
        lists under `c_concat` and `c_crossattn`."""
        if not isinstance(cond, Mapping):
            name = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
            cond = {} if cond is None else {name: cond if isinstance(cond, (list, tuple)) else [cond]}
        return self.model(x_noisy, t, **cond)

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss at timesteps t, and what to log: the mean error in what the network predicts."""
        noise = torch.randn_like(x_start) if noise is None else noise
        alpha_bar = self._alpha_bar(t, x_start)
        target = {
            "eps": noise,
            "x0": x_start,
            "v": alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_start,
        }[self.parameterization]
        output = self.apply_model(q_sample(x_start, alpha_bar, noise), t, cond)
        error = _ERRORS[self.loss_type](output.float() - target).flatten(1).mean(1)
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


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.expand(times, *x.shape[1:])


def _check_training(given: Mapping[str, Any], loss_type: str) -> None:
    """What a config says for a training: nothing that would be done otherwise here goes unsaid."""
    if unknown := sorted(set(given) - _TRAINING_ONLY - set(_UNCHANGED)):
        raise TypeError(f"LatentDiffusion has no parameter {', '.join(unknown)}; check the config's model.params")
    for name, value in given.items():
        if name in _UNCHANGED and value not in _UNCHANGED[name]:
            raise ValueError(f"{name}={value!r} is not supported here; leave it out, or at {_UNCHANGED[name][-1]!r}")
    if loss_type not in _ERRORS:
        raise ValueError(f"loss_type={loss_type!r} is unknown; choose one of {', '.join(_ERRORS)}")
