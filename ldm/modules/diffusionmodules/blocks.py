"""The layers that the denoising U-Net is made of; `openaimodel` builds it from them.

Attribute names, and the order of layers inside each `nn.Sequential`, are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer, attend
from ldm.modules.diffusionmodules.util import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    repeat_to,
    zero_module,
)


class TimestepBlock(nn.Module):
    """A layer whose `forward` also takes the timestep's embedding."""


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """Layers in sequence; each gets the embedding or the context if its kind takes it."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a convolution; 3-D data keeps its depth."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1):
        super().__init__()
        self.factor = (1.0, 2.0, 2.0) if dims == 3 else 2.0
        self.conv = conv_nd(dims, channels, out_channels or channels, 3, padding=padding) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.factor, mode="nearest"))


class TransposedUpsample(nn.Module):
    """Twice the size, and `ks` − 2 more, by a learnt kernel without padding."""

    def __init__(self, channels: int, out_channels: int | None = None, ks: int = 5) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, out_channels or channels, kernel_size=ks, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class Downsample(nn.Module):
    """Half the size by a strided convolution or by averaging; 3-D data keeps its depth."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1):
        super().__init__()
        stride = (1, 2, 2) if dims == 3 else 2
        if use_conv:
            self.op = conv_nd(dims, channels, out_channels or channels, 3, stride=stride, padding=padding)
        else:
            self.op = avg_pool_nd(dims, kernel_size=stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(TimestepBlock):
    """Two convolutions with the timestep's embedding between them, added to the input.

    `use_scale_shift_norm` lets the embedding scale and shift the second norm's output instead of being added;
    `up` and `down` resample both branches.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        out = out_channels or channels
        self.channels, self.out_channels, self.updown = channels, out, up or down
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        conv = partial(conv_nd, dims, kernel_size=3, padding=1)
        self.in_layers = nn.Sequential(normalization(channels), nn.SiLU(), conv(channels, out))
        # One for each branch, under CompVis' names, by which repositories with a `_forward` of their own call them.
        kind = Upsample if up else Downsample if down else nn.Identity
        self.h_upd, self.x_upd = kind(channels, False, dims), kind(channels, False, dims)
        self.emb_layers = nn.Sequential(nn.SiLU(), linear(emb_channels, 2 * out if use_scale_shift_norm else out))
        self.out_layers = nn.Sequential(
            normalization(out), nn.SiLU(), nn.Dropout(p=dropout), zero_module(conv(out, out))
        )
        if out == channels:
            self.skip_connection = nn.Identity()
        else:
            self.skip_connection = conv(channels, out) if use_conv else conv_nd(dims, channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return checkpoint(self._forward, (x, emb), None, self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(self.h_upd(act(norm(x))))
        x = self.x_upd(x)
        emb = self.emb_layers(emb)
        emb = repeat_to(emb, h.shape[0])
        emb = emb.reshape(*emb.shape, *[1] * (h.ndim - 2))
        norm, *rest = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class QKVAttention(nn.Module):
    """Attention of `qkv`, (B, 3·heads·d, N), whose channels are all of q, then k, then v; returns (B, heads·d, N)."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        return self._attend(*qkv.unflatten(1, (3, self.n_heads, -1)).unbind(1))

    def _attend(self, *qkv: Tensor) -> Tensor:
        """Each (B, heads, d, N). Copied, for torch has no fast kernel where a vector is not in one piece."""
        return attend(*(x.transpose(2, 3).contiguous() for x in qkv)).transpose(2, 3).flatten(1, 2)


class QKVAttentionLegacy(QKVAttention):
    """The same of channels that are ordered head by head: q, k, v of head 0, then of head 1, …"""

    def forward(self, qkv: Tensor) -> Tensor:
        return self._attend(*qkv.unflatten(1, (self.n_heads, 3, -1)).unbind(2))


class AttentionBlock(nn.Module):
    """Self-attention over all positions of a feature map of any rank, added to the input.

    The channels of `qkv` are ordered as `QKVAttentionLegacy` takes them, or with `use_new_attention_order` as
    `QKVAttention` does.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        if channels % self.num_heads or (num_head_channels != -1 and channels % num_head_channels):
            raise ValueError(
                f"{channels} channels do not split into num_heads={num_heads}, num_head_channels={num_head_channels};"
                " choose a number that divides the channels of every level with attention"
            )
        self.channels, self.use_checkpoint = channels, use_checkpoint
        self.norm = normalization(channels)
        self.qkv = conv_nd(1, channels, channels * 3, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(self.num_heads)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._forward, (x,), None, self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        h = self.attention(self.qkv(self.norm(x).flatten(2)))
        return x + self.proj_out(h).unflatten(2, x.shape[2:])


def as_labels(y: Tensor, embedding: nn.Module) -> Tensor:
    """What `embedding` takes of `y`: classes (B,), or vectors (B, width) in its dtype; (B,) will do for a width of 1.

    ValueError where it would not fit; a class beyond the last is told only where reading it does not wait for a device.
    """
    if isinstance(embedding, nn.Embedding):
        classes = embedding.num_embeddings
        if y.ndim != 1 or y.is_floating_point():
            raise ValueError(f"y is {y.dtype} of shape {tuple(y.shape)}; give class numbers, one for each sample")
        if y.device.type == "cpu" and len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise ValueError(f"y has classes from {y.min()} to {y.max()}; this network knows 0 to {classes - 1}")
        return y.long()
    first = next(layer for layer in embedding.modules() if isinstance(layer, nn.Linear))
    y = y[:, None] if y.ndim == 1 and first.in_features == 1 else y
    if y.ndim != 2 or y.shape[1] != first.in_features:
        raise ValueError(f"y has shape {tuple(y.shape)}; this network takes (B, {first.in_features})")
    return y.to(first.weight.dtype)


def convert_module_to_f16(module: nn.Module) -> None:
    """To half precision, in place; for `nn.Module.apply`. (The original's does nothing.)"""
    module.half()


def convert_module_to_f32(module: nn.Module) -> None:
    """And back."""
    module.float()
