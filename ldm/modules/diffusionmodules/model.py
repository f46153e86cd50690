"""Encoder and decoder of the first-stage autoencoders (Esser et al. 2021; Rombach et al. 2022, appendix G).

Attribute names are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import attend
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
    """Two normed convolutions, added to the input; a 1×1 convolution where the channels change."""

    def __init__(self, in_channels: int, out_channels: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        out = out_channels or in_channels
        self.norm1 = Normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out, 3, padding=1)
        self.norm2 = Normalize(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if out != in_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out, 1)
        self.changes_channels = out != in_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if self.changes_channels else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels, added to the input."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = Normalize(in_channels)
        self.q = nn.Conv2d(in_channels, in_channels, 1)
        self.k = nn.Conv2d(in_channels, in_channels, 1)
        self.v = nn.Conv2d(in_channels, in_channels, 1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (proj(h).flatten(2).transpose(1, 2)[:, None] for proj in (self.q, self.k, self.v))
        h = attend(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


def make_attn(in_channels: int, attn_type: str = "vanilla") -> nn.Module:
    """The attention layer by CompVis' name of its kind: "vanilla", or "none" for no attention."""
    kinds = {"vanilla": AttnBlock, "none": nn.Identity}
    if attn_type not in kinds:
        raise ValueError(f"attn_type={attn_type!r} is not known; choose one of {', '.join(map(repr, kinds))}")
    return kinds[attn_type](in_channels)


def _middle(channels: int, dropout: float, attn_type: str) -> nn.Module:
    mid = nn.Module()
    mid.block_1 = ResnetBlock(channels, dropout=dropout)
    mid.attn_1 = make_attn(channels, attn_type)
    mid.block_2 = ResnetBlock(channels, dropout=dropout)
    return mid


def _level(in_channels: int, out_channels: int, blocks: int, attn: bool, dropout: float, attn_type: str) -> nn.Module:
    """One resolution: `blocks` residual blocks, each followed by attention if `attn`."""
    level = nn.Module()
    widths = [in_channels] + [out_channels] * blocks
    level.block = nn.ModuleList(ResnetBlock(i, o, dropout) for i, o in pairwise(widths))
    level.attn = nn.ModuleList(make_attn(out_channels, attn_type) for _ in range(blocks if attn else 0))
    return level


def _run_level(level: nn.Module, h: Tensor) -> Tensor:
    for i, block in enumerate(level.block):
        h = block(h)
        if level.attn:
            h = level.attn[i](h)
    return h


class Encoder(nn.Module):
    """Pictures → features of the latent.

    `ch_mult` has one entry per resolution, so the size falls by f = 2**(len(ch_mult) − 1); attention stands where the
    resolution, counted down from `resolution`, is in `attn_resolutions`. `double_z` doubles the output for a mean and
    a log-variance. `out_ch` is the decoder's: the original passes one set of options to both.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int | None = None,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(ch_mult) - 1)
        self.in_channels = in_channels
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        widths = [ch] + [ch * m for m in ch_mult]
        for i, (w_in, w_out) in enumerate(pairwise(widths)):
            attn = resolution // 2**i in attn_resolutions
            level = _level(w_in, w_out, num_res_blocks, attn, dropout, attn_type)
            if i != len(ch_mult) - 1:
                level.downsample = Downsample(w_out, resamp_with_conv)
            self.down.append(level)
        self.mid = _middle(widths[-1], dropout, attn_type)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (B, in_channels, H, W), H and W divisible by f; returns (B, z or 2z, H/f, W/f)."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or any(n % self.factor for n in x.shape[2:]):
            raise ValueError(
                f"the encoder takes pictures of shape (B, {self.in_channels}, H, W) with H and W divisible by"
                f" {self.factor}, got {tuple(x.shape)}; resize or crop them first"
            )
        h = self.conv_in(x)
        for level in self.down:
            h = _run_level(level, h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Features of the latent → pictures; the mirror of `Encoder`, with one more residual block per resolution.

    `give_pre_end` returns the features before the last norm; `tanh_out` bounds the picture to (−1, 1).
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int | None = None,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        self.z_channels = z_channels
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], dropout, attn_type)
        levels = []
        width = widths[-1]
        for i in reversed(range(len(ch_mult))):
            attn = resolution // 2**i in attn_resolutions
            level = _level(width, widths[i], num_res_blocks + 1, attn, dropout, attn_type)
            width = widths[i]
            if i != 0:
                level.upsample = Upsample(width, resamp_with_conv)
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))  # up[0] is the full resolution, as in the checkpoints
        self.norm_out = Normalize(width)
        self.conv_out = nn.Conv2d(width, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """`z`: (B, z_channels, h, w); returns (B, out_ch, f·h, f·w)."""
        h = self.conv_in(z)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for level in reversed(self.up):
            h = _run_level(level, h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        if self.give_pre_end:
            return h
        h = self.conv_out(F.silu(self.norm_out(h)))
        return torch.tanh(h) if self.tanh_out else h
