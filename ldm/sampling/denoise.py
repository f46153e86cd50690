"""What a step is told of x0: the model asked with guidance, its answer corrected, and x0 limited."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from torch import Tensor

from .guidance import Conditioning, Guide
from .model import parameterization_of, quantize
from .prediction import eps_from_x0, limit_x0, predict, x0_from_eps

# The keyword arguments of `limit`; those of `denoise` are all others.
LIMITS = ("quantize_denoised", "dynamic_threshold", "clip_x0", "dynamic_threshold_max", "rederive_eps")


def denoise(
    model,
    x: Tensor,
    c: Conditioning,
    t: Tensor,
    alpha_bar: float,
    *,
    score_corrector: Any = None,
    corrector_kwargs: dict[str, Any] | None = None,
    unconditional_guidance_scale: float = 1.0,
    unconditional_conditioning: Conditioning = None,
    image_conditioning: Conditioning = None,
    image_guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    batch_guidance: bool = True,
    guide: Guide | None = None,
) -> tuple[Tensor, Tensor]:
    """(x0, eps) of latents `x` (B, …) at the level ᾱ = `alpha_bar`, by the model, asked at timesteps `t` (B,)."""
    if guide is None:
        guide = Guide(
            model, c, unconditional_conditioning, image=image_conditioning, rescale=guidance_rescale,
            batched=batch_guidance,
        )  # fmt: skip
    output = guide(x, t, unconditional_guidance_scale, image_guidance_scale)
    x0, eps = predict(output, x, alpha_bar, parameterization_of(model))
    if score_corrector is not None:
        eps = score_corrector.modify_score(model, eps, x, t, c, **(corrector_kwargs or {}))
        x0 = x0_from_eps(x, eps, alpha_bar) if alpha_bar > 0 else x0  # at ᾱ = 0 they are not tied
    return x0, eps


def limit(
    model,
    x: Tensor,
    x0: Tensor,
    eps: Tensor,
    alpha_bar: float,
    *,
    quantize_denoised: bool = False,
    dynamic_threshold: float | None = None,
    clip_x0: bool | float = False,
    dynamic_threshold_max: float = inf,
    rederive_eps: bool = False,
) -> tuple[Tensor, Tensor]:
    """(x0, eps) with x0 thresholded or clipped, then on the codebook; `rederive_eps`: eps as this x0 and `x` say."""
    x0 = limit_x0(x0, clip_x0, dynamic_threshold, dynamic_threshold_max)
    if quantize_denoised:
        x0 = quantize(model, x0)
    return x0, eps_from_x0(x, x0, alpha_bar) if rederive_eps else eps


def split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A step's keyword arguments → those of `denoise` and those of `limit`."""
    limits = {name: value for name, value in arguments.items() if name in LIMITS}
    return {name: value for name, value in arguments.items() if name not in LIMITS}, limits
