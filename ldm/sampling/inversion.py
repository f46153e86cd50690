"""From data to noise along the probability flow: DDIM inversion (Song et al. 2021, section 4.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .checks import check_finite
from .guidance import guided_output
from .loop import Run
from .model import parameterization_of
from .transition import ddim_inverse_step


def invert(run: Run) -> Iterator[Tensor]:
    """The latents after each step up the run's levels; each step is the inverse of one of `sample`, guided like it.

    The model is asked at the timestep that the step of `sample` starts from, but on the latents that it ends at, so
    encode → decode returns x with an error that falls as 1/S. FloatingPointError if the latents end up not finite.
    """
    model, levels, o, x, sums = run.sampler.model, run.levels, run.options, run.x, []
    uncond, kind = run.request.unconditional_conditioning, parameterization_of(model)
    for i in run.bar(range(len(levels))):
        t = torch.full((len(x),), levels.timesteps[i], device=x.device, dtype=torch.long)
        output = guided_output(
            model, x, t, run.cond, uncond, run.scales[-1 - i], rescale=o.guidance_rescale, batched=o.batch_guidance
        )
        x = ddim_inverse_step(x, output, levels.alpha_bar[i], levels.alpha_bar_prev[i], kind)
        sums.append(x.sum())
        yield x
    check_finite(sums, levels.timesteps)


def logged_steps(steps: int, count: int | None) -> list[int]:
    """Which steps `encode` keeps for `return_intermediates=count`: every (steps // count)-th, and the last two."""
    if not count:
        return []
    stride = max(steps // count, 1)
    return [i for i in range(steps) if i % stride == 0 or i >= steps - 2]
