"""Layers and helpers that the networks share, under CompVis' names."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as _torch_checkpoint

from ldm.sampling.noise import global_noise
from ldm.sampling.schedule import make_beta_schedule
from ldm.sampling.timesteps import make_timesteps
from ldm.sampling.transition import ddim_sigma
from ldm.util import instantiate_from_config, mean_flat

__all__ = [
    "GroupNorm32",
    "HybridConditioner",
    "Normalize",
    "SiLU",
    "avg_pool_nd",
    "betas_for_alpha_bar",
    "checkpoint",
    "conv_nd",
    "extract_into_tensor",
    "instantiate_from_config",
    "linear",
    "make_beta_schedule",
    "make_ddim_sampling_parameters",
    "make_ddim_timesteps",
    "mean_flat",
    "noise_like",
    "normalization",
    "repeat_to",
    "scale_module",
    "timestep_embedding",
    "zero_module",
]

_logger = logging.getLogger(__name__)

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
SiLU = nn.SiLU


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


@torch.no_grad()
def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """Multiply every parameter of `module` by `scale`; returns it."""
    for p in module.parameters():
        p.mul_(scale)
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


def repeat_to(x: Tensor, batch: int) -> Tensor:
    """x repeated along the batch until there are `batch` of it: x0 x1 … x0 x1 …; in x's memory format."""
    return x if x.shape[0] == batch else torch.cat([x] * (batch // x.shape[0]))


def checkpoint(func: Callable, inputs: Sequence, params: object = None, flag: bool = True):
    """`func(*inputs)`; with `flag`, activations are recomputed in the backward pass instead of kept.

    `params` is CompVis' and not needed: torch's non-reentrant checkpoint finds the parameters by itself.
    """
    if flag and torch.is_grad_enabled():
        return _torch_checkpoint(func, *inputs, use_reentrant=False)
    return func(*inputs)


class HybridConditioner(nn.Module):
    """Two conditioners, one for what joins the latent's channels and one for what is attended to."""

    def __init__(self, c_concat_config: Mapping[str, Any], c_crossattn_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.concat_conditioner = instantiate_from_config(c_concat_config)
        self.crossattn_conditioner = instantiate_from_config(c_crossattn_config)

    def forward(self, c_concat: Any, c_crossattn: Any) -> dict[str, list[Tensor]]:
        """What each is given, encoded, in the form that `LatentDiffusion.apply_model` takes."""
        return {
            "c_concat": [self.concat_conditioner(c_concat)],
            "c_crossattn": [self.crossattn_conditioner(c_crossattn)],
        }


# -------------------------------------------- the sampler's arithmetic, for repositories with a sampler of their own


def make_ddim_timesteps(
    ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = True
) -> np.ndarray:
    """Which timesteps DDIM visits, ascending, (S,) int64: "uniform", "quad", or any spacing of `ldm.sampling`.

    "uniform" is CompVis' stride T // S to the letter, ⌈T / (T // S)⌉ steps and so more than S where S does not divide
    T. Where that would reach beyond the last timestep, and the original crashed once it used them (S > T/2, S = 300 of
    1000, …), it is `ldm.sampling`'s uniform, exactly S. "quad" is CompVis', but without its repetitions where squares
    are close. `verbose` logs them.
    """
    counts = (num_ddim_timesteps, num_ddpm_timesteps)
    steps = None
    if ddim_discr_method == "uniform":
        with suppress(ValueError):
            steps = make_timesteps("compvis", *counts)
    if steps is None:
        steps = make_timesteps(ddim_discr_method, *counts)
    if verbose:
        _logger.info("DDIM visits the timesteps %s", steps)
    return steps


def make_ddim_sampling_parameters(
    alphacums: Tensor | np.ndarray, ddim_timesteps: np.ndarray, eta: float, verbose: bool = True
) -> tuple[Tensor | np.ndarray, Tensor | np.ndarray, np.ndarray]:
    """(σ, ᾱ, ᾱ_prev) of each step, (S,): Song et al. 2021, eq. 16, for `alphacums` = ᾱ (T,) and the timesteps (S,).

    As CompVis', ᾱ is of the kind and dtype of `alphacums`, σ of that kind in float64, and ᾱ_prev, which begins with ᾱ
    of timestep 0, a float64 array. `verbose` logs them.
    """
    alphas = alphacums[ddim_timesteps]
    alphas_prev = np.array([float(alphacums[0]), *(float(a) for a in alphas[:-1])])
    sigmas = np.array([ddim_sigma(float(a), float(prev), eta) for a, prev in zip(alphas, alphas_prev, strict=True)])
    if verbose:
        _logger.info("ᾱ %s, ᾱ_prev %s; with eta = %s, σ %s", alphas, alphas_prev, eta, sigmas)
    return (torch.from_numpy(sigmas) if isinstance(alphacums, Tensor) else sigmas), alphas, alphas_prev


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """The betas, (T,) float64, whose ᾱ after step i is alpha_bar(i/T), i = 1 … T, each at most `max_beta`."""
    levels = np.array([alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)])
    return np.minimum(1 - levels[1:] / levels[:-1], max_beta)


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: Sequence[int]) -> Tensor:
    """`a` (T,) at timesteps `t` (B,), as (B, 1, …, 1) to multiply a tensor of `x_shape` with."""
    return a.gather(-1, t).reshape(len(t), *[1] * (len(x_shape) - 1))


def noise_like(shape: Sequence[int], device: torch.device | str, repeat: bool = False) -> Tensor:
    """Standard normal noise of `shape`, (B, …), from the global generator; `repeat`: the same for all samples."""
    return global_noise(torch.empty(tuple(shape), device=device), repeat).contiguous()
