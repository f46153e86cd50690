"""Clocks that wait for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

WARM = 5  # steps


def now(device: str = "cpu") -> float:
    """Seconds, once the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def timed(function: Callable[[], object], device: str = "cpu") -> tuple[float, object]:
    """(seconds, what the function returned). A GPU that had to wait for its turn is slow at first: two calls more."""
    for _ in range(2 if device.startswith("cuda") else 0):
        function()
    return timed_once(function, device)


def walked(steps: Iterable, count: int, device: str = "cpu") -> tuple[dict[str, object], object]:
    """({"times", "first"}, what the first step gave): seconds of `count` steps after the first, which stands apart.

    It also makes what lasts for the run, and is 1 of 50. On a CPU each step is a time. A GPU runs ahead of its host,
    and is slow when it had to wait for its turn: there `WARM` further ones are not timed, and the rest is one stretch.
    """
    steps, gpu = iter(steps), device.startswith("cuda")
    first, taken = timed_once(lambda: next(steps), device)
    if not gpu:
        times = [timed_once(lambda: next(steps), device)[0] for _ in range(count)]
    elif count:
        _go_on(steps, WARM)
        times = [timed_once(lambda: _go_on(steps, count), device)[0] / count]
    else:
        times = []
    return {"times": times or [first], "first": first}, taken


def timed_once(function: Callable[[], object], device: str) -> tuple[float, object]:
    """(seconds, what the function returned)."""
    began = now(device)
    result = function()
    return now(device) - began, result


def _go_on(steps: Iterator, count: int) -> None:
    for _ in range(count):
        next(steps)
