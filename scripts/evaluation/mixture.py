"""Eight small Gaussians on a circle: the best denoiser is a formula, so that all error is the sampler's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation import NOISE, SPACINGS
from evaluation.distances import sliced_wasserstein

MODES, SPREAD = 8, 0.1
BETAS = np.linspace(0.0001, 0.02, 1000)  # DDPM's


class Circle(nn.Module):
    """The model: eps of x_t is E[eps | x_t], with x0 from the mixture (Bayes' rule for Gaussians)."""

    num_timesteps = 1000

    def __init__(self):
        super().__init__()
        bar = np.cumprod(1 - BETAS)
        for name, values in (("betas", BETAS), ("alphas_cumprod", bar), ("alphas_cumprod_prev", [1.0, *bar[:-1]])):
            self.register_buffer(name, torch.as_tensor(np.asarray(values)))
        angles = torch.arange(MODES).double() * 2 * torch.pi / MODES
        self.register_buffer("means", torch.stack([angles.cos(), angles.sin()], 1))

    def apply_model(self, x, t, c):
        """(B, 2, 1, 1) → the same."""
        points, bar = x.flatten(1).double(), self.alphas_cumprod[t][:, None]
        variance = bar * SPREAD**2 + 1 - bar  # of x_t round each mode
        apart = points[:, None] - bar.sqrt()[:, None] * self.means  # (B, MODES, 2)
        share = (-0.5 * (apart**2).sum(-1) / variance).softmax(1)
        eps = ((1 - bar).sqrt() / variance)[:, None] * apart
        return (share[..., None] * eps).sum(1).view_as(x).to(x.dtype)


def drawn(n: int, seed: int) -> np.ndarray:
    """(n, 2) of the mixture itself."""
    chance = np.random.default_rng(seed)
    angles = chance.integers(MODES, size=n) * 2 * np.pi / MODES
    return np.stack([np.cos(angles), np.sin(angles)], 1) + SPREAD * chance.normal(size=(n, 2))


def by_steps(steps: Sequence[int], n: int) -> Iterator[dict[str, Any]]:
    """A row for each S: the distance of `n` samples from the mixture, ×1000, for each noise."""
    for count in steps:
        yield {"S": count} | {name: distance(count, n, **noise) for name, noise in NOISE.items()}


def by_spacing(steps: Sequence[int], n: int) -> Iterator[dict[str, Any]]:
    """A row for each S: the same without noise, for each spacing of the timesteps."""
    for count in steps:
        yield {"S": count} | {name: distance(count, n, ddim_discretize=name) for name in SPACINGS}


def distance(count: int, n: int, **options: Any) -> float:
    """Of `n` samples of `count` steps from as many points of the mixture, ×1000."""
    from ldm.sampling import DDIMSampler

    generator = torch.Generator().manual_seed(count)
    samples, _ = DDIMSampler(Circle()).sample(
        count, n, (2, 1, 1), generator=generator, progress=False, verbose=False, **options
    )
    return 1000 * sliced_wasserstein(samples.flatten(1).double().numpy(), drawn(n, 1))


def floor(n: int) -> float:
    """The distance of fresh points from others, which no sampler can be below but by chance."""
    return 1000 * sliced_wasserstein(drawn(n, 2), drawn(n, 1))
