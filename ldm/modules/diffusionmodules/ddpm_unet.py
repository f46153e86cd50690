"""CompVis' DDPM network: the U-Net of Ho et al. 2020, which ermongroup/ddim and its checkpoints have, too.

Attribute names are frozen by those checkpoints' keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.layers import Downsample, Upsample, level, middle, run_block, run_middle
from ldm.modules.diffusionmodules.util import Normalize


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """Sinusoidal embedding of the timestep as the DDPM network has it: sines before cosines, the last period 10000·2π.

    `timesteps`: (B,), fractions allowed. Returns (B, embedding_dim) in float32; an odd dimension ends with a zero
    column. `util.timestep_embedding`, of the latent models, has the cosines first and stops short of the last period.
    """
    half = embedding_dim // 2
    if timesteps.ndim != 1 or half < 2:
        raise ValueError(
            f"timesteps of shape {tuple(timesteps.shape)} in {embedding_dim} dimensions: give one of them for each"
            " sample, (B,), and at least 4 dimensions"
        )
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - 1)
    angle = timesteps.float()[:, None] * exponent.exp()
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, embedding_dim % 2))


class Model(nn.Module):
    """The DDPM U-Net: noisy pictures and their timesteps → the prediction.

    `ch_mult` has one entry per resolution, `num_res_blocks` residual blocks each on the way down and one more on the
    way up; attention stands where the resolution, counted down from `resolution`, is in `attn_resolutions`, and in the
    middle. `use_linear_attn` is another way to say attn_type="linear". With use_timestep=False it takes no timestep,
    though, as in the original, the blocks keep their (unused) weights for one.
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
        in_channels: int,
        resolution: int,
        use_timestep: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
    ) -> None:
        super().__init__()
        self.ch, self.temb_ch = ch, 4 * ch
        self.in_channels, self.resolution = in_channels, resolution
        self.num_resolutions, self.num_res_blocks = len(ch_mult), num_res_blocks
        self.use_timestep = use_timestep
        if use_timestep:
            self.temb = nn.Module()
            self.temb.dense = nn.ModuleList([nn.Linear(ch, self.temb_ch), nn.Linear(self.temb_ch, self.temb_ch)])
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        widths = [ch] + [ch * m for m in ch_mult]
        attn = [resolution // 2**i in attn_resolutions for i in range(len(ch_mult))]
        options = (dropout, "linear" if use_linear_attn else attn_type, self.temb_ch)
        self.down, skips = _way_down(widths, num_res_blocks, attn, resamp_with_conv, options)
        self.mid = middle(widths[-1], *options)
        self.up = _way_up(widths, skips, num_res_blocks, attn, resamp_with_conv, options)
        self.norm_out = Normalize(widths[1])
        self.conv_out = nn.Conv2d(widths[1], out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """`x`: (B, C, H, W), H and W divisible by 2**(resolutions − 1); `t`: (B,); returns (B, out_ch, H, W).

        `context`: (B, c, H, W), joined to x along the channels, so that C + c = in_channels.
        """
        x = x if context is None else torch.cat([x, context], dim=1)
        self._check(x, t)
        temb = self._embed(t) if self.use_timestep else None
        h = self.conv_in(x)
        skips = [h]
        for down in self.down:
            for i in range(len(down.block)):
                h = run_block(down, i, h, temb)
                skips.append(h)
            if hasattr(down, "downsample"):
                h = down.downsample(h)
                skips.append(h)
        h = run_middle(self.mid, h, temb)
        for up in reversed(self.up):
            for i in range(len(up.block)):
                h = run_block(up, i, torch.cat([h, skips.pop()], dim=1), temb)
            if hasattr(up, "upsample"):
                h = up.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _check(self, x: Tensor, t: Tensor | None) -> None:
        factor = 2 ** (self.num_resolutions - 1)
        if x.ndim != 4 or x.shape[1] != self.in_channels or any(n % factor for n in x.shape[2:]):
            raise ValueError(
                f"the network takes pictures of shape (B, {self.in_channels}, H, W) with H and W divisible by {factor},"
                f" got {tuple(x.shape)}; resize or crop them first"
            )
        if self.use_timestep and (t is None or t.shape != x.shape[:1]):
            given = "none" if t is None else f"timesteps of shape {tuple(t.shape)}"
            raise ValueError(f"the network takes one timestep for each of the {len(x)} pictures, got {given}")

    def _embed(self, t: Tensor) -> Tensor:
        first, second = self.temb.dense
        return second(F.silu(first(get_timestep_embedding(t, self.ch).to(first.weight.dtype))))


def _way_down(
    widths: Sequence[int], num_res_blocks: int, attn: Sequence[bool], with_conv: bool, options: tuple
) -> tuple[nn.ModuleList, list[int]]:
    """The resolutions from the full one on, and the channels of what each layer leaves for the way up."""
    levels, skips = nn.ModuleList(), [widths[0]]
    for i, (w_in, w_out) in enumerate(pairwise(widths)):
        down = level([w_in] + [w_out] * (num_res_blocks - 1), w_out, attn[i], *options)
        skips += [w_out] * num_res_blocks
        if i != len(attn) - 1:
            down.downsample = Downsample(w_out, with_conv)
            skips.append(w_out)
        levels.append(down)
    return levels, skips


def _way_up(
    widths: Sequence[int], skips: list[int], num_res_blocks: int, attn: Sequence[bool], with_conv: bool, options: tuple
) -> nn.ModuleList:
    """Also from the full resolution on, as in the checkpoints, though it is run from the other end."""
    skips, levels, width = list(skips), [], widths[-1]
    for i in reversed(range(len(attn))):
        w_out = widths[i + 1]
        up = level([w + skips.pop() for w in [width] + [w_out] * num_res_blocks], w_out, attn[i], *options)
        if i != 0:
            up.upsample = Upsample(w_out, with_conv)
        levels.append(up)
        width = w_out
    return nn.ModuleList(reversed(levels))
