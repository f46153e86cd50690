"""One DDIM step (Song et al. 2021, "Denoising Diffusion Implicit Models") between two noise levels, both given.

ᾱ here is the paper's α. The levels are Python floats; latents are tensors of any shape, in any precision.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor

from .prediction import plus, predict


def ddim_sigma(alpha_bar: float, alpha_bar_prev: float, eta: float) -> float:
    """Eq. 16: σ = η √((1 − ᾱ_prev)/(1 − ᾱ)) √(1 − ᾱ/ᾱ_prev). η = 0 is DDIM, η = 1 is DDPM."""
    if alpha_bar == alpha_bar_prev:  # no step, no noise; also where both are 1 and the formula is 0/0
        return 0.0
    return eta * sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * sqrt(1 - alpha_bar / alpha_bar_prev)


def ddpm_sigma(alpha_bar: float, alpha_bar_prev: float) -> float:
    """σ̂ = √(1 − ᾱ/ᾱ_prev), the larger of DDPM's two (Song et al. 2021, section 5; √β of Ho et al. 2020)."""
    return sqrt(1 - alpha_bar / alpha_bar_prev) if alpha_bar != alpha_bar_prev else 0.0


def eps_weight(alpha_bar_prev: float, sigma: float) -> float:
    """√(1 − ᾱ_prev − σ²): what is left of the predicted noise beside the fresh. ValueError if σ alone is too much."""
    left = 1 - alpha_bar_prev - sigma**2
    if left < -1e-9:
        raise ValueError(
            f"σ = {sigma:.4g} is more noise than the next level holds, √(1 − ᾱ) = {sqrt(1 - alpha_bar_prev):.4g}: "
            "choose a smaller eta (at most 1 always fits)"
        )
    return sqrt(max(left, 0.0))


def ddim_step(
    x0: Tensor, eps: Tensor, alpha_bar_prev: float, sigma: float = 0.0, noise: Tensor | float = 0.0
) -> Tensor:
    """Eq. 12: x_prev = √ᾱ_prev x0 + √(1 − ᾱ_prev − σ²) eps + σ noise.

    `x0`, `eps`: what the model predicts at x_t, each of x_t's shape; `noise`: standard normal, of that shape.
    """
    mean = plus(sqrt(alpha_bar_prev) * x0, eps_weight(alpha_bar_prev, sigma), eps)
    return plus(mean, sigma, noise) if sigma else mean


def ddim_inverse_step(
    x_prev: Tensor, output: Tensor, alpha_bar: float, alpha_bar_prev: float, parameterization: str
) -> Tensor:
    """The x_t from which the step with σ = 0 leads to `x_prev`, if the model says `output` there.

    The step is affine, x_prev = A x_t + B output, whatever the network predicts; A and B are read off by stepping from
    (1, 0) and (0, 1). For eps this is Song et al. 2021, eq. 14 taken backwards. Exact for the output given; the error
    of an inversion is that the output is taken at x_prev instead of x_t.
    """
    if alpha_bar == alpha_bar_prev:
        return x_prev  # no step; also where both are 1 and an x0 model's says nothing of x_t

    def step(x_t: float, output: float) -> float:
        return ddim_step(*predict(output, x_t, alpha_bar, parameterization), alpha_bar_prev)

    a, b = step(1.0, 0.0), step(0.0, 1.0)
    if a == 0:
        raise ValueError(
            f"the step from ᾱ = {alpha_bar:.4g} to ᾱ = {alpha_bar_prev:.4g} forgets x_t and cannot be undone: "
            'end the schedule below ᾱ = 1 (with final_alpha="first", and not the original steps)'
        )
    return (x_prev - b * output) / a
