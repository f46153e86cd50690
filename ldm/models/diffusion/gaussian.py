"""The formulas between x_t, x0, noise and v at a batch of timesteps, under CompVis' names (Ho et al. 2020).

`t` is (B,), long, a timestep for each sample; everything else (B, …), of one shape. `ldm.sampling` has the same
formulas for one noise level at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ldm.modules.diffusionmodules.scheduled import ScheduledModule, at
from ldm.sampling.schedule import NoiseSchedule, make_beta_schedule

_LOWEST_VARIANCE = 1e-20  # whose logarithm stands for that of 0, at the first timestep


class GaussianDiffusion(ScheduledModule):
    """A module with a noise schedule, and what follows from it. `parameterization`: "eps", "v" or "x0"."""

    parameterization = "eps"

    def register_schedule(
        self,
        given_betas: Sequence[float] | None = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """Make the noise schedule and its buffers: of `given_betas`, (T,), or else by `make_beta_schedule`."""
        if given_betas is None:
            given_betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self._register_schedule(given_betas)
        self._register_posterior()

    def _register_posterior(self) -> None:
        """What training code reads beside the schedule; not in the state dict, whose keys are the released files'."""
        schedule = NoiseSchedule.from_betas(self.betas.double().cpu().numpy())
        for name, values in _posterior(schedule, self.parameterization).items():
            self._register_float32(name, values, persistent=False)
            setattr(self, name, getattr(self, name).to(self.betas.device))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "betas" in state_dict:
            self._register_posterior()

    # ------------------------------------------------------------------------------------- x_t = √ᾱ x0 + √(1 − ᾱ) noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x0 = x_t / √ᾱ − √(1/ᾱ − 1) noise. Not a number at ᾱ = 0 (zero terminal SNR), where x_t holds no x0."""
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return at(recip, t, x_t) * x_t - at(recipm1, t, x_t) * noise

    def get_v(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = √ᾱ noise − √(1 − ᾱ) x0, for x0 = `x` (Salimans & Ho 2022, appendix D)."""
        signal, spread = self._weights(t, x)
        return signal * noise - spread * x

    def predict_start_from_z_and_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """x0 = √ᾱ x_t − √(1 − ᾱ) v."""
        signal, spread = self._weights(t, x_t)
        return signal * x_t - spread * v

    def predict_eps_from_z_and_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """noise = √ᾱ v + √(1 − ᾱ) x_t."""
        signal, spread = self._weights(t, x_t)
        return signal * v + spread * x_t

    def _weights(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1 − ᾱ)."""
        return at(self.sqrt_alphas_cumprod, t, x), at(self.sqrt_one_minus_alphas_cumprod, t, x)

    # ------------------------------------------------------------------------------------------- distributions: q(·|·)

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(x_t | x0): its mean (B, …), variance and log-variance (B, 1, …). Ibid., eq. 4."""
        signal, spread = self._weights(t, x_start)
        return signal * x_start, spread.square(), at(self.log_one_minus_alphas_cumprod, t, x_start)

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(x_{t−1} | x_t, x0): its mean (B, …), variance and log-variance (B, 1, …). Ibid., eqs. 6 and 7.

        The variance is 0 at the first timestep, and the log-variance clipped to be finite there.
        """
        mean = at(self.posterior_mean_coef1, t, x_t) * x_start + at(self.posterior_mean_coef2, t, x_t) * x_t
        return mean, at(self.posterior_variance, t, x_t), at(self.posterior_log_variance_clipped, t, x_t)


def _posterior(schedule: NoiseSchedule, parameterization: str) -> dict[str, np.ndarray]:
    """(T,) each, under CompVis' names; `lvlb_weights` are those of the variational bound's terms, as CompVis has them
    (the first is infinite, and the second stands for it), and `logvar`, which is not learned here, is 0."""
    beta, a, before = schedule.betas, schedule.alpha_bar, schedule.alpha_bar_prev
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = beta * (1 - before) / (1 - a)
        bound = {
            "eps": beta**2 / (2 * variance * (1 - beta) * (1 - a)),
            "x0": 0.5 * np.sqrt(a) / (2 - a),
            "v": np.ones_like(beta),
        }[parameterization]
        bound[:1] = bound[1:2] if len(bound) > 1 else 1.0
        return {
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, _LOWEST_VARIANCE)),
            "posterior_mean_coef1": beta * np.sqrt(before) / (1 - a),
            "posterior_mean_coef2": (1 - before) * np.sqrt(1 - beta) / (1 - a),
            "lvlb_weights": bound,
            "logvar": np.zeros_like(beta),
        }
