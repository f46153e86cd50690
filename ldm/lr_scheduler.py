"""What CompVis' configs multiply the learning rate by, step by step (`scheduler_config`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate


class LambdaWarmUpCosineScheduler:
    """From `lr_start` in a line to `lr_max` over `warm_up_steps`, then down a cosine to `lr_min` at `max_decay_steps`.

    `verbosity_interval` is CompVis' and without effect: a logger shows the rate.
    """

    def __init__(
        self,
        warm_up_steps: int,
        lr_min: float,
        lr_max: float,
        lr_start: float,
        max_decay_steps: int,
        verbosity_interval: int = 0,
    ) -> None:
        self.lr_warm_up_steps, self.lr_max_decay_steps = warm_up_steps, max_decay_steps
        self.lr_min, self.lr_max, self.lr_start = lr_min, lr_max, lr_start

    def schedule(self, n: int) -> float:
        """The factor at step n = 0, 1, …"""
        warm = self.lr_warm_up_steps
        if n < warm:
            return _line(self.lr_start, self.lr_max, n / warm)
        return _cosine(self.lr_max, self.lr_min, (n - warm) / max(self.lr_max_decay_steps - warm, 1))

    def __call__(self, n: int) -> float:
        return self.schedule(n)


class LambdaWarmUpCosineScheduler2:
    """The same again and again: every parameter has a value for each cycle, and `cycle_lengths` counts its steps.

    Within a cycle the factor goes from `f_start` to `f_max`, then down to `f_min`. After the last it stays.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ) -> None:
        parameters = {
            "warm_up_steps": warm_up_steps, "f_min": f_min, "f_max": f_max, "f_start": f_start,
            "cycle_lengths": cycle_lengths,
        }  # fmt: skip
        counts = {name: len(values) for name, values in parameters.items()}
        if len(set(counts.values())) != 1 or not cycle_lengths:
            raise ValueError(f"give a value for each cycle, to all alike: there are {counts}")
        self.lr_warm_up_steps, self.cycle_lengths = tuple(warm_up_steps), tuple(cycle_lengths)
        self.f_min, self.f_max, self.f_start = tuple(f_min), tuple(f_max), tuple(f_start)
        self.cum_cycles = (0, *accumulate(cycle_lengths))

    def find_in_interval(self, n: int) -> int:
        """The cycle of step n; a step at which two meet is the first one's."""
        ends = self.cum_cycles[1:]
        return next((cycle for cycle, end in enumerate(ends) if n <= end), len(ends) - 1)

    def schedule(self, n: int) -> float:
        """The factor at step n = 0, 1, …"""
        cycle = self.find_in_interval(n)
        n = min(n - self.cum_cycles[cycle], self.cycle_lengths[cycle])
        if n < self.lr_warm_up_steps[cycle]:
            return _line(self.f_start[cycle], self.f_max[cycle], n / self.lr_warm_up_steps[cycle])
        return self.after_warm_up(cycle, n)

    def after_warm_up(self, cycle: int, n: int) -> float:
        warm = self.lr_warm_up_steps[cycle]
        return _cosine(self.f_max[cycle], self.f_min[cycle], (n - warm) / max(self.cycle_lengths[cycle] - warm, 1))

    def __call__(self, n: int) -> float:
        return self.schedule(n)


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """With a line in the cosine's place. It is that from `f_max` at the cycle's beginning, as CompVis has it: where
    the warm-up ends, the factor jumps down to the line."""

    def after_warm_up(self, cycle: int, n: int) -> float:
        return _line(self.f_max[cycle], self.f_min[cycle], n / self.cycle_lengths[cycle])


def _line(start: float, end: float, part: float) -> float:
    return start + (end - start) * part


def _cosine(start: float, end: float, part: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(part, 1.0)))
