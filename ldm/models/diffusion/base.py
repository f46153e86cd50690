"""The diffusion model without an autoencoder: a noise schedule, a denoiser, its average, and their loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import load_partly
from ldm.models.diffusion.batches import Batches
from ldm.models.diffusion.gaussian import GaussianDiffusion
from ldm.models.diffusion.sharing import joined_contexts
from ldm.models.diffusion.training import Losses, Training, check_ucg_training
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.ema import LitEma
from ldm.modules.untouched import is_changed, is_own, is_own_kind
from ldm.sampling.model import PARAMETERIZATIONS

# What would change the loss or the weights, by the value that changes nothing: any other is refused.
_UNCHANGED = {
    "num_timesteps_cond": (None, 1), "original_elbo_weight": (0,), "l_simple_weight": (1,), "learn_logvar": (False,),
    "logvar_init": (0,), "use_positional_encodings": (False,), "v_posterior": (0,), "force_null_conditioning": (False,),
    "make_it_fit": (False,), "embedding_reg_weight": (0,), "unfreeze_model": (False,), "model_lr": (0,),
}  # fmt: skip
_ERRORS = {"l2": torch.square, "l1": torch.abs}


class DDPM(Training, Batches, GaussianDiffusion):
    """Diffusion of what `unet_config` denoises, pictures themselves (Ho et al. 2020).

    Parameters are the original's and their defaults too. `linear_start`, `linear_end`, `timesteps`, `beta_schedule`
    (or `given_betas`, (T,)) fix the noise schedule; `parameterization` what the network predicts ("eps", "v", "x0");
    `conditioning_key` how it is conditioned (DiffusionWrapper.KEYS); `loss_type` is "l2" or "l1"; `min_snr_gamma`
    weighs the loss (Hang et al. 2023; 5 is usual), None leaves it even in the network's own target. `first_stage_key`
    names the pictures in a batch; `image_size` and `channels` are those of what is denoised.

    `ckpt_path`, `ignore_keys`, `load_only_unet`: see `init_from_ckpt`; `reset_ema` begins the average anew at the
    weights that were loaded, `reset_num_ema_updates` forgets how many steps it has seen. For training only, see there:
    `scheduler_config`, `ucg_training`, `monitor`, `log_every_t`.
    """

    # Fixed here (see _UNCHANGED), and read by losses that were copied from the original's.
    l_simple_weight, original_elbo_weight, learn_logvar, v_posterior = 1.0, 0.0, False, 0.0
    num_timesteps_cond, shorten_cond_schedule = 1, False
    # Weights of which a checkpoint may have fewer input channels: the new ones begin at zero, as if not there.
    finetune_keys: Sequence[str] = ()

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        loss_type: str = "l2",
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        monitor: str | None = "val/loss",
        use_ema: bool = True,
        first_stage_key: str = "image",
        image_size: int | Sequence[int] = 256,
        channels: int = 3,
        log_every_t: int = 100,
        clip_denoised: bool = True,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        *,
        conditioning_key: str | None = None,
        parameterization: str = "eps",
        scheduler_config: Mapping[str, Any] | None = None,
        ucg_training: Mapping[str, Mapping[str, Any]] | None = None,
        reset_ema: bool = False,
        reset_num_ema_updates: bool = False,
        min_snr_gamma: float | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        _check(type(self).__name__, others, loss_type, parameterization)
        check_ucg_training(ucg_training or {})
        self.parameterization, self.min_snr_gamma, self.loss_type = parameterization, min_snr_gamma, loss_type
        self.first_stage_key, self.image_size, self.channels = first_stage_key, image_size, channels
        self.monitor, self.log_every_t, self.clip_denoised = monitor, log_every_t, clip_denoised
        self.scheduler_config, self.ucg_training = scheduler_config, ucg_training or {}
        self.register_schedule(given_betas, beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.use_ema = use_ema
        self.model_ema = LitEma(self.model) if use_ema else None
        self._begin(ckpt_path, ignore_keys, load_only_unet, reset_ema, reset_num_ema_updates)

    @property
    def device(self) -> torch.device:
        return self.betas.device

    def _begin(
        self,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] | None = (),
        load_only_unet: bool = False,
        reset_ema: bool = False,
        reset_num_ema_updates: bool = False,
    ) -> None:
        """What the constructor does last, by its parameters."""
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys or (), load_only_unet)
        if (reset_ema or reset_num_ema_updates) and self.model_ema is None:
            raise ValueError("reset_ema and reset_num_ema_updates need use_ema=True: there is no average")
        if reset_ema:
            self.model_ema = LitEma(self.model)
        if reset_num_ema_updates:
            self.model_ema.num_updates.zero_()

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False) -> None:
        """Begin from a checkpoint's weights; those whose keys begin with one of `ignore_keys` are passed over.

        Unlike `ldm.checkpoint.load_model` it takes what fits: which of the model's weights the file lacks, and which
        it has beside them, is logged as a warning. `only_model`: the denoiser's alone, of a whole model's file or of
        one that has nothing else. CheckpointError where a weight has another shape (its key may be ignored), or where
        nothing fits.
        """
        load_partly(self, path, ignore_keys, prefix="model." if only_model else "", widened=self.finetune_keys)

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None, return_ids: bool = False) -> Tensor:
        """The network's output for x (B, C, H, W) at timesteps t (B,); `cond`: a tensor, a list, or a dict of lists
        under `c_concat`, `c_crossattn` and `c_adm`. Of a network that returns a tuple, its first, or with `return_ids`
        all of it."""
        output = self.model(x_noisy, t, **self._named(cond))
        return output[0] if isinstance(output, tuple) and not return_ids else output

    def _named(self, cond: Any) -> Mapping[str, Any]:
        if isinstance(cond, Mapping):
            return cond
        name = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
        return {} if cond is None else {name: cond if isinstance(cond, (list, tuple)) else [cond]}

    def share_latents(self, conds: Sequence[Any]) -> dict[str, list[Tensor]] | None:
        """One conditioning, under which `apply_model` of x (B, …) and t (B,) returns what it would for each of `conds`,
        (n·B, …), the first's first; None where that is not possible, or not certain to be the same.

        For one sampling run: nothing in it may change. A sampler asks for it once (`ldm.sampling.guidance.Guide`).
        """
        ours = getattr(self.apply_model, "__func__", None) is DDPM.apply_model and is_own(DDPM.apply_model)
        wrapper = type(self.model) is DiffusionWrapper and is_own_kind(DiffusionWrapper) and not is_changed(self.model)
        if not (ours and wrapper) or self.model.conditioning_key not in ("crossattn", "hybrid"):
            return None
        return joined_contexts(self.model.diffusion_model, [self._named(cond) for cond in conds])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Losses]:
        """The loss of pictures x (B, C, H, W) at random timesteps."""
        return self.p_losses(x, self._timesteps_of(x), *args, **kwargs)

    def _timesteps_of(self, x: Tensor) -> Tensor:
        return torch.randint(0, self.num_timesteps, (len(x),), device=x.device)

    def p_losses(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Losses]:
        """The training loss at timesteps t, and what to log: the mean error in what the network predicts."""
        return self._losses(x_start, None, t, noise)

    def _losses(self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None) -> tuple[Tensor, Losses]:
        noise = torch.randn_like(x_start) if noise is None else noise
        target = {"eps": noise, "x0": x_start}.get(self.parameterization)
        target = self.get_v(x_start, noise, t) if target is None else target
        output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        error = self.get_loss(output.float(), target, mean=False).flatten(1).mean(1)
        loss = (error * self._loss_weight(self.alphas_cumprod[t])).mean()
        prefix = "train" if self.training else "val"
        return loss, {f"{prefix}/loss_simple": error.mean().detach(), f"{prefix}/loss": loss.detach()}

    def get_loss(self, pred: Tensor, target: Tensor, mean: bool = True) -> Tensor:
        """The square or the absolute error (`loss_type`), each entry's or their mean."""
        error = _ERRORS[self.loss_type](pred - target)
        return error.mean() if mean else error

    def _loss_weight(self, alpha_bar: Tensor) -> Tensor:
        """Hang et al. 2023: min(SNR, γ) in terms of x0, carried over to what the network predicts."""
        if self.min_snr_gamma is None:
            return torch.ones_like(alpha_bar)
        snr = alpha_bar / (1 - alpha_bar)
        return snr.clamp(max=self.min_snr_gamma) / {"eps": snr, "v": snr + 1, "x0": 1.0}[self.parameterization]

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


def _check(name: str, given: Mapping[str, Any], loss_type: str, parameterization: str) -> None:
    """What a config says for a training: nothing that would be done otherwise here goes unsaid."""
    if unknown := sorted(set(given) - set(_UNCHANGED)):
        raise TypeError(f"{name} has no parameter {', '.join(unknown)}; check the config's model.params")
    for key, value in given.items():
        if value not in _UNCHANGED[key]:
            raise ValueError(f"{key}={value!r} is not supported here; leave it out, or at {_UNCHANGED[key][-1]!r}")
    for key, value, choices in (
        ("loss_type", loss_type, _ERRORS),
        ("parameterization", parameterization, PARAMETERIZATIONS),
    ):
        if value not in choices:
            raise ValueError(f"{key}={value!r} is unknown; choose one of {', '.join(choices)}")
