"""From data to noise along the probability flow: DDIM inversion (Song et al. 2021, section 4.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .guidance import Conditioning, guided_output
from .model import DiffusionModel, parameterization_of
from .schedule import Levels
from .transition import ddim_inverse_step


def invert(
    model: DiffusionModel, x: Tensor, cond: Conditioning, uncond: Conditioning, scale: float, levels: Levels
) -> Iterator[Tensor]:
    """The latents after each step up `levels`; each step is the inverse of one of `sample`, guided like it.

    The model is asked at the timestep that the step of `sample` starts from, but on the latents that it ends at, so
    encode → decode returns x with an error that falls as 1/S. `x`: (B, …).
    """
    for i in range(len(levels)):
        t = torch.full((len(x),), levels.timesteps[i], device=x.device, dtype=torch.long)
        output = guided_output(model, x, t, cond, uncond, scale)
        x = ddim_inverse_step(x, output, levels.alpha_bar[i], levels.alpha_bar_prev[i], parameterization_of(model))
        yield x


def logged_steps(steps: int, count: int | None) -> list[int]:
    """Which steps `encode` keeps for `return_intermediates=count`: every (steps // count)-th, and the last two."""
    if not count:
        return []
    stride = max(steps // count, 1)
    return [i for i in range(steps) if i % stride == 0 or i >= steps - 2]
