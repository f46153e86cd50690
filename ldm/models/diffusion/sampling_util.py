"""Limits on a predicted x0, under the names of Stable Diffusion 2's file."""

from __future__ import annotations

from torch import Tensor

from ldm.sampling.prediction import dynamic_threshold


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """`x` with axes of length 1 at its end, `target_dims` in all. ValueError if it has more."""
    if x.ndim > target_dims:
        raise ValueError(f"x has {x.ndim} axes, more than target_dims={target_dims}; nothing can be appended")
    return x.reshape(*x.shape, *[1] * (target_dims - x.ndim))


def norm_thresholding(x0: Tensor, value: float) -> Tensor:
    """Each sample of x0, (B, …), scaled down so that its root mean square is at most `value`."""
    rms = x0.flatten(1).square().mean(1).sqrt()
    return x0 * (value / append_dims(rms.clamp(min=value), x0.ndim))


def spatial_norm_thresholding(x0: Tensor, value: float) -> Tensor:
    """Each pixel of x0, (B, C, H, W), scaled down so that its root mean square over C is at most `value`."""
    return x0 * (value / x0.square().mean(1, keepdim=True).sqrt().clamp(min=value))


def renorm_thresholding(x0: Tensor, value: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3) at the quantile `value` of |x0|, for each sample.

    The original's could not run (it reads names that are not there), and its formula, which scales to ±1 first, would
    have changed nothing; this is what it was written after.
    """
    return dynamic_threshold(x0, value)
