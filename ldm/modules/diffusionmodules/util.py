"""Layers and helpers that the networks share, under CompVis' names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as _torch_checkpoint

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class GroupNorm32(nn.GroupNorm):
    """Group normalisation whose statistics are float32 and whose output keeps the input's dtype.

    torch's kernels already accumulate float16 and bfloat16 in float32, so the input is not widened here: that
    would double the memory traffic of every block. The cast back undoes CUDA autocast, which returns float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


def normalization(channels: int) -> nn.GroupNorm:
    """The U-Net's norm: 32 groups, eps 1e-5."""
    return GroupNorm32(32, channels)


def Normalize(in_channels: int, num_groups: int = 32) -> nn.GroupNorm:
    """The norm of `SpatialTransformer` and of the autoencoder: 32 groups, eps 1e-6."""
    return nn.GroupNorm(num_groups, in_channels, eps=1e-6)


def conv_nd(dims: int, *args, **kwargs) -> nn.Module:
    """A 1-, 2- or 3-D convolution."""
    return _by_dims(_CONV, dims)(*args, **kwargs)


def avg_pool_nd(dims: int, *args, **kwargs) -> nn.Module:
    """A 1-, 2- or 3-D average pooling."""
    return _by_dims(_AVG_POOL, dims)(*args, **kwargs)


def _by_dims(table: dict[int, type[nn.Module]], dims: int) -> type[nn.Module]:
    if dims not in table:
        raise ValueError(f"dims={dims!r}: a network has 1, 2 or 3 spatial dimensions; pass dims=1, 2 or 3")
    return table[dims]


def linear(*args, **kwargs) -> nn.Linear:
    return nn.Linear(*args, **kwargs)


def zero_module(module: nn.Module) -> nn.Module:
    """Zero every parameter of `module`, so that a residual branch starts as the identity; returns it."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000, repeat_only: bool = False) -> Tensor:
    """Sinusoidal embedding of the timestep (Vaswani et al. 2017, section 3.5; cosines before sines).

    `timesteps`: (B,), fractions allowed. Returns (B, dim) in float32, frequencies from 1 to 1/max_period; an odd
    `dim` ends with a zero column. `repeat_only` copies the timestep into every column instead.
    """
    t = timesteps.float()[:, None]
    if repeat_only:
        return t.repeat(1, dim)
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angle = t * torch.exp(-math.log(max_period) * exponent)
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, dim % 2))


def checkpoint(func: Callable, inputs: Sequence, params: object = None, flag: bool = True):
    """`func(*inputs)`; with `flag`, activations are recomputed in the backward pass instead of kept.

    `params` is CompVis' and not needed: torch's non-reentrant checkpoint finds the parameters by itself.
    """
    if flag and torch.is_grad_enabled():
        return _torch_checkpoint(func, *inputs, use_reentrant=False)
    return func(*inputs)
