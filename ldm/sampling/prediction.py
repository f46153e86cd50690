"""What the network says → (x0, eps): the two ends of the line x_t = √ᾱ x0 + √(1 − ᾱ) eps, and limits on x0."""

from __future__ import annotations

from math import inf, sqrt

import torch
from torch import Tensor


def plus(x: Tensor | float, b: float, y: Tensor | float) -> Tensor | float:
    """x + b y; of tensors in one pass."""
    return torch.add(x, y, alpha=b) if isinstance(x, Tensor) else x + b * y


def predict(output: Tensor, x_t: Tensor, alpha_bar: float, parameterization: str) -> tuple[Tensor, Tensor]:
    """(x0, eps) for a network that predicts "eps", "v" (Salimans & Ho 2022, appendix D) or "x0".

    `output`, `x_t`: of one shape (or floats); `alpha_bar`: ᾱ at x_t's noise level, 0 (pure noise) only for v and x0.
    """
    if parameterization == "v":
        signal, noise = sqrt(alpha_bar), sqrt(1 - alpha_bar)
        return plus(signal * x_t, -noise, output), plus(signal * output, noise, x_t)
    if parameterization == "x0":
        return output, eps_from_x0(x_t, output, alpha_bar)
    return x0_from_eps(x_t, output, alpha_bar), output


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """x0 = (x_t − √(1 − ᾱ) eps) / √ᾱ. ValueError at ᾱ = 0, where x_t holds no x0."""
    if alpha_bar == 0:
        raise ValueError("at ᾱ = 0 (zero terminal SNR) eps says nothing about x0: use a model that predicts v or x0")
    x0 = plus(x_t, -sqrt(1 - alpha_bar), eps)
    x0 /= sqrt(alpha_bar)  # in place: it is new
    return x0


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha_bar: float) -> Tensor:
    """eps = (x_t − √ᾱ x0) / √(1 − ᾱ); 0 at ᾱ = 1, where there is no noise."""
    return plus(x_t, -sqrt(alpha_bar), x0) / sqrt(1 - alpha_bar) if alpha_bar < 1 else 0 * x0


def limit_x0(x0: Tensor, limit: bool | float, p: float | None, highest: float = inf) -> Tensor:
    """x0 thresholded at quantile `p` (but at most `highest`), else clipped to `limit`, else as it is."""
    if p is not None:
        return dynamic_threshold(x0, p, highest)
    return clip_x0(x0, limit) if limit else x0


def clip_x0(x0: Tensor, limit: bool | float) -> Tensor:
    """Clamp to ±limit; True is ±1."""
    return x0.clamp(-float(limit), float(limit))


def dynamic_threshold(x0: Tensor, p: float, highest: float = inf) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3), per sample: clamp to ±s, divide by s.

    s is the p-quantile of |x0|, 0 < p ≤ 1, from 1 to `highest`. `x0`: (B, …).
    """
    s = torch.stack([sample.quantile(p) for sample in x0.abs().flatten(1)])  # by sample: quantile() has a size limit
    s = s.clamp(1, highest).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s
