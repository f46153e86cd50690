"""The denoising U-Net of latent diffusion (Dhariwal and Nichol 2021; Rombach et al. 2022), under CompVis' names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    Upsample,
    as_labels,
)
from ldm.modules.diffusionmodules.util import conv_nd, linear, normalization, timestep_embedding, zero_module

__all__ = [
    "AttentionBlock",
    "Downsample",
    "ResBlock",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "UNetModel",
    "Upsample",
    "timestep_embedding",
]


class UNetModel(nn.Module):
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
        super().__init__()
        levels = len(channel_mult)
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.model_channels, self.channel_mult, self.dims = model_channels, tuple(channel_mult), dims
        self.num_res_blocks = _per_level(num_res_blocks, levels, "num_res_blocks")
        self.attention_resolutions = tuple(attention_resolutions)
        self.num_attention_blocks = num_attention_blocks and _per_level(
            num_attention_blocks, levels, "num_attention_blocks"
        )
        self.disable_self_attentions = _per_level(disable_self_attentions or False, levels, "disable_self_attentions")
        self.num_classes, self.context_dim = num_classes, _context_width(context_dim, use_spatial_transformer, dims)
        self.conv_resample, self.resblock_updown = conv_resample, resblock_updown
        self.num_heads, self.num_head_channels = num_heads, num_head_channels
        self.use_new_attention_order, self.use_checkpoint = use_new_attention_order, use_checkpoint
        self.transformer_depth, self.use_linear_in_transformer = transformer_depth, use_linear_in_transformer
        emb_channels = 4 * model_channels
        self._res_options = {  # what all residual blocks share
            "emb_channels": emb_channels,
            "dropout": dropout,
            "use_scale_shift_norm": use_scale_shift_norm,
            "dims": dims,
            "use_checkpoint": use_checkpoint,
        }

        self.time_embed = nn.Sequential(
            linear(model_channels, emb_channels), nn.SiLU(), linear(emb_channels, emb_channels)
        )
        if num_classes is not None:
            self.label_emb = _label_embedding(num_classes, adm_in_channels, emb_channels)
        first = conv_nd(dims, in_channels, model_channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        skips = self._build_encoder()
        ch = skips[-1]
        self.middle_block = TimestepEmbedSequential(
            self._resblock(ch), self._attention(ch, num_heads, disable_middle_self_attn), self._resblock(ch)
        )
        self.output_blocks = nn.ModuleList()
        decoder_heads = num_heads if num_heads_upsample == -1 or use_spatial_transformer else num_heads_upsample
        ch = self._build_decoder(skips, decoder_heads)
        self.out = nn.Sequential(
            normalization(ch), nn.SiLU(), zero_module(conv_nd(dims, ch, out_channels, 3, padding=1))
        )
        if n_embed is not None:  # predicts codebook entries instead of a latent
            self.id_predictor = nn.Sequential(normalization(ch), conv_nd(dims, ch, n_embed, 1))
        self.predict_codebook_ids = n_embed is not None

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in outside autocast."""
        return self.time_embed[0].weight.dtype

    def _build_encoder(self) -> list[int]:
        """Append the levels to `input_blocks`; returns the width of every block's output, for the decoder."""
        ch = self.model_channels
        skips = [ch]
        for level, blocks in enumerate(self.num_res_blocks):
            for i in range(blocks):
                layers = self._stage(ch, level, i, self.num_heads)
                ch = self._width(level)
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skips.append(ch)
            if level < len(self.channel_mult) - 1:
                if self.resblock_updown:
                    down = self._resblock(ch, down=True)
                else:
                    down = Downsample(ch, self.conv_resample, self.dims)
                self.input_blocks.append(TimestepEmbedSequential(down))
                skips.append(ch)
        return skips

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

    def _width(self, level: int) -> int:
        return self.channel_mult[level] * self.model_channels

    def _stage(self, in_channels: int, level: int, i: int, num_heads: int) -> list[nn.Module]:
        """The level's residual block number i and, where wanted, its attention."""
        width = self._width(level)
        layers = [self._resblock(in_channels, out_channels=width)]
        wanted = self.num_attention_blocks is None or i < self.num_attention_blocks[level]
        if 2**level in self.attention_resolutions and wanted:
            layers.append(self._attention(width, num_heads, self.disable_self_attentions[level]))
        return layers

    def _resblock(self, channels: int, **options) -> ResBlock:
        return ResBlock(channels, **self._res_options, **options)

    def _attention(self, channels: int, num_heads: int, disable_self_attn: bool) -> nn.Module:
        heads = num_heads if self.num_head_channels == -1 else channels // self.num_head_channels
        if heads < 1 or channels % heads or self.num_head_channels not in (-1, channels // heads):
            raise ValueError(
                f"{channels} channels do not split into num_heads={num_heads}, num_head_channels="
                f"{self.num_head_channels}; set one of them, to a number that divides every level's channels"
            )
        if self.context_dim is None:
            return AttentionBlock(channels, heads, -1, self.use_checkpoint, self.use_new_attention_order)
        return SpatialTransformer(
            channels,
            heads,
            channels // heads,
            depth=self.transformer_depth,
            context_dim=self.context_dim,
            disable_self_attn=disable_self_attn,
            use_linear=self.use_linear_in_transformer,
            use_checkpoint=self.use_checkpoint,
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """`x`: (B, in_channels, H, W); `timesteps`: (B,) or (1,); `context`: (B, M, context_dim); `y`: (B, …).

        H and W must halve evenly once per level but the last. Computes in the weights' dtype and returns
        (B, out_channels, H, W) in `x`'s, so that a sampler's float32 latents stay float32.
        """
        self._check(x, timesteps, context, y)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.dtype))
        if y is not None:
            emb = emb + self.label_emb(as_labels(y, self.label_emb).to(emb.device))
        if context is not None:
            context = context.to(self.dtype)
        h = x.to(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        head = self.id_predictor if self.predict_codebook_ids else self.out
        return head(h).to(x.dtype)

    def _check(self, x: Tensor, timesteps: Tensor, context: Tensor | None, y: Tensor | None) -> None:
        """Say in the caller's terms what torch would say about some inner layer's shapes."""
        if x.ndim != self.dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this network takes (batch, {self.in_channels}, …) with {self.dims}"
                " spatial axes (in_channels counts what is concatenated to the latent)"
            )
        factor = 2 ** (len(self.channel_mult) - 1)
        size = tuple(x.shape[-2:] if self.dims > 1 else x.shape[-1:])  # 3-D data is never down-sampled in depth
        if any(n % factor for n in size):
            raise ValueError(
                f"size {size} does not halve evenly {len(self.channel_mult) - 1} times; choose a latent height and"
                f" width divisible by {factor}"
            )
        batch = x.shape[0]
        if timesteps.shape not in ((batch,), (1,)):
            raise ValueError(f"timesteps has shape {tuple(timesteps.shape)}; give one per sample, shape ({batch},)")
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
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != width:
        raise ValueError(
            f"context has shape {tuple(context.shape)}; for this batch and network it must be ({batch}, M, {width})"
        )


def _per_level(value, levels: int, name: str) -> list:
    """One value per level; a single one counts for all."""
    values = [value] * levels if isinstance(value, (int, bool)) else list(value)
    if len(values) != levels:
        raise ValueError(f"{name}={values} has {len(values)} entries for {levels} levels (channel_mult); give {levels}")
    return values


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


def _label_embedding(num_classes: int | str, adm_in_channels: int | None, emb_channels: int) -> nn.Module:
    if isinstance(num_classes, int):
        return nn.Embedding(num_classes, emb_channels)
    if num_classes == "continuous":
        return linear(1, emb_channels)
    if num_classes != "sequential":
        raise ValueError(f"num_classes={num_classes!r}: choose a number, 'continuous', 'sequential' or None")
    if adm_in_channels is None:
        raise ValueError("num_classes='sequential' needs adm_in_channels, the length of the vector y")
    mlp = nn.Sequential(linear(adm_in_channels, emb_channels), nn.SiLU(), linear(emb_channels, emb_channels))
    return nn.Sequential(mlp)
