"""Noise schedules: betas → ᾱ, in float64 on the host. ᾱ_t = Π (1 − β_s), s ≤ t (Ho et al. 2020, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .arguments import warn
from .transition import ddim_sigma, ddpm_sigma
from .values import check_numbers, to_host

BETA_SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")


def make_beta_schedule(
    schedule: str, n_timestep: int, linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3
) -> np.ndarray:
    """CompVis' beta schedules by CompVis' names: (n_timestep,) in float64.

    `linear` is linear in √β (Stable Diffusion's; diffusers call it scaled_linear), `sqrt_linear` is linear in β (Ho et
    al. 2020), `sqrt` is the root of that one, `cosine` makes ᾱ a squared cosine (Nichol & Dhariwal 2021, eq. 17).
    """
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep) ** 2
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep) ** 0.5
    if schedule == "cosine":
        t = np.arange(n_timestep + 1) / n_timestep
        alpha_bar = np.cos((t + cosine_s) / (1 + cosine_s) * np.pi / 2) ** 2
        return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)
    raise ValueError(f"beta schedule {schedule!r} is unknown; choose one of {', '.join(BETA_SCHEDULES)}")


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shift and scale √ᾱ so that its last is 0 and its first stays (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, dtype=np.float64)))
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def q_sample(x0: Tensor, alpha_bar: float | Tensor, noise: Tensor) -> Tensor:
    """Forward process, Ho et al. 2020, eq. 4: √ᾱ x0 + √(1 − ᾱ) noise. A tensor `alpha_bar` must broadcast to x0."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


@dataclass(frozen=True)
class NoiseSchedule:
    """T noise levels. All arrays are (T,), float64; ᾱ falls, within [0, 1]."""

    betas: np.ndarray
    alpha_bar: np.ndarray
    alpha_bar_prev: np.ndarray  # ᾱ of the timestep before; 1 before the first

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> NoiseSchedule:
        betas = np.asarray(betas, dtype=np.float64)
        alpha_bar = np.cumprod(1 - betas)
        return cls(betas, alpha_bar, np.append(1.0, alpha_bar[:-1]))

    @classmethod
    def of(cls, model) -> NoiseSchedule:
        """A model's own schedule: the values that it stores, widened, so that they are those it was trained with."""
        names = ("betas", "alphas_cumprod", "alphas_cumprod_prev")
        stored = [to_host(torch.as_tensor(getattr(model, name)).detach()) for name in names]
        for name, values in zip(names, stored, strict=True):
            if values.shape != (model.num_timesteps,):
                raise ValueError(
                    f"model.{name} has shape {tuple(values.shape)}, but model.num_timesteps is {model.num_timesteps}: "
                    "there must be one value for each timestep"
                )
        if stored[1].dtype in (torch.float16, torch.bfloat16):
            warn(
                f"model.alphas_cumprod is {stored[1].dtype}, which holds noise levels to 2 or 3 digits: convert the "
                "network to half precision, not the schedule's buffers"
            )
        betas, alpha_bar, prev = (values.double().numpy() for values in stored)
        if not (np.all(np.diff(alpha_bar) <= 0) and alpha_bar[0] <= 1 and alpha_bar[-1] >= 0):  # also false for NaN
            raise ValueError("model.alphas_cumprod must fall with the timestep, from at most 1 to at least 0")
        return cls(betas, alpha_bar, prev)

    @classmethod
    def sampling(
        cls, model, betas: Sequence[float] | Tensor | None = None, zero_terminal_snr: bool = False
    ) -> NoiseSchedule:
        """The schedule to sample `model` with: its own, or that of given betas, (T,) in [0, 1]; rescaled or not."""
        schedule = cls.of(model)
        if betas is not None:
            betas = given_betas(betas, len(schedule))
            # Those that the model stores, which has rounded them: its own ᾱ is nearer to what it was trained with.
            rounded = torch.as_tensor(betas).to(torch.as_tensor(model.betas).dtype).double()
            same = np.array_equal(rounded.numpy(), schedule.betas)
            schedule = schedule if same else cls.from_betas(betas)
        if not zero_terminal_snr or schedule.alpha_bar[-1] == 0:
            return schedule
        if schedule.alpha_bar[0] == schedule.alpha_bar[-1]:
            raise ValueError("zero_terminal_snr has nothing to stretch: ᾱ is the same at every timestep of this model")
        return cls.from_betas(rescale_zero_terminal_snr(schedule.betas))

    def __len__(self) -> int:
        return len(self.betas)

    def buffers(self) -> dict[str, np.ndarray]:
        """What models and samplers keep of a schedule, under CompVis' names."""
        a = self.alpha_bar
        with np.errstate(divide="ignore"):  # zero terminal SNR: 1/ᾱ is infinite there, and is kept so
            return {
                "betas": self.betas,
                "alphas_cumprod": a,
                "alphas_cumprod_prev": self.alpha_bar_prev,
                "sqrt_alphas_cumprod": np.sqrt(a),
                "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - a),
                "log_one_minus_alphas_cumprod": np.log(1 - a),
                "sqrt_recip_alphas_cumprod": np.sqrt(1 / a),
                "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / a - 1),
            }


