"""Which of the T training timesteps a sampler visits: exactly S of them, ascending, within 0 … T − 1."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import numpy as np


def _uniform(s: int, t: int, offset: int | None = None) -> np.ndarray:
    """CompVis' 1, 1 + c, 1 + 2c, … with c = T/S; where S does not divide T, each is rounded down on its own.

    The 1 added puts the last at T where S = T; there the steps are the T timesteps themselves.
    """
    return np.arange(s) * t // s + (int(s < t) if offset is None else offset)


def _compvis(s: int, t: int, offset: int = 1) -> np.ndarray:
    """CompVis' stride T // S to the letter: the count is ⌈T / (T // S)⌉, which is S where S divides T."""
    steps = np.arange(0, t, t // s) + offset
    if steps[-1] >= t and offset == 1:
        raise ValueError(
            f'ddim_discretize="compvis" with S = {s} asks for timestep {steps[-1]}, but the last of T = {t} is {t - 1} '
            '(the original ran out of its schedule here): use ddim_discretize="uniform", or an S below T that divides T'
        )
    return steps


def _quad(s: int, t: int, offset: int | None = None) -> np.ndarray:
    """Squares up to 0.8 T, dense where noise is low (Song et al. 2021, appendix D.2); 1 added, as in CompVis.

    Where the squares are closer than 1 the steps move up to stay distinct; the 1 added gives way to stay below T.
    """
    squares = (np.linspace(0, np.sqrt(t * 0.8), s) ** 2).astype(np.int64) + (1 if offset is None else offset)
    i = np.arange(s)
    distinct = np.maximum.accumulate(squares - i) + i
    return np.minimum(distinct, t - s + i) if offset is None else distinct


def _leading(s: int, t: int, offset: int = 0) -> np.ndarray:
    """0, c, 2c, … with c = T // S, as in diffusers."""
    return np.arange(s) * (t // s) + offset


def _trailing(s: int, t: int) -> np.ndarray:
    """T − 1 and back by T/S, rounded, as in diffusers: the first step is taken from the noisiest timestep."""
    return np.arange(t, 0, -t / s)[:s].round().astype(np.int64)[::-1] - 1  # [:s]: rounding can make arange one longer


def _linspace(s: int, t: int) -> np.ndarray:
    """From 0 to T − 1, both included, rounded, as in diffusers."""
    return np.linspace(0, t - 1, s).round().astype(np.int64)


def _time_uniform(s: int, t: int) -> np.ndarray:
    """The upper S of S + 1 from 0 to T − 1, evenly, as of DPM-Solver: the run begins at T − 1 and ends at 0."""
    return np.linspace(0, t - 1, s + 1).round().astype(np.int64)[1:] if s < t else np.arange(t)


def _logsnr(s: int, alpha_bar: np.ndarray) -> np.ndarray:
    """The upper S of S + 1 levels from T − 1 to 0, evenly in log(ᾱ/(1 − ᾱ)), each at the timestep that is nearest.

    DPM-Solver's "logSNR" (Lu et al. 2022). An endless level (ᾱ of 0 or 1) is passed over for its neighbour; where
    timesteps are farther apart than levels, they move up, or down at the end, to stay distinct.
    """
    with np.errstate(divide="ignore"):
        level = np.log(alpha_bar) - np.log1p(-alpha_bar)
    ends = level[np.isfinite(level)]
    if not len(ends):
        return _leading(s, len(alpha_bar))
    wanted = np.linspace(ends[0], ends[-1], s + 1)[1:]
    steps = np.abs(level - wanted[:, None]).argmin(axis=1)
    steps[-1] = len(alpha_bar) - 1
    i = np.arange(s)
    steps = np.maximum.accumulate(steps - i) + i
    return np.minimum(steps, len(alpha_bar) - s + i)


SPACINGS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": _uniform,
    "compvis": _compvis,
    "quad": _quad,
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "time_uniform": _time_uniform,
}
BY_LEVEL: dict[str, Callable[[int, np.ndarray], np.ndarray]] = {"logsnr": _logsnr}  # of S and ᾱ, (T,)
WITH_OFFSET = ("uniform", "compvis", "quad", "leading")  # the others place both ends


def make_timesteps(
    spacing: str, s: int, t: int, offset: int | None = None, alpha_bar: np.ndarray | None = None
) -> np.ndarray:
    """S of T timesteps, spaced by name: (S,) int64, strictly ascending. ValueError unless 1 ≤ S ≤ T.

    Every spacing gives exactly S for every S, but "compvis", which keeps the original's count. `offset` is the first
    timestep where that is not a spacing's own: 0 of "leading", 1 of "uniform", "compvis" and "quad" (CompVis adds it,
    ermongroup/ddim does not). ValueError where the last would pass T − 1. "logsnr" needs `alpha_bar`, (T,).
    """
    if spacing not in (*SPACINGS, *BY_LEVEL):
        choices = ", ".join([*SPACINGS, *BY_LEVEL])
        raise ValueError(f"ddim_discretize = {spacing!r} is unknown; choose one of {choices}")
    s = check_count(s, t)
    if spacing in BY_LEVEL:
        if alpha_bar is None:
            raise ValueError(f"ddim_discretize = {spacing!r} places noise levels: pass alpha_bar")
        return BY_LEVEL[spacing](s, alpha_bar)
    if offset is None or spacing not in WITH_OFFSET:
        return SPACINGS[spacing](s, t)
    steps = SPACINGS[spacing](s, t, int(offset))
    if steps[-1] >= t:
        raise ValueError(
            f"steps_offset = {offset} asks for timestep {steps[-1]} with S = {s}, but the last of T = {t} is {t - 1}: "
            "choose a smaller offset, or fewer steps"
        )
    return steps


def given_timesteps(timesteps: Sequence[int], s: int, t: int) -> np.ndarray:
    """The caller's own list, rising or falling, as (S,) int64 ascending. ValueError unless S distinct in 0 … T − 1."""
    try:
        steps = np.array([operator.index(step) for step in timesteps], dtype=np.int64)
    except TypeError:
        raise ValueError(f"timesteps = {timesteps!r}: give whole numbers from 0 to {t - 1}") from None
    if len(steps) != check_count(s, t):
        raise ValueError(f"timesteps holds {len(steps)} steps, but S = {s}: pass S={len(steps)}")
    if len(steps) > 1 and steps[0] > steps[-1]:
        steps = steps[::-1].copy()
    if np.any(np.diff(steps) <= 0):
        raise ValueError(f"timesteps must rise or fall from each to the next, without repeats: got {steps.tolist()}")
    if steps[0] < 0 or steps[-1] >= t:
        raise ValueError(f"timesteps runs from {steps[0]} to {steps[-1]}; this model's are 0 to {t - 1}")
    return steps


def check_count(s: int, t: int, name: str = "S =") -> int:
    """S as an int. TypeError unless it is whole, ValueError unless 1 ≤ S ≤ T. `name`: what the caller calls it."""
    try:
        count = operator.index(s)
    except TypeError:
        raise TypeError(f"{name} {s!r}: the number of steps must be an int from 1 to {t}") from None
    if not 1 <= count <= t:
        raise ValueError(f"{name} {s}: choose a number of steps from 1 to {t}, the timesteps that the model knows")
    return count
