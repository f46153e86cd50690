"""A run, checked before its first step: an error names the value and the remedy, a warning the idle argument."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from .arguments import SCHEDULE, Options, Request, warn, without_none
from .guidance import Conditioning, check_batch, check_forms
from .mask import broadcasts, check_mask
from .model import parameterization_of
from .schedule import Levels
from .transition import eps_weight
from .values import check_numbers, to_host


def latent_shape(batch_size: int, shape: Sequence[int]) -> tuple[int, ...]:
    """(batch_size, *shape). ValueError unless all are whole and positive."""
    try:
        size = (operator.index(batch_size), *(operator.index(n) for n in shape))
    except TypeError:
        size = ()
    if len(size) < 2 or min(size) < 1:
        raise ValueError(
            f"batch_size = {batch_size} and shape = {shape}: give a positive int, and the shape of one latent as a "
            "sequence of them, such as (4, 64, 64)"
        )
    return size


def check_request(
    cond: Conditioning, shape: tuple[int, ...], request: Request, options: Options, levels: Levels
) -> None:
    """ValueError, or TypeError, for what cannot be run on latents of `shape`, (B, …)."""
    starts = {"x_T": request.x_T, "init": options.init}
    check_tensors(**starts, mask=request.mask, x0=request.x0)
    others = {
        "unconditional_conditioning": request.unconditional_conditioning,
        "image_conditioning": options.image_conditioning,
    }
    for name, value in {"conditioning": cond, **others}.items():
        check_batch(value, shape[0], name)
    for name, x in without_none(**starts).items():
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, but (batch_size, *shape) is {shape}: make them agree")
    if None not in starts.values():
        raise ValueError("x_T and init both say where the run starts: give one of them")
    for name, value in others.items():
        check_forms(value, cond, name)
    if request.mask is not None:
        check_mask(request.mask, request.x0, shape)
    if request.normals_sequence is not None:
        check_normals(request.normals_sequence, len(levels), shape)
    check_numbers(temperature=request.temperature, noise_dropout=request.noise_dropout)
    p = request.dynamic_threshold
    if p is not None:
        check_numbers(dynamic_threshold=p)
        if options.clip_x0:
            raise ValueError(f"dynamic_threshold = {p} and clip_x0 = {options.clip_x0} both limit x0: give one of them")
    for alpha_bar_prev, sigma in zip(levels.alpha_bar_prev, levels.sigma, strict=True):
        try:
            eps_weight(alpha_bar_prev, sigma)
        except ValueError as error:  # said now, not at the step where it fails
            raise ValueError(f"eta = {levels.eta:g} is too large: {error}") from None


def check_predictions(model: object, levels: Levels, quantize: bool) -> None:
    """ValueError if the prediction says nothing about x0, or if x0 is to be quantised and cannot be."""
    if parameterization_of(model) == "eps" and levels.alpha_bar[-1] == 0:
        raise ValueError(
            f"ᾱ is 0 at timestep {levels.timesteps[-1]} (zero terminal SNR), where the eps that this model predicts "
            "says nothing about x0: use a model that predicts v or x0, or timesteps that leave this one out "
            '(fewer steps, with ddim_discretize="leading")'
        )
    if quantize and not hasattr(getattr(model, "first_stage_model", None), "quantize"):
        raise ValueError(
            f"quantize_x0 needs {type(model).__name__}.first_stage_model.quantize, which only an autoencoder with a "
            "codebook (VQ) has: leave quantize_x0 out"
        )


def check_tensors(**arguments: Any) -> None:
    """TypeError unless each argument is a tensor or None."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor | None):
            raise TypeError(f"{name} is a {type(value).__name__}: give a tensor (torch.from_numpy for a NumPy array)")


def check_noising(x0: Tensor, t: Tensor, noise: Tensor | None, count: int) -> None:
    """ValueError unless `t`, one or one for each sample of `x0`, counts `count` levels, and `noise` fits x0."""
    if t.ndim > 1 or t.numel() not in (1, len(x0)):
        raise ValueError(f"t has shape {tuple(t.shape)}, but x0 has {len(x0)} samples: give one t, or one for each")
    values = to_host(t).tolist()
    if t.is_floating_point() or not all(0 <= n < count for n in ([values] if t.ndim == 0 else values)):
        raise ValueError(f"t = {values}: there are {count} levels; choose from 0 to {count - 1}, whole numbers")
    if noise is not None and not broadcasts(noise.shape, x0.shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}, but x0 has {tuple(x0.shape)}: make them agree")


