"""The latent diffusion model: an autoencoder, a conditioner and a denoiser under one roof (Rombach et al. 2022)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.autoencoder import VQModelInterface
from ldm.models.diffusion.base import DDPM
from ldm.models.diffusion.batches import LatentBatches
from ldm.models.diffusion.image_log import ImageLog
from ldm.models.diffusion.training import Losses
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import instantiate_from_config

_log = logging.getLogger(__name__)

_BEGIN = ("ckpt_path", "ignore_keys", "load_only_unet", "reset_ema", "reset_num_ema_updates")
_CAPTION_KEYS = ("caption", "txt")


class LatentDiffusion(LatentBatches, ImageLog, DDPM):
    """Diffusion over the latents of `first_stage_config`, conditioned on the output of `cond_stage_config`.

    Parameters are the original's, their order and defaults too; those that are not spelled out are DDPM's.
    `conditioning_key` says how the network is conditioned (None: "concat", or "crossattn" where `concat_mode` is
    false); `scale_factor` brings the latents to about unit variance, and with `scale_by_std` it is measured on the
    first batch of a training and kept in the checkpoint; `cond_stage_forward` names the conditioner's method to call,
    `encode` by default. `personalization_config` builds an `embedding_manager` (textual inversion).

    While there is an `embedding_manager`, prompts are encoded with its words. Setting it freezes all else, for good: a
    training moves its vectors alone.
    """

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str,
        num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        concat_mode: bool = True,
        cond_stage_forward: str | None = None,
        conditioning_key: str | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        *args: Any,
        personalization_config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        begin, kwargs = split_begin(kwargs)
        if cond_stage_config == "__is_unconditional__":  # the original's rules
            conditioning_key = None
        elif conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        super().__init__(*args, conditioning_key=conditioning_key, num_timesteps_cond=num_timesteps_cond, **kwargs)
        self.cond_stage_key, self.cond_stage_forward = cond_stage_key, cond_stage_forward
        self.cond_stage_trainable, self.concat_mode, self.clip_denoised = cond_stage_trainable, concat_mode, False
        self.embedding_manager = None
        self.instantiate_first_stage(first_stage_config)
        self.instantiate_cond_stage(cond_stage_config)
        self._keep_scale_factor(scale_factor, scale_by_std)
        self._begin(**begin)
        if personalization_config is not None:  # last: new words begin as words that the text encoder knows
            self.embedding_manager = self.instantiate_embedding_manager(personalization_config, self.cond_stage_model)

    def instantiate_first_stage(self, config: Mapping[str, Any]) -> None:
        self.first_stage_model = instantiate_from_config(config).eval().requires_grad_(False)

    def instantiate_cond_stage(self, config: Mapping[str, Any] | str) -> None:
        if config == "__is_first_stage__":  # not as a submodule: checkpoints hold its weights once
            object.__setattr__(self, "cond_stage_model", self.first_stage_model)
        else:
            self.cond_stage_model = instantiate_from_config(config)
        if self.cond_stage_model is not None and not self.cond_stage_trainable:
            self.cond_stage_model.eval().requires_grad_(False)

    def instantiate_embedding_manager(self, config: Mapping[str, Any], embedder: nn.Module) -> nn.Module:
        return instantiate_from_config({**config, "params": {**(config.get("params") or {}), "embedder": embedder}})

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        report = super().load_state_dict(state_dict, *args, **kwargs)
        if hasattr(self.embedding_manager, "begin_again"):
            self.embedding_manager.begin_again(self.cond_stage_model)
        return report

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "embedding_manager" and value is not None:
            for part in filter(None, (self.model, self.cond_stage_model)):
                part.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """What is frozen stays in eval(), whatever the mode."""
        super().train(mode)
        self.first_stage_model.eval()
        if self.cond_stage_model is not None and (not self.cond_stage_trainable or self.embedding_manager is not None):
            self.cond_stage_model.eval()
        if self.embedding_manager is not None:
            self.model.eval()
        return self

    # --------------------------------------------------------------------------------------------- the latents' scale

    def _keep_scale_factor(self, factor: float, measured: bool) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
            raise ValueError(f"scale_factor={factor!r}: give a number above 0 (Stable Diffusion's is 0.18215)")
        self.scale_by_std = measured
        self._scale_is_known = not measured
        if measured:
            self._register_float32("scale_factor", factor)
        else:
            self.scale_factor = factor

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._scale_is_known |= prefix + "scale_factor" in state_dict

    @torch.no_grad()
    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """With `scale_by_std`, where no checkpoint told it: the scale factor from the first batch's latents."""
        super().on_train_batch_start(batch, batch_idx, dataloader_idx)
        if self._scale_is_known:
            return
        z = self.get_first_stage_encoding(self.encode_first_stage(self.pictures(batch, self.first_stage_key)))
        factor = self.scale_factor / z.std()
        if not factor.isfinite():
            raise ValueError(f"the latents of the first batch have no spread to measure: their std is {z.std():.3g}")
        self.scale_factor.copy_(factor)
        self._scale_is_known = True
        _log.info("scale_factor, measured on the first batch: %.5f", factor.item())

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
        words = {} if self.embedding_manager is None else {"embedding_manager": self.embedding_manager}
        encoded = encode(c, **words)
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

    # ------------------------------------------------------------------------------------------------------- training

    @property
    def conditioning_is_trained(self) -> bool:
        """Whether `forward` encodes the conditioning, with gradients, instead of `get_input`."""
        return self.cond_stage_trainable or self.embedding_manager is not None

    def trained_parts(self) -> Iterator[nn.Module]:
        if self.embedding_manager is not None:
            yield self.embedding_manager
            return
        yield self.model
        if self.cond_stage_trainable and self.cond_stage_model is not None:
            yield self.cond_stage_model

    def shared_step(self, batch: Mapping[str, Any], **kwargs: Any) -> tuple[Tensor, Losses]:
        x, c = self.get_input(batch, self.first_stage_key)
        return self(x, c, **kwargs)

    def forward(self, x: Tensor, c: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Losses]:
        """The loss of latents x at random timesteps; c is encoded here if that is being trained."""
        t = self._timesteps_of(x)
        if self.conditioning_is_trained and c is not None:
            c = self.get_learned_conditioning(c)
        return self.p_losses(x, c, t, *args, **kwargs)

    def p_losses(self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Losses]:
        """DDPM's, under the conditioning `cond` (see `apply_model`)."""
        return self._losses(x_start, cond, t, noise)


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.expand(times, *x.shape[1:])


def split_begin(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A constructor's parameters: those that load a file once all else is there (`DDPM._begin`), and the others."""
    begin = {name: value for name, value in parameters.items() if name in _BEGIN}
    return begin, {name: value for name, value in parameters.items() if name not in _BEGIN}