def given_betas(betas: Sequence[float] | Tensor, total: int) -> np.ndarray:
    """The caller's betas as (T,) float64. ValueError unless T numbers in [0, 1]."""
    try:
        values = np.asarray(to_host(betas.detach()).double() if isinstance(betas, Tensor) else betas, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"betas = {betas!r}: give {total} numbers from 0 to 1, one for each timestep") from None
    if values.shape != (total,):
        raise ValueError(f"betas has shape {values.shape}, but the model knows {total} timesteps: give one for each")
    if not np.all((values >= 0) & (values <= 1)):  # also false for NaN
        raise ValueError(f"betas holds values from {values.min():g} to {values.max():g}: each must be from 0 to 1")
    return values


@dataclass(frozen=True)
class Levels:
    """The noise levels that a sampler walks, ascending in noise, as Python numbers: a step never waits for the device.

    Step `index` leads from `alpha_bar[index]`, where the model is asked at `timesteps[index]`, to
    `alpha_bar_prev[index]` by eq. 12 of Song et al. 2021 with `sigma[index]` (eq. 16); its noise is standard normal
    times `noise_scale[index]`, which is 1 but for σ̂.
    """

    timesteps: tuple[int, ...]
    alpha_bar: tuple[float, ...]
    alpha_bar_prev: tuple[float, ...]
    sigma: tuple[float, ...]
    noise_scale: tuple[float, ...]
    eta: float

    @classmethod
    def of(
        cls,
        timesteps: Sequence[int],
        alpha_bar: Sequence[float],
        alpha_bar_prev: Sequence[float],
        eta: float,
        sigma: str = "small",
    ) -> Levels:
        """`sigma`: "small" is eq. 16; "large" is σ̂, whose noise is σ̂'s and whose mean is that of η = 1 (ibid., D.3)."""
        check_numbers(eta=eta)
        eta = float(eta)
        if sigma == "large" and eta != 1:
            raise ValueError(f'sigma = "large" is DDPM\'s and goes with eta = 1, not {eta:g}: pass eta=1, or "small"')
        numbers = (np.asarray(timesteps).tolist(), np.asarray(alpha_bar).tolist(), np.asarray(alpha_bar_prev).tolist())
        return cls._of(*map(tuple, numbers), eta, sigma)

    @classmethod
    @lru_cache(maxsize=16)  # a sampler makes the same again at each call, of the original steps, too
    def _of(cls, timesteps: tuple, a: tuple, prev: tuple, eta: float, sigma: str) -> Levels:
        sigmas = tuple(ddim_sigma(now, to, eta) for now, to in zip(a, prev, strict=True))
        scales = (1.0,) * len(a)
        if sigma == "large":  # no noise stays none: where the step ends at ᾱ = 1 it has none to add
            scales = tuple(ddpm_sigma(*step) / s if s else 1.0 for *step, s in zip(a, prev, sigmas, strict=True))
        return cls(timesteps, a, prev, sigmas, scales, eta)

    def __len__(self) -> int:
        return len(self.timesteps)

    def lowest(self, count: int | None) -> Levels:
        """The `count` levels with the least noise; None is all."""
        if count is None or count == len(self):
            return self
        values = (self.timesteps, self.alpha_bar, self.alpha_bar_prev, self.sigma, self.noise_scale)
        return Levels(*(v[: int(count)] for v in values), self.eta)
