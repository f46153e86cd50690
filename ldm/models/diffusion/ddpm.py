"""The latent diffusion models under CompVis' names: the general one, and those that are also shown a picture.

Where a picture is shown, the network's first layer takes it beside the latents ("c_concat"). The classes below say
which picture and how it gets there: Stable Diffusion's inpainting, depth and upscaling models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.diffusion.base import DDPM
from ldm.models.diffusion.latent import LatentDiffusion, split_begin
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.util import instantiate_from_config

__all__ = [
    "DDPM",
    "DiffusionWrapper",
    "LatentDepth2ImageDiffusion",
    "LatentDiffusion",
    "LatentFinetuneDiffusion",
    "LatentInpaintDiffusion",
    "LatentUpscaleDiffusion",
    "disabled_train",
    "uniform_on_device",
]

_FIRST_LAYER = (  # of the network and of its average: it takes the picture's channels beside the latents'
    "model.diffusion_model.input_blocks.0.0.weight",
    "model_ema.diffusion_modelinput_blocks00weight",
)


def disabled_train(self: nn.Module, mode: bool = True) -> nn.Module:
    """To be put in place of a module's `train`, so that its mode stays as it is."""
    return self


def uniform_on_device(r1: float, r2: float, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Numbers drawn evenly from r2 (included) to r1."""
    return (r1 - r2) * torch.rand(*shape, device=device) + r2


class LatentFinetuneDiffusion(LatentDiffusion):
    """A LatentDiffusion whose network has more input channels, for what `concat_keys` name in a batch.

    `finetune_keys` are those weights that a training which begins from a model without that picture (`ckpt_path`)
    takes the first input channels of, and zeros for the others; `keep_finetune_dims`, how many the file's have, and
    the `c_concat_log_*` are accepted and left alone. All other parameters are LatentDiffusion's.
    """

    def __init__(
        self,
        concat_keys: Sequence[str],
        finetune_keys: Sequence[str] | None = _FIRST_LAYER,
        keep_finetune_dims: int = 4,
        c_concat_log_start: int | None = None,
        c_concat_log_end: int | None = None,
        **kwargs: Any,
    ) -> None:
        begin, kwargs = split_begin(kwargs)
        super().__init__(**kwargs)
        _check_frozen(self)
        self.concat_keys, self.finetune_keys = tuple(concat_keys), tuple(finetune_keys or ())
        self._begin(**begin)

    @property
    def conditioning_is_trained(self) -> bool:
        """Never: it is encoded before a picture joins it."""
        return False

    def _input_to_log(self, batch: Mapping[str, Any], n: int) -> Sequence[Any]:
        return self.get_input(batch, self.first_stage_key, bs=n, return_first_stage_outputs=True)

    def concat_conditioning(self, batch: Mapping[str, Any], size: Sequence[int], bs: int | None = None) -> Tensor:
        """What stands beside latents of `size` = (h, w): (B, C, h, w), of the entries that `concat_keys` name."""
        return torch.cat([self._beside(batch, key, tuple(size), bs) for key in self.concat_keys], dim=1)

    def _beside(self, batch: Mapping[str, Any], key: str, size: tuple[int, int], bs: int | None) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def get_input(
        self,
        batch: Mapping[str, Any],
        k: str,
        cond_key: str | None = None,
        bs: int | None = None,
        return_first_stage_outputs: bool = False,
    ) -> list[Any]:
        """A batch → [latents, {"c_concat": […], "c_crossattn": […]}]; with `return_first_stage_outputs` also the
        pictures, their reconstruction and the conditioning before it was encoded."""
        z, c, *rest = super().get_input(
            batch,
            k,
            return_first_stage_outputs,
            force_c_encode=True,
            cond_key=cond_key,
            return_original_cond=return_first_stage_outputs,
            bs=bs,
        )
        return [z, {"c_concat": [self.concat_conditioning(batch, z.shape[2:], bs)], "c_crossattn": [c]}, *rest]


class LatentInpaintDiffusion(LatentFinetuneDiffusion):
    """Fills what a mask covers: beside the latents stand the mask and the latent of the picture without that part.

    `batch["mask"]`: (B, H, W, 1), 1 = to be filled; `batch["masked_image"]`: (B, H, W, 3) in [−1, 1], 0 under the mask.
    """

    def __init__(
        self,
        concat_keys: Sequence[str] = ("mask", "masked_image"),
        masked_image_key: str = "masked_image",
        **kwargs: Any,
    ) -> None:
        super().__init__(concat_keys, **kwargs)
        if masked_image_key not in self.concat_keys:
            raise ValueError(f"masked_image_key={masked_image_key!r} must be one of concat_keys={self.concat_keys}")
        self.masked_image_key = masked_image_key

    def _beside(self, batch: Mapping[str, Any], key: str, size: tuple[int, int], bs: int | None) -> Tensor:
        x = self.pictures(batch, key, bs)
        if key == self.masked_image_key:
            return self.get_first_stage_encoding(self.encode_first_stage(x))
        return F.interpolate(x, size=size)  # the nearest pixel, so that a mask stays one


class LatentDepth2ImageDiffusion(LatentFinetuneDiffusion):
    """Keeps the depth of a scene: beside the latents stands its depth map.

    The original estimates depth with MiDaS, inside the model. That estimator is not built here (`depth_stage_config` is
    accepted, and `depth_model.*` in a checkpoint is of no use): the batch holds the depth maps, under the one name in
    `concat_keys`, (B, H, W) or (B, 1, H, W), larger is nearer. Each is scaled by its least and greatest values, with
    0.001 added to their difference as in the original: give maps that span much more, as MiDaS' do (depth2img.py scales
    its own to 1000).
    """

    def __init__(
        self,
        depth_stage_config: Mapping[str, Any] | None = None,
        concat_keys: Sequence[str] = ("midas_in",),
        **kwargs: Any,
    ) -> None:
        super().__init__(concat_keys, **kwargs)
        self.depth_stage_key = self.concat_keys[0]

    def _beside(self, batch: Mapping[str, Any], key: str, size: tuple[int, int], bs: int | None) -> Tensor:
        depth = self.entry(batch, key, bs).float()
        depth = depth[:, None] if depth.ndim == 3 else depth
        if depth.ndim != 4 or depth.shape[1] != 1:
            raise ValueError(f"{key!r} has shape {tuple(depth.shape)}: give depth maps (B, H, W) or (B, 1, H, W)")
        depth = F.interpolate(depth, size=size, mode="bicubic", align_corners=False)
        least, most = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        return 2 * (depth - least) / (most - least + 0.001) - 1  # the original's guard against a flat map


class LatentUpscaleDiffusion(LatentDiffusion):
    """Enlarges pictures: beside the latents stands the small picture, and the network is told its noise level.

    `low_scale_config` builds what adds that noise (`ldm.modules.diffusionmodules.upscaling`). `low_scale_key` names the
    small pictures in a batch, (B, h, w, 3) in [−1, 1], of the latents' size; `noise_level_key`, if given, their levels.
    """

    def __init__(
        self,
        *args: Any,
        low_scale_config: Mapping[str, Any],
        low_scale_key: str = "LR",
        noise_level_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_frozen(self)
        self.low_scale_model = instantiate_from_config(low_scale_config).eval().requires_grad_(False)
        self.low_scale_key, self.noise_level_key = low_scale_key, noise_level_key

    @property
    def conditioning_is_trained(self) -> bool:
        """Never: it is encoded before the picture joins it."""
        return False

    def _input_to_log(self, batch: Mapping[str, Any], n: int) -> Sequence[Any]:
        return self.get_input(batch, self.first_stage_key, bs=n, log_mode=True)[:5]

    def train(self, mode: bool = True) -> LatentUpscaleDiffusion:
        super().train(mode)
        self.low_scale_model.eval()
        return self

    @torch.no_grad()
    def get_input(
        self,
        batch: Mapping[str, Any],
        k: str,
        cond_key: str | None = None,
        bs: int | None = None,
        log_mode: bool = False,
    ) -> list[Any]:
        """A batch → [latents, {"c_concat", "c_crossattn", "c_adm"}]; with `log_mode` also the pictures, their
        reconstruction, the conditioning before it was encoded, the small pictures, these with noise, and the levels."""
        z, c, *rest = super().get_input(
            batch, k, log_mode, force_c_encode=True, cond_key=cond_key, return_original_cond=log_mode, bs=bs
        )
        small = self.pictures(batch, self.low_scale_key, bs)
        levels = [] if self.noise_level_key is None else [self.entry(batch, self.noise_level_key, bs)]
        noisy, level = self.low_scale_model(small, *levels)
        if log_mode:
            rest += [small, self.low_scale_model.decode(noisy), level]
        return [z, {"c_concat": [noisy], "c_crossattn": [c], "c_adm": level}, *rest]


def _check_frozen(model: LatentDiffusion) -> None:
    if model.cond_stage_trainable:
        raise ValueError(
            f"cond_stage_trainable=True: {type(model).__name__} trains its network alone, for the conditioning joins a "
            "picture before the loss sees it; set it to false"
        )
