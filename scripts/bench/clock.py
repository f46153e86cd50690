"""Clocks that wait for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator


def now(device: str = "cpu") -> float:
    """Seconds, once the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def timed(function: Callable[[], object], device: str = "cpu") -> tuple[float, object]:
    """(seconds, what the function returned)."""
    began = now(device)
    result = function()
    return now(device) - began, result


def each(steps: Iterable, device: str = "cpu") -> Iterator[tuple[float, object]]:
    """The steps of a loop, each with the seconds it took."""
    began = now(device)
    for step in steps:
        ended = now(device)
        yield ended - began, step
        began = now(device)


def without_first(times: list[float]) -> list[float]:
    """The first step of a run also makes what lasts for all of it; 1 of 50, so the others stand for the run."""
    return times[1:] or times
