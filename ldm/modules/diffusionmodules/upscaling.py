"""How an upscaler is shown the small picture: beside the latent, with a known amount of noise (Ho et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.modules.diffusionmodules.scheduled import ScheduledModule
from ldm.sampling.schedule import make_beta_schedule


class AbstractLowScaleModel(ScheduledModule):
    """Hands the small picture on as it is; a noise schedule, if wanted, by `make_beta_schedule`'s parameters."""

    def __init__(self, noise_schedule_config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if noise_schedule_config is not None:
            self.register_schedule(**noise_schedule_config)

    def register_schedule(
        self,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        self._register_schedule(make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`x`: (B, 3, h, w) in [−1, 1]; returns what to concatenate to the latents, and its noise level."""
        return x, None

    def decode(self, x: Tensor) -> Tensor:
        return x


class SimpleImageConcat(AbstractLowScaleModel):
    """No noise: every picture is of level 0."""

    max_noise_level = 0

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros(len(x), dtype=torch.long, device=x.device)


class ImageConcatWithNoiseAugmentation(AbstractLowScaleModel):
    """Noise of a level that the network is told, so that it repairs what the level drowns and keeps the rest.

    Levels are timesteps of `noise_schedule_config`; training drew them below `max_noise_level`. `to_cuda` is
    accepted: the module goes where its model goes.
    """

    def __init__(
        self, noise_schedule_config: Mapping[str, Any], max_noise_level: int = 1000, to_cuda: bool = False
    ) -> None:
        super().__init__(noise_schedule_config)
        self.max_noise_level = max_noise_level

    def forward(
        self, x: Tensor, noise_level: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`x`: (B, 3, h, w) in [−1, 1]; `noise_level`: (B,), from 0 to `max_noise_level`, by default drawn for each
        picture; `noise`: of x's shape, instead of drawn noise. Returns the noisy pictures and their levels. ValueError
        for a level that the network does not know."""
        if noise_level is None:
            noise_level = torch.randint(0, self.max_noise_level, (len(x),), device=x.device)
        most = min(self.max_noise_level, self.num_timesteps - 1)
        if noise_level.shape != (len(x),) or noise_level.is_floating_point() or not _within(noise_level, most):
            raise ValueError(
                f"noise_level is {noise_level}: give a whole number from 0 to {most} for each of the {len(x)} pictures"
            )
        return self.q_sample(x, noise_level, noise), noise_level


def _within(values: Tensor, most: int) -> bool:
    return bool(((values >= 0) & (values <= most)).all())
