"""The first half of the U-Net of Dhariwal and Nichol 2021, which the denoiser and their noisy classifier share.

Attribute names, and the order of layers inside each `nn.Sequential`, are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    as_labels,
)
from ldm.modules.diffusionmodules.util import conv_nd, linear, timestep_embedding


class HalfUNet(nn.Module):
    """Timestep and labels, the levels on the way down, and the middle; `UNetModel` says what the parameters mean.

    `transformer`: the options of `SpatialTransformer` where it is to attend to a context, else None.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        *,
        dropout: float,
        channel_mult: Sequence[int],
        conv_resample: bool,
        dims: int,
        use_checkpoint: bool,
        num_heads: int,
        num_head_channels: int,
        use_scale_shift_norm: bool,
        resblock_updown: bool,
        use_new_attention_order: bool,
        num_classes: int | str | None = None,
        adm_in_channels: int | None = None,
        transformer: Mapping[str, Any] | None = None,
        disable_self_attentions: Sequence[bool] | None = None,
        num_attention_blocks: Sequence[int] | None = None,
        disable_middle_self_attn: bool = False,
    ) -> None:
        super().__init__()
        n = len(channel_mult)
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.model_channels, self.channel_mult, self.dims = model_channels, tuple(channel_mult), dims
        self.num_res_blocks = _per_level(num_res_blocks, n, "num_res_blocks")
        self.attention_resolutions = tuple(attention_resolutions)
        self.num_attention_blocks = num_attention_blocks and _per_level(num_attention_blocks, n, "num_attention_blocks")
        self.disable_self_attentions = _per_level(disable_self_attentions or False, n, "disable_self_attentions")
        self.num_classes, self._transformer = num_classes, transformer
        self.dropout, self.conv_resample, self.resblock_updown = dropout, conv_resample, resblock_updown
        self.num_heads, self.num_head_channels = num_heads, num_head_channels
        self.use_new_attention_order, self.use_checkpoint = use_new_attention_order, use_checkpoint
        self._build(adm_in_channels, use_scale_shift_norm, disable_middle_self_attn)

    def _build(self, adm_in_channels: int | None, use_scale_shift_norm: bool, disable_middle_self_attn: bool) -> None:
        """The layers, in the order that the checkpoints' keys have."""
        emb_channels = 4 * self.model_channels
        self._res_options = {  # what all residual blocks share
            "emb_channels": emb_channels,
            "dropout": self.dropout,
            "use_scale_shift_norm": use_scale_shift_norm,
            "dims": self.dims,
            "use_checkpoint": self.use_checkpoint,
        }
        self.time_embed = nn.Sequential(
            linear(self.model_channels, emb_channels), nn.SiLU(), linear(emb_channels, emb_channels)
        )
        if self.num_classes is not None:
            self.label_emb = _label_embedding(self.num_classes, adm_in_channels, emb_channels)
        first = conv_nd(self.dims, self.in_channels, self.model_channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        self._widths = self._build_encoder()
        ch = self._widths[-1]
        self.middle_block = TimestepEmbedSequential(
            self._resblock(ch), self._attention(ch, self.num_heads, disable_middle_self_attn), self._resblock(ch)
        )

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in outside autocast."""
        return self.time_embed[0].weight.dtype

    def convert_to_fp16(self) -> None:
        """The whole network, in place (the original's converts nothing)."""
        self.half()

    def convert_to_fp32(self) -> None:
        self.float()

    def _build_encoder(self) -> list[int]:
        """Append the levels to `input_blocks`; returns the width of every block's output."""
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
        if self._transformer is None:
            return AttentionBlock(channels, heads, -1, self.use_checkpoint, self.use_new_attention_order)
        return SpatialTransformer(
            channels,
            heads,
            channels // heads,
            disable_self_attn=disable_self_attn,
            use_checkpoint=self.use_checkpoint,
            **self._transformer,
        )

    def _embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.dtype))
        return emb if y is None else emb + self.label_emb(as_labels(y, self.label_emb).to(emb.device))

    def _check_input(self, x: Tensor, timesteps: Tensor | None) -> None:
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
        if timesteps is None or timesteps.shape not in ((len(x),), (1,)):
            what = "is missing" if timesteps is None else f"has shape {tuple(timesteps.shape)}"
            raise ValueError(f"timesteps {what}; give one per sample, shape ({len(x)},)")


def _per_level(value, levels: int, name: str) -> list:
    """One value per level; a single one counts for all."""
    values = [value] * levels if isinstance(value, (int, bool)) else list(value)
    if len(values) != levels:
        raise ValueError(f"{name}={values} has {len(values)} entries for {levels} levels (channel_mult); give {levels}")
    return values


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
