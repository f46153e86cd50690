"""Encoder and decoder of the first-stage autoencoders (Esser et al. 2021; Rombach et al. 2022, appendix G).

Attribute names are frozen by the released checkpoints' keys. CompVis' file of this name also holds the DDPM network
and the layers of all three, so they are found here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.ddpm_unet import Model, get_timestep_embedding
from ldm.modules.diffusionmodules.layers import (
    AttnBlock,
    Downsample,
    LinAttnBlock,
    MemoryEfficientAttnBlock,
    ResnetBlock,
    Upsample,
    level,
    make_attn,
    middle,
    nonlinearity,
    run_block,
    run_middle,
)
from ldm.modules.diffusionmodules.util import Normalize

__all__ = [
    "AttnBlock",
    "Decoder",
    "Downsample",
    "Encoder",
    "LinAttnBlock",
    "MemoryEfficientAttnBlock",
    "Model",
    "Normalize",
    "ResnetBlock",
    "Upsample",
    "get_timestep_embedding",
    "make_attn",
    "nonlinearity",
]


class Encoder(nn.Module):
    """Pictures → features of the latent.

    `ch_mult` has one entry per resolution, so the size falls by f = 2**(len(ch_mult) − 1); attention stands where the
    resolution, counted down from `resolution`, is in `attn_resolutions`. `double_z` doubles the output for a mean and
    a log-variance. `use_linear_attn` is another way to say attn_type="linear". `out_ch` is the decoder's: the original
    passes one set of options to both.
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
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        self.factor = 2 ** (len(ch_mult) - 1)
        self.ch, self.in_channels, self.resolution = ch, in_channels, resolution
        self.num_resolutions, self.num_res_blocks, self.temb_ch = len(ch_mult), num_res_blocks, 0
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        widths = [ch] + [ch * m for m in ch_mult]
        for i, (w_in, w_out) in enumerate(pairwise(widths)):
            attn = resolution // 2**i in attn_resolutions
            down = level([w_in] + [w_out] * (num_res_blocks - 1), w_out, attn, dropout, attn_type)
            if i != len(ch_mult) - 1:
                down.downsample = Downsample(w_out, resamp_with_conv)
            self.down.append(down)
        self.mid = middle(widths[-1], dropout, attn_type)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (B, in_channels, H, W), H and W divisible by f; returns (B, z or 2z, H/f, W/f)."""
        self.check(x)
        h = self.conv_in(x)
        for down in self.down:
            for i in range(len(down.block)):
                h = run_block(down, i, h)
            if hasattr(down, "downsample"):
                h = down.downsample(h)
        h = run_middle(self.mid, h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def check(self, x: Tensor) -> None:
        """ValueError for pictures that the encoder does not take."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or any(n % self.factor for n in x.shape[2:]):
            raise ValueError(
                f"the encoder takes pictures of shape (B, {self.in_channels}, H, W) with H and W divisible by"
                f" {self.factor}, got {tuple(x.shape)}; resize or crop them first"
            )


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
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        attn_type = "linear" if use_linear_attn else attn_type
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        self.ch, self.z_channels, self.in_channels, self.resolution = ch, z_channels, in_channels, resolution
        self.num_resolutions, self.num_res_blocks, self.temb_ch = len(ch_mult), num_res_blocks, 0
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], dropout, attn_type)
        levels = []
        width = widths[-1]
        for i in reversed(range(len(ch_mult))):
            attn = resolution // 2**i in attn_resolutions
            up = level([width] + [widths[i]] * num_res_blocks, widths[i], attn, dropout, attn_type)
            width = widths[i]
            if i != 0:
                up.upsample = Upsample(width, resamp_with_conv)
            levels.append(up)
        self.up = nn.ModuleList(reversed(levels))  # up[0] is the full resolution, as in the checkpoints
        self.norm_out = Normalize(width)
        self.conv_out = nn.Conv2d(width, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """`z`: (B, z_channels, h, w); returns (B, out_ch, f·h, f·w)."""
        h = self.conv_in(z)
        h = run_middle(self.mid, h)
        for up in reversed(self.up):
            for i in range(len(up.block)):
                h = run_block(up, i, h)
            if hasattr(up, "upsample"):
                h = up.upsample(h)
        if self.give_pre_end:
            return h
        h = self.conv_out(F.silu(self.norm_out(h)))
        return torch.tanh(h) if self.tanh_out else h
