"""Single values as a caller gives them, text from YAML among them: an error names argument, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# What a numeric argument must satisfy, and what to say if it does not. NaN satisfies none of them.
NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "clip_x0": (lambda v: 0 <= v < math.inf, "give True for ±1, or the limit as a positive number"),
    "dynamic_threshold": (lambda v: 0 < v <= 1, "give a quantile, above 0 and up to 1; 0.995 is usual"),
    "dynamic_threshold_max": (lambda v: v >= 1, "give the most that x0 is divided by, 1 or more"),
    "eta": (lambda v: 0 <= v < math.inf, "choose 0 (deterministic) to 1 (as much noise as DDPM)"),
    "guidance_rescale": (lambda v: 0 <= v <= 1, "choose a φ from 0 (off) to 1"),
    "image_guidance_scale": (math.isfinite, "give a finite number; 1 is no guidance, 1.5 is usual"),
    "log_every_t": (lambda v: v >= 1, "give 1 to keep every step, or more"),
    "noise_dropout": (lambda v: 0 <= v <= 1, "give a probability, from 0 to 1"),
    "refine": (lambda v: v >= 0 and v % 1 == 0, "give a number of iterations for each step, 0 or more; 3 is usual"),
    "steps_offset": (lambda v: v >= 0 and v % 1 == 0, "give the first timestep, a whole number from 0"),
    "strength": (lambda v: 0 < v <= 1, "give the part of the steps to take, above 0 and up to 1; 0.75 is usual"),
    "temperature": (math.isfinite, "give a finite number; 1 is the noise of eta"),
    "timesteps": (lambda v: v % 1 == 0, "give a whole number of timesteps"),
}


def as_number(value: Any) -> float:
    """`value` as a float; NaN for what is no number, and for text that looks like one."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of more than one element
        return math.nan


def check_numbers(**arguments: Any) -> None:
    """ValueError unless each argument, by name, is a number as NUMBERS says."""
    for name, value in arguments.items():
        fits, remedy = NUMBERS[name]
        if not fits(as_number(value)):
            raise ValueError(f"{name} = {value!r}: {remedy}")


def as_interval(interval: Iterable[float]) -> tuple[float, float]:
    """guidance_interval as two floats. ValueError unless lo ≤ hi."""
    try:
        lo, hi = map(as_number, interval)
    except (TypeError, ValueError):  # not iterable, or not two
        lo = hi = math.nan
    if not lo <= hi:
        raise ValueError(f"guidance_interval = {interval!r}: give (lo, hi) in timesteps, lo ≤ hi, such as (200, 800)")
    return lo, hi


def as_device(name: str, device: torch.device | str) -> torch.device:
    """The device that argument `name` means. ValueError for one that torch does not know, or that is not there."""
    try:
        if not isinstance(device, str | torch.device):  # an int would mean an accelerator, where there is one
            raise TypeError
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f'{name} = {device!r}: give a device of torch, such as "cpu", "cuda" or "cuda:1"') from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} = {str(device)!r} is not available here ({reason}): choose another") from error
    return device


def version(tensor: Tensor | None) -> int:
    """How often it was written into, as far as torch counts: not in inference mode."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` there. From the host to CUDA it is queued: nothing waits for what the device has still to do."""
    return tensor.to(device, dtype, non_blocking=device.type == "cuda" and tensor.device.type == "cpu")


def to_host(tensor: Tensor) -> Tensor:
    """`tensor` on the CPU. Waits for what the device has to do; the one way in which a sampler does so.

    On CUDA through an event, which `torch.cuda.set_sync_debug_mode` lets pass: any other wait is one by mistake.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu()
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))
    arrived.synchronize()
    return here
