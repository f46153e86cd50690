"""The autoencoder in strips: its result, in a fraction of its memory, and without a seam.

    x: a layer's input, whole ── rows a − 1 … b + 1 ──► norm, SiLU, convolution ── rows a … b ──► h: its output, whole

A strip of a picture on its own would have seams for two reasons. Convolutions look a row beyond it: a strip is read
with that row. And group norms look at all of the picture: their mean and variance are gathered strip by strip, before
the first strip is normed. So nothing is approximate, and the only difference is in the order that numbers are added in.

What is saved is all that a layer makes between its input and its output. Attention, which stands where the picture is
small, runs whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.layers import Downsample, ResnetBlock, Upsample
from ldm.modules.diffusionmodules.model import Decoder, Encoder


class Rows(NamedTuple):
    """Features (B, C, height, W): `read(a, b)` gives their rows a … b − 1, and makes them, unless all are stored."""

    height: int
    read: Callable[[int, int], Tensor]
    whole: Tensor | None = None


def decode(decoder: Decoder, z: Tensor, rows: int) -> Tensor:
    """`decoder(z)`, with each layer `rows` rows at a time."""
    x = _middle(decoder.mid, _stored(_convolved(_whole(z), decoder.conv_in), rows), rows)
    for up in reversed(decoder.up):
        for i in range(len(up.block)):
            x = _block(up, i, x, rows)
        if hasattr(up, "upsample"):
            x = _upsampled(x, up.upsample)
    if decoder.give_pre_end:
        return _stored(x, rows).whole
    picture = _stored(_convolved(_normed(x, decoder.norm_out, rows), decoder.conv_out), rows).whole
    return picture.tanh_() if decoder.tanh_out else picture


def encode(encoder: Encoder, x: Tensor, rows: int) -> Tensor:
    """`encoder(x)`, with each layer `rows` rows at a time."""
    encoder.check(x)
    h = _stored(_convolved(_whole(x), encoder.conv_in), rows)
    for down in encoder.down:
        for i in range(len(down.block)):
            h = _block(down, i, h, rows)
        if hasattr(down, "downsample"):
            h = _stored(_downsampled(h, down.downsample), rows)
    h = _middle(encoder.mid, h, rows)
    return _stored(_convolved(_normed(h, encoder.norm_out, rows), encoder.conv_out), rows).whole


def _middle(mid: nn.Module, x: Rows, rows: int) -> Rows:
    x = _whole(mid.attn_1(_residual(mid.block_1, x, rows).whole))
    return _residual(mid.block_2, x, rows)


def _block(level: nn.Module, i: int, x: Rows, rows: int) -> Rows:
    """The i-th residual block of a resolution, and its attention."""
    block = level.block[i]
    if block.in_channels == block.out_channels:
        x = _stored(x, rows)  # else it is large, and made anew each of the three times that the block looks at it
    x = _residual(block, x, rows)
    return _whole(level.attn[i](x.whole)) if level.attn else x


def _residual(block: ResnetBlock, x: Rows, rows: int) -> Rows:
    """`ResnetBlock`. Its output takes the place of what is between its convolutions: of three, two are there."""
    h = _stored(_convolved(_normed(x, block.norm1, rows), block.conv1), rows)
    change = _convolved(_normed(h, block.norm2, rows), block.conv2)
    if block.in_channels == block.out_channels:
        short = x
    elif block.use_conv_shortcut:
        short = _convolved(x, block.conv_shortcut)
    else:
        short = Rows(x.height, lambda a, b: block.nin_shortcut(x.read(a, b)))
    return _stored(Rows(x.height, lambda a, b: change.read(a, b).add_(short.read(a, b))), rows, out=h.whole)


# ----------------------------------------------------------------------------------------- layers, some rows at a time


def _convolved(x: Rows, conv: nn.Module) -> Rows:
    """A convolution of 3×3, which sees one row more at either side; at the edges of the picture it pads, as always."""

    def read(a: int, b: int) -> Tensor:
        top, bottom = max(a - 1, 0), min(b + 1, x.height)
        return conv(x.read(top, bottom))[:, :, a - top : b - top]

    return Rows(x.height, read)


def _upsampled(x: Rows, upsample: Upsample) -> Rows:
    """`Upsample`: row i is row i // 2 of the input, then a convolution."""

    def twice(a: int, b: int) -> Tensor:
        source = F.interpolate(x.read(a // 2, (b + 1) // 2), scale_factor=2.0, mode="nearest")
        return source[:, :, a % 2 : a % 2 + b - a]

    return _convolved(Rows(2 * x.height, twice), upsample.conv)


def _downsampled(x: Rows, downsample: Downsample) -> Rows:
    """`Downsample`: row i is made of the input's rows 2i … 2i + 2, or of the first two of them."""
    return Rows(x.height // 2, lambda a, b: downsample(x.read(2 * a, min(2 * b + 1, x.height))))


def _normed(x: Rows, norm: nn.GroupNorm, rows: int) -> Rows:
    """SiLU of a group norm, by the mean and variance of the whole picture."""
    mean, variance = _moments(x, norm.num_groups, rows)
    scale, shift = _affine(norm, mean, variance)

    def read(a: int, b: int) -> Tensor:
        strip = x.read(a, b)
        return F.silu(torch.addcmul(shift, strip.to(scale.dtype), scale).to(strip.dtype), inplace=True)

    return Rows(x.height, read)


def _moments(x: Rows, groups: int, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group, (B, groups), of all rows: those of the strips, joined (Chan et al. 1983)."""
    mean = variance = torch.zeros(())
    for a, b in _strips(x.height, rows):
        strip = x.read(a, b)
        strip = strip.reshape(len(strip), groups, -1).to(torch.promote_types(strip.dtype, torch.float32))
        strip_variance, strip_mean = torch.var_mean(strip, dim=-1, correction=0)
        share = (b - a) / b  # of all rows so far
        apart = strip_mean - mean.to(strip_mean)
        mean = mean.to(apart) + apart * share
        variance = torch.lerp(variance.to(apart).expand_as(apart), strip_variance, share)
        variance = variance + apart.square() * (share * (1 - share))
    return mean, variance


def _affine(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift) of each channel, (B, C, 1, 1): the norm is scale · x + shift."""
    width = norm.num_channels // norm.num_groups
    scale = torch.rsqrt(variance + norm.eps).repeat_interleave(width, dim=1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(width, dim=1) * scale
    return scale[:, :, None, None], shift[:, :, None, None]


# ------------------------------------------------------------------------------------------------------ whole pictures


def _strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for a in range(0, height, rows):
        yield a, min(a + rows, height)


def _whole(x: Tensor) -> Rows:
    return Rows(x.shape[2], lambda a, b: x[:, :, a:b], x)


def _stored(x: Rows, rows: int, out: Tensor | None = None) -> Rows:
    """`x` with all of its rows made: in `out`, if given, which x may be made from. So a strip is written only when the
    next one, which looks at a row of what was there, is made."""
    if x.whole is not None:
        return x
    late = None
    for a, b in _strips(x.height, rows):
        strip = x.read(a, b)
        if out is None:
            out = strip.new_empty(*strip.shape[:2], x.height, strip.shape[3])
        if late is not None:
            out[:, :, a - rows : a] = late
        late = strip
    out[:, :, a:] = late
    return _whole(out)
