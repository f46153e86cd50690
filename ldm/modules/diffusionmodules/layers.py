"""The layers that CompVis' autoencoders and its DDPM network are made of; `model` has these under CompVis' path.

Attribute names are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import LinearAttention, SpatialSelfAttention
from ldm.modules.diffusionmodules.util import Normalize


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a convolution if `with_conv`."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1) if with_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the size by a strided convolution padded at the right and bottom only, or by averaging."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1))) if self.with_conv else F.avg_pool2d(x, 2)


class ResnetBlock(nn.Module):
    """Two normed convolutions, added to the input; where the channels change, that goes through a convolution of 1×1,
    or of 3×3 with `conv_shortcut`.

    With `temb_channels`, an embedding of the timestep, (B, temb_channels), is projected and added between the two; 0
    is for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        temb_channels: int = 512,
        conv_shortcut: bool = False,
    ) -> None:
        super().__init__()
        out = out_channels or in_channels
        self.in_channels, self.out_channels, self.use_conv_shortcut = in_channels, out, conv_shortcut
        self.norm1 = Normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out, 3, padding=1)
        if temb_channels:
            self.temb_proj = nn.Linear(temb_channels, out)
        self.norm2 = Normalize(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if out != in_channels and conv_shortcut:
            self.conv_shortcut = nn.Conv2d(in_channels, out, 3, padding=1)
        elif out != in_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out, 1)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        if self.in_channels != self.out_channels:
            x = self.conv_shortcut(x) if self.use_conv_shortcut else self.nin_shortcut(x)
        return x + h


class AttnBlock(SpatialSelfAttention):
    """`SpatialSelfAttention` by the name that it has in the autoencoders."""


class MemoryEfficientAttnBlock(AttnBlock):
    """`AttnBlock` by the name that it has in Stable Diffusion 2 with xformers."""


class LinAttnBlock(LinearAttention):
    """`LinearAttention` of a single head as wide as its input."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(dim=in_channels, heads=1, dim_head=in_channels)


def nonlinearity(x: Tensor) -> Tensor:
    """x · sigmoid(x), which all of these layers use."""
    return F.silu(x)


def make_attn(in_channels: int, attn_type: str = "vanilla") -> nn.Module:
    """The attention layer by CompVis' name of its kind: "vanilla", "none" for no attention, or "linear"."""
    attn_type = "vanilla" if attn_type == "vanilla-xformers" else attn_type  # the same, by another library's kernel
    kinds = {"vanilla": AttnBlock, "none": nn.Identity, "linear": LinAttnBlock}
    if attn_type not in kinds:
        raise ValueError(f"attn_type={attn_type!r} is not known; choose one of {', '.join(map(repr, kinds))}")
    return kinds[attn_type](in_channels)


def middle(channels: int, dropout: float, attn_type: str, temb_channels: int = 0) -> nn.Module:
    mid = nn.Module()
    mid.block_1 = ResnetBlock(channels, dropout=dropout, temb_channels=temb_channels)
    mid.attn_1 = make_attn(channels, attn_type)
    mid.block_2 = ResnetBlock(channels, dropout=dropout, temb_channels=temb_channels)
    return mid


def run_middle(mid: nn.Module, h: Tensor, temb: Tensor | None = None) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(h, temb)), temb)


def level(
    in_channels: Sequence[int], out_channels: int, attn: bool, dropout: float, attn_type: str, temb_channels: int = 0
) -> nn.Module:
    """One resolution: a residual block for each of `in_channels`, each followed by attention if `attn`."""
    blocks = nn.Module()
    blocks.block = nn.ModuleList(ResnetBlock(width, out_channels, dropout, temb_channels) for width in in_channels)
    blocks.attn = nn.ModuleList(make_attn(out_channels, attn_type) for _ in in_channels if attn)
    return blocks


def run_block(level: nn.Module, i: int, h: Tensor, temb: Tensor | None = None) -> Tensor:
    """The i-th residual block of a resolution, and its attention."""
    h = level.block[i](h, temb)
    return level.attn[i](h) if level.attn else h