def check_normals(normals: Sequence[Tensor], steps: int, shape: tuple[int, ...]) -> None:
    """ValueError unless there is one tensor of `shape` for each step."""
    if len(normals) != steps:
        raise ValueError(f"normals_sequence holds {len(normals)} tensors for {steps} steps: give one for each step")
    for i, noise in enumerate(normals):
        check_tensors(**{f"normals_sequence[{i}]": noise})
        if tuple(noise.shape) != shape:
            raise ValueError(f"normals_sequence[{i}] has shape {tuple(noise.shape)}, but the latents are {shape}")


def warn_idle(
    request: Request,
    given: Mapping[str, Any],
    options: Options,
    scales: Sequence[float],
    image_scales: Sequence[float],
    levels: Levels,
) -> None:
    """Warn, by name, of arguments without effect. `given`: of the options, those of this call, not of the sampler."""
    quiet, imageless = not any(levels.sigma), options.image_conditioning is None
    unguided = request.unconditional_conditioning is None
    ones = all(s == 1 for s in [*scales, *([] if imageless else image_scales)])
    speechless = unguided and imageless  # `image_conditioning` alone is something to lead away from
    why_quiet, why_unguided = "no noise is added at eta = 0", "there is no unconditional_conditioning"
    why_imageless = "there is no image_conditioning"
    thresholded = request.dynamic_threshold is not None
    limited, top = thresholded or options.clip_x0 or request.quantize_x0, given.get("dynamic_threshold_max", inf)
    for name, idle, why in (
        ("temperature", request.temperature != 1 and quiet, why_quiet),
        ("noise_dropout", request.noise_dropout > 0 and quiet, why_quiet),
        ("normals_sequence", request.normals_sequence is not None and quiet, why_quiet),
        ("x0", request.x0 is not None and request.mask is None, "there is no mask"),
        ("gradual_mask", given.get("gradual_mask") and request.mask is None, "there is no mask"),
        ("blend_final", given.get("blend_final") and request.mask is None, "there is no mask"),
        ("corrector_kwargs", request.corrector_kwargs and request.score_corrector is None, "there is no corrector"),
        ("unconditional_guidance_scale", request.unconditional_guidance_scale != 1 and speechless, why_unguided),
        ("ucg_schedule", request.ucg_schedule is not None and speechless, why_unguided),
        ("image_guidance_scale", given.get("image_guidance_scale", 1) != 1 and imageless, why_imageless),
        ("image_guidance_scale", options.image_guidance_scale != 1 and unguided and not imageless, why_unguided),
        ("strength", "strength" in given and options.init is None, "there is no init"),
        ("dynamic_threshold_max", top < inf and not thresholded, "there is no dynamic_threshold"),
        ("rederive_eps", given.get("rederive_eps") and not limited, "nothing limits x0"),
        ("guidance_rescale", given.get("guidance_rescale") and speechless, why_unguided),
        ("guidance_interval", "guidance_interval" in given and speechless, why_unguided),
        ("unconditional_conditioning", not unguided and ones, "the scale is 1 at every step"),
        ("noise_device", "noise_device" in given and "generator" in given, "a generator has its own"),
        *((name, name in given, "it is an argument of make_schedule") for name in SCHEDULE),
    ):
        if idle:
            warn(f"{name} has no effect: {why}")


def check_finite(sums: Sequence[Tensor], timesteps: Sequence[int]) -> None:
    """FloatingPointError if a sum over the latents after a step is NaN or infinite. Waits for the device, once."""
    finite = to_host(torch.stack(list(sums)).isfinite()).tolist()
    if not all(finite):
        step = finite.index(False)
        raise FloatingPointError(
            f"the latents are not finite (NaN or Inf) after step {step + 1} of {len(finite)}, at timestep "
            f"{timesteps[step]}, because the model's output is not: run the network in float32 or bfloat16 instead of "
            "float16, and check its weights and its conditioning"
        )
