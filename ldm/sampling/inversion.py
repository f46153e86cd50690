"""From data to noise along the probability flow: DDIM inversion (Song et al. 2021, section 4.3), and its refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .arguments import warn
from .checks import check_finite
from .loop import Run
from .model import parameterization_of
from .prediction import predict
from .schedule import q_sample
from .transition import ddim_inverse_step
from .values import to_host


def invert(run: Run, refine: int = 0) -> Iterator[Tensor]:
    """The latents after each step up the run's levels; each step is the inverse of one of `sample`, guided like it.

    Step x_prev = A x_t + B f(x_t) is undone by an x_t = (x_prev − B f(x_t))/A, which f, the model, makes implicit. f is
    asked at x_prev first (DDIM inversion: encode → decode has an error that falls as 1/S), and then `refine` times at
    the x_t found so far, as in AIDI (Pan et al. 2023) and ReNoise (Garibi et al. 2024), with nothing averaged. Each
    time the error falls by |B/A| times the Lipschitz constant of f, guidance included, which must be below 1. |B/A| is
    √ᾱ times the step in √(1/ᾱ − 1) for eps, and tan of the step in arccos √ᾱ for v: small where S is large. For x0 it
    grows without bound as the noise ends, so that what an x0 network says is refined as the v that it means.

    FloatingPointError if the latents end up not finite; a warning where the refinement went away from a solution.
    """
    levels, x, sums, away = run.levels, run.x, [], []
    kind = parameterization_of(run.sampler.model)
    for i in run.bar(range(len(levels))):
        alpha_bar, guesses = levels.alpha_bar[i], [x]
        for k in range(1 + refine):
            output, means = run.guide(guesses[-1], i, run.scales[-1 - i], run.image_scales[-1 - i]), kind
            if k and kind == "x0":
                x0, eps = predict(output, guesses[-1], alpha_bar, kind)
                output, means = q_sample(eps, alpha_bar, -x0), "v"  # v = √ᾱ eps − √(1 − ᾱ) x0
            guesses.append(ddim_inverse_step(x, output, alpha_bar, levels.alpha_bar_prev[i], means))
        x = guesses[-1]
        sums.append(x.sum())
        if refine:
            away.append(moved_away(*guesses[-3:]))
        yield x
    check_finite(sums, levels.timesteps)
    if refine:
        warn_diverging(to_host(torch.stack(away)).tolist(), levels.timesteps)


def moved_away(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Whether a sample went farther from the second guess to the third than from the first to the second."""
    before, after, size = ((u - v).flatten(1).norm(dim=1) for u, v in ((second, first), (third, second), (third, 0)))
    return ((after > before) & (after > 1e-3 * size)).any()  # beyond rounding


def warn_diverging(away: list[bool], timesteps: tuple[int, ...]) -> None:
    bad = [t for t, diverged in zip(timesteps, away, strict=True) if diverged]
    if bad:
        warn(
            f"refine went away from a solution at {len(bad)} of {len(timesteps)} steps, first at timestep {bad[0]}: "
            "the network bends too much for steps this long; take more steps S, less guidance, or refine=0"
        )


def logged(
    steps: Iterator[Tensor], total: int, count: int | None, callback: Callable[[int], Any] | None
) -> tuple[Tensor, dict[str, Any]]:
    """What `encode` returns: the last latents, and a dict of them and of about `count` on the way."""
    keep, shown = logged_steps(total, count), []
    for i, x in enumerate(steps):
        if i in keep:
            shown.append(x)
        if callback:
            callback(i)
    out = {"x_encoded": x, "intermediate_steps": keep}
    return x, out | ({"intermediates": shown} if count else {})


def logged_steps(steps: int, count: int | None) -> list[int]:
    """Which steps `encode` keeps for `return_intermediates=count`: every (steps // count)-th, and the last two."""
    if not count:
        return []
    stride = max(steps // count, 1)
    return [i for i in range(steps) if i % stride == 0 or i >= steps - 2]
