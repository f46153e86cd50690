"""Learning-rate factors over the steps of a training, as CompVis' configs name them under `scheduler_config`.

An object of these, called with the step n, gives what `torch.optim.lr_scheduler.LambdaLR` multiplies the rate with.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

_logger = logging.getLogger(__name__)


class LambdaWarmUpCosineScheduler:
    """From `lr_start` up to `lr_max` in `warm_up_steps`, a straight line; then half a cosine down to `lr_min` at step
    `max_decay_steps`, where it stays. Every `verbosity_interval` steps, if not 0, the last factor is logged."""

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
        self.last_lr = 0.0
        self.verbosity_interval = verbosity_interval

    def schedule(self, n: int, **kwargs: Any) -> float:
        """The factor at step `n`, from 0. LambdaLR's callers may pass keywords; they have no effect."""
        _log(n, self.last_lr, self.verbosity_interval)
        if n < self.lr_warm_up_steps:
            self.last_lr = _line(n / self.lr_warm_up_steps, self.lr_start, self.lr_max)
        else:
            t = (n - self.lr_warm_up_steps) / max(self.lr_max_decay_steps - self.lr_warm_up_steps, 1)
            self.last_lr = _half_cosine(t, self.lr_max, self.lr_min)
        return self.last_lr

    def __call__(self, n: int, **kwargs: Any) -> float:
        return self.schedule(n, **kwargs)


class LambdaWarmUpCosineScheduler2:
    """Cycles of such a warm-up and half cosine, each with its own entry in the lists; for a base rate of 1.

    A cycle counts its steps from 0 and ends with step `cycle_lengths[i]`. After the last one, where the original
    crashed, the factor stays at its end.
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
        lists = {
            "warm_up_steps": warm_up_steps,
            "f_min": f_min,
            "f_max": f_max,
            "f_start": f_start,
            "cycle_lengths": cycle_lengths,
        }
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) != 1 or not cycle_lengths:
            raise ValueError(f"the lists have {lengths} entries; give each as many as there are cycles, 1 or more")
        self.lr_warm_up_steps, self.cycle_lengths = list(warm_up_steps), list(cycle_lengths)
        self.f_min, self.f_max, self.f_start = list(f_min), list(f_max), list(f_start)
        self.cum_cycles = list(accumulate(self.cycle_lengths, initial=0))
        self.last_f = 0.0
        self.verbosity_interval = verbosity_interval

    def find_in_interval(self, n: int) -> int:
        """The number of the cycle that step `n` is in, from 0."""
        return min(bisect_left(self.cum_cycles[1:], n), len(self.cycle_lengths) - 1)

    def schedule(self, n: int, **kwargs: Any) -> float:
        """The factor at step `n`, from 0. LambdaLR's callers may pass keywords; they have no effect."""
        cycle = self.find_in_interval(n)
        n = min(n - self.cum_cycles[cycle], self.cycle_lengths[cycle])
        _log(n, self.last_f, self.verbosity_interval)
        if n < self.lr_warm_up_steps[cycle]:
            self.last_f = _line(n / self.lr_warm_up_steps[cycle], self.f_start[cycle], self.f_max[cycle])
        else:
            self.last_f = self._decay(n, cycle)
        return self.last_f

    def _decay(self, n: int, cycle: int) -> float:
        warm_up = self.lr_warm_up_steps[cycle]
        t = (n - warm_up) / max(self.cycle_lengths[cycle] - warm_up, 1)
        return _half_cosine(t, self.f_max[cycle], self.f_min[cycle])

    def __call__(self, n: int, **kwargs: Any) -> float:
        return self.schedule(n, **kwargs)


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """The same with a straight line down, which is that from `f_max` at the cycle's step 0: after the warm-up it goes
    on from where the line is by then."""

    def _decay(self, n: int, cycle: int) -> float:
        return _line(n / self.cycle_lengths[cycle], self.f_max[cycle], self.f_min[cycle])


def _line(t: float, start: float, end: float) -> float:
    return start + (end - start) * t


def _half_cosine(t: float, start: float, end: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(t, 1.0)))


def _log(n: int, last: float, interval: int) -> None:
    if interval > 0 and n % interval == 0:
        _logger.info("step %d: the last learning-rate factor was %g", n, last)
