"""Classifier-free guidance (Ho & Salimans 2022): pair the conditionings, run the model, combine its two answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .values import as_interval, as_number

# A tensor, or lists and dicts of tensors, numbers and None, nested. What else the model understands passes untouched.
Conditioning = Any


def guided_output(
    model,
    x: Tensor,
    t: Tensor,
    cond: Conditioning,
    uncond: Conditioning = None,
    scale: float = 1.0,
    *,
    rescale: float = 0.0,
    batched: bool = True,
) -> Tensor:
    """uncond + scale (cond − uncond), in x's precision. At scale 1 or without uncond the model is asked for cond alone.

    One call on [uncond; cond] where the two can be concatenated, else, or with `batched=False` (half the memory), two.
    Linear in eps, v and x0 alike: at one noise level each is an affine function of the other.
    """
    if uncond is None or scale == 1:
        return run_model(model, x, t, cond)
    pair = pair_conditionings(uncond, cond) if batched else None
    if pair is None:
        without, given = run_model(model, x, t, uncond), run_model(model, x, t, cond)
    else:
        without, given = run_model(model, torch.cat([x, x]), torch.cat([t, t]), pair).chunk(2)
    guided = without + scale * (given - without)
    return rescale_guidance(guided, given, rescale) if rescale else guided


def run_model(model, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """The network's output in the latents' precision, whatever it computes in. ValueError unless of x's shape."""
    output = model.apply_model(x, t, cond)
    if not isinstance(output, Tensor) or output.shape != x.shape:
        answer = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model returned {answer} for latents of shape {tuple(x.shape)}: a tensor of that shape is due "
            "(a network that also predicts its variance must drop those channels in apply_model)"
        )
    return output.to(x.dtype)


def rescale_guidance(guided: Tensor, given: Tensor, phi: float) -> Tensor:
    """Give `guided` the standard deviation of `given`, to the part φ (Lin et al. 2023, eq. 15 and 16), per sample."""
    dims = tuple(range(1, guided.ndim))
    ratio = given.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return phi * ratio * guided + (1 - phi) * guided


def pair_conditionings(uncond: Conditioning, cond: Conditioning) -> Conditioning | None:
    """[uncond; cond] along the batch, leaf by leaf, in the form of `cond`; None where the two do not match."""
    try:
        return _pair(uncond, cond)
    except _Mismatch:
        return None


class _Mismatch(Exception):
    pass


def _pair(uncond: Conditioning, cond: Conditioning) -> Conditioning:
    if isinstance(cond, Tensor) and isinstance(uncond, Tensor) and cond.ndim > 0 and uncond.shape == cond.shape:
        return torch.cat([uncond, cond])
    if isinstance(cond, dict) and isinstance(uncond, dict) and cond.keys() == uncond.keys():
        return {key: _pair(uncond[key], cond[key]) for key in cond}
    if isinstance(cond, list | tuple) and isinstance(uncond, list | tuple) and len(uncond) == len(cond):
        pairs = [_pair(u, c) for u, c in zip(uncond, cond, strict=True)]
        return tuple(pairs) if isinstance(cond, tuple) else pairs
    if isinstance(cond, int | float | None) and cond == uncond:
        return cond  # anything else may hold one entry for each sample, which only the model could double
    raise _Mismatch


def check_forms(uncond: Conditioning, cond: Conditioning, path: str = "unconditional_conditioning") -> None:
    """TypeError if one is a dict, list or tensor where the other is not, or their keys differ. None goes with all."""
    if uncond is None or cond is None:
        return
    forms = (Tensor, dict, list | tuple)
    for form in forms:
        if isinstance(uncond, form) != isinstance(cond, form):
            raise TypeError(
                f"{path} is a {type(uncond).__name__}, but the conditioning is a {type(cond).__name__}: "
                "give both in the same form"
            )
    if isinstance(cond, dict):
        if uncond.keys() != cond.keys():
            raise TypeError(f"{path} has the keys {sorted(uncond)}, but the conditioning has {sorted(cond)}")
        for key in cond:
            check_forms(uncond[key], cond[key], f"{path}[{key!r}]")


def check_batch(cond: Conditioning, batch_size: int, name: str) -> None:
    """ValueError if a tensor of the conditioning is for another batch size; the message says which."""
    for path, tensor in _tensors(cond, name):
        if tensor.ndim and len(tensor) != batch_size:
            raise ValueError(
                f"{path} has shape {tuple(tensor.shape)}, so it is for {len(tensor)} samples, but batch_size is "
                f"{batch_size}: repeat or slice it to one row for each sample"
            )


def _tensors(cond: Conditioning, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(cond, Tensor):
        yield path, cond
    elif isinstance(cond, dict):
        for key, value in cond.items():
            yield from _tensors(value, f"{path}[{key!r}]")
    elif isinstance(cond, list | tuple):
        for i, value in enumerate(cond):
            yield from _tensors(value, f"{path}[{i}]")


def guidance_scales(
    scale: float,
    timesteps: Sequence[int],
    schedule: Sequence[float] | None = None,
    interval: tuple[float, float] | None = None,
) -> list[float]:
    """The scale of each step, in the order of `timesteps`.

    `schedule`: one scale for each step, in that order, instead of `scale`; negative ones push away from `cond`.
    `interval` = (lo, hi), in timesteps: guidance acts where lo ≤ t ≤ hi, elsewhere the scale is 1 (Kynkäänniemi et al.
    2024). ValueError for a schedule of another length, a scale that is not finite, or lo > hi.
    """
    given = [scale] * len(timesteps) if schedule is None else list(schedule)
    scales = [as_number(s) for s in given]
    if len(scales) != len(timesteps):
        raise ValueError(
            f"ucg_schedule holds {len(scales)} scales ({_preview(given)}), but there are {len(timesteps)} steps: "
            "give one scale for each step, the noisiest first"
        )
    if not all(map(math.isfinite, scales)):
        name = "unconditional_guidance_scale" if schedule is None else "ucg_schedule"
        raise ValueError(f"{name} = {scale if schedule is None else _preview(given)}: give finite numbers")
    if interval is None:
        return scales
    lo, hi = as_interval(interval)
    return [s if lo <= t <= hi else 1.0 for s, t in zip(scales, timesteps, strict=True)]


def _preview(values: Sequence[float]) -> str:
    return ", ".join(f"{v}" for v in values[:4]) + (", …" if len(values) > 4 else "")
