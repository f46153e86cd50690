"""The denoising U-Net of latent diffusion (Dhariwal and Nichol 2021; Rombach et al. 2022), under CompVis' names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    Downsample,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    TransposedUpsample,
    Upsample,
    convert_module_to_f16,
    convert_module_to_f32,
)
from ldm.modules.diffusionmodules.classifier import AttentionPool2d, EncoderUNetModel
from ldm.modules.diffusionmodules.half_unet import HalfUNet
from ldm.modules.diffusionmodules.util import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    repeat_to,
    timestep_embedding,
    zero_module,
)
from ldm.util import exists

__all__ = [
    "AttentionBlock",
    "AttentionPool2d",
    "Downsample",
    "EncoderUNetModel",
    "QKVAttention",
    "QKVAttentionLegacy",
    "ResBlock",
    "SpatialTransformer",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "TransposedUpsample",
    "UNetModel",
    "Upsample",
    "avg_pool_nd",
    "checkpoint",
    "conv_nd",
    "convert_module_to_f16",
    "convert_module_to_f32",
    "exists",
    "linear",
    "normalization",
    "timestep_embedding",
    "zero_module",
]


class UNetModel(HalfUNet):
    """Noisy latent, timestep and conditioning → the model's output (eps, v or x0, as it was trained).

    One level per entry of `channel_mult`, each half the size of the one before and `model_channels` times the entry
    wide, with `num_res_blocks` residual blocks (a number, or one per level). Attention follows them at the levels
    whose down-sampling factor (1, 2, 4, …) is in `attention_resolutions`: plain self-attention, or with
    `use_spatial_transformer` a transformer that also attends to a context of width `context_dim`. Heads: `num_heads`
    of any width, or as many of width `num_head_channels` as fit; `num_heads_upsample` is for the decoder's plain ones.

    `num_classes`: a number (`y` is a class), "continuous" (`y` is one number per sample) or "sequential" (`y` is a
    vector of `adm_in_channels`); None takes no `y`. `image_size` is kept for callers; any size works.

    Without effect, for configs of the released models: `use_fp16` (call `.half()`, or use autocast) and `legacy`
    (both of its meanings give the same heads).
    """

    channels_last = False  # the feature maps, in memory
    reuse: Callable[..., Tensor] | None = None  # in the place of `blocks`: see ldm.modules.feature_reuse

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | str | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
        disable_self_attentions: Sequence[bool] | None = None,
        num_attention_blocks: Sequence[int] | None = None,
        disable_middle_self_attn: bool = False,
        use_linear_in_transformer: bool = False,
        adm_in_channels: int | None = None,
    ) -> None:
        width = _context_width(context_dim, use_spatial_transformer, dims)
        transformer = {"depth": transformer_depth, "context_dim": width, "use_linear": use_linear_in_transformer}
        super().__init__(
            image_size,
            in_channels,
            model_channels,
            out_channels,
            num_res_blocks,
            attention_resolutions,
            dropout=dropout,
            channel_mult=channel_mult,
            conv_resample=conv_resample,
            dims=dims,
            use_checkpoint=use_checkpoint,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            num_classes=num_classes,
            adm_in_channels=adm_in_channels,
            transformer=None if width is None else transformer,
            disable_self_attentions=disable_self_attentions,
            num_attention_blocks=num_attention_blocks,
            disable_middle_self_attn=disable_middle_self_attn,
        )
        self.context_dim, self.num_heads_upsample = width, num_heads_upsample
        self.transformer_depth, self.use_linear_in_transformer = transformer_depth, use_linear_in_transformer
        self.output_blocks = nn.ModuleList()
        decoder_heads = num_heads if num_heads_upsample == -1 or use_spatial_transformer else num_heads_upsample
        ch = self._build_decoder(list(self._widths), decoder_heads)
        self.out = nn.Sequential(
            normalization(ch), nn.SiLU(), zero_module(conv_nd(dims, ch, out_channels, 3, padding=1))
        )
        if n_embed is not None:  # predicts codebook entries instead of a latent
            self.id_predictor = nn.Sequential(normalization(ch), conv_nd(dims, ch, n_embed, 1))
        self.predict_codebook_ids = n_embed is not None

    def _build_decoder(self, skips: list[int], num_heads: int) -> int:
        """Append the levels to `output_blocks`, deepest first; returns the width of the last."""
        ch = skips[-1]
        for level in reversed(range(len(self.channel_mult))):
            for i in range(self.num_res_blocks[level] + 1):
                layers = self._stage(ch + skips.pop(), level, i, num_heads)
                ch = self._width(level)
                if level > 0 and i == self.num_res_blocks[level]:
                    if self.resblock_updown:
                        layers.append(self._resblock(ch, up=True))
                    else:
                        layers.append(Upsample(ch, self.conv_resample, self.dims))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        return ch

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        **ignored: Any,
    ) -> Tensor:
        """`x`: (B, in_channels, H, W); `timesteps`: (B,) or (1,); `context`: (B, M, context_dim); `y`: (B, …).

        H and W must halve evenly once per level but the last. Computes in the weights' dtype and returns
        (B, out_channels, H, W) in `x`'s, so that a sampler's float32 latents stay float32. Other keywords, which the
        original swallowed, get a warning.

        A context of n·B, n for each x, gives n·B outputs: layers before the first that reads it run for B only.
        """
        self._check(x, timesteps, context, y, ignored)
        emb = self._embed(timesteps, y)
        if context is not None and context.dtype != self.dtype:
            context = context.to(self.dtype)
        h = x.to(self.dtype, memory_format=torch.channels_last if self.channels_last else torch.preserve_format)
        h = self.blocks(h, emb, context) if self.reuse is None else self.reuse(self, h, emb, context, timesteps, y)
        head = self.id_predictor if self.predict_codebook_ids else self.out
        return head(h).to(x.dtype, memory_format=torch.contiguous_format)

    def blocks(
        self,
        h: Tensor,
        emb: Tensor,
        context: Tensor | None,
        begin: int = 0,
        end: int | None = None,
        inside: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`h` down the input blocks from `begin` to `end`, through `inside`, by default the middle block, and up those
        output blocks that take what they left: without limits all of the network but its head."""
        count = len(self.input_blocks)
        end = count if end is None else end
        skips = []
        for i in range(begin, end):
            h = self.input_blocks[i](h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context) if inside is None else inside(h)
        for i in range(count - end, count - begin):
            h = self.output_blocks[i](torch.cat([h, repeat_to(skips.pop(), h.shape[0])], dim=1), emb, context)
        return h

    def _check(
        self, x: Tensor, timesteps: Tensor | None, context: Tensor | None, y: Tensor | None, ignored: Mapping[str, Any]
    ) -> None:
        self._check_input(x, timesteps)
        batch = x.shape[0]
        if ignored:
            warnings.warn(f"{', '.join(ignored)}: without effect, a U-Net takes x, timesteps, context, y", stacklevel=3)
        if self.context_dim is None and context is not None:
            warnings.warn("context has no effect: this network has no cross-attention (context_dim)", stacklevel=3)
        if self.context_dim is not None:
            _check_context(context, batch, self.context_dim)
        if (self.num_classes is None) != (y is None):
            raise ValueError(
                f"num_classes={self.num_classes!r} and y is {'missing' if y is None else 'given'}: pass y where and"
                " only where the network is class-conditional"
            )
        if y is not None and y.shape[0] != batch:
            raise ValueError(f"y has shape {tuple(y.shape)}; give one entry per sample, {batch} in all")


def _check_context(context: Tensor | None, batch: int, width: int) -> None:
    if context is None:
        raise ValueError(f"context is missing: this network attends to one of shape ({batch}, M, {width})")
    if context.ndim != 3 or not batch or context.shape[0] % batch or context.shape[2] != width:
        raise ValueError(
            f"context has shape {tuple(context.shape)}; for this batch and network it must be ({batch}, M, {width}), or"
            " several such along the batch"
        )


def _context_width(context_dim: int | Sequence[int] | None, use_spatial_transformer: bool, dims: int) -> int | None:
    """The context's width; a list, as some configs write it, repeats it for each block of a transformer."""
    if use_spatial_transformer != (context_dim is not None):
        raise ValueError(
            f"use_spatial_transformer={use_spatial_transformer} with context_dim={context_dim}: the spatial transformer"
            " attends to a context of that width; give both or neither"
        )
    if use_spatial_transformer and dims != 2:
        raise ValueError(f"dims={dims}: the spatial transformer needs dims=2; leave it out for attention blocks")
    if context_dim is None or isinstance(context_dim, int):
        return context_dim
    if len(set(context_dim)) != 1:
        raise ValueError(f"context_dim={list(context_dim)}: all blocks see the same context; give one width")
    return context_dim[0]
