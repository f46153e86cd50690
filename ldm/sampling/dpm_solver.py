"""DPMSolverSampler: DPM-Solver++ (Lu et al. 2022, "DPM-Solver++", algorithm 2: the multistep solver of order 2).

In λ = log(√ᾱ / √(1 − ᾱ)) the flow is linear but for x0, which a step of order 1 holds fixed and one of order 2
extrapolates from the step before. With x0 fixed the step is DDIM's, so that is what both end in.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor

from .arguments import warn
from .denoise import denoise, limit, split
from .guidance import Conditioning
from .prediction import eps_from_x0
from .schedule import Levels
from .solver import Solver
from .transition import ddim_step


class DPMSolverSampler(Solver):
    """CompVis' DPMSolverSampler: `sample` as of DDIMSampler. One call of the model a step; 20 steps are usual.

    order: 2, or 1, which is DDIM. lower_order_final: the last of fewer than 15 steps is of order 1, which is steadier
    (as in the original). Timesteps are spaced as the original's "time_uniform" unless told otherwise. eta has no
    effect: the solver is deterministic. A subclass may override `make_schedule`, `sampling` and `p_sample_dpm`.
    """

    DETERMINISTIC = True
    STEP, BAR = "p_sample_dpm", "DPM-Solver++"
    DEFAULTS = {"ddim_discretize": "time_uniform"}

    def __init__(self, model, schedule: str = "linear", *, order: int = 2, lower_order_final: bool = True, **options):
        super().__init__(model, schedule, **options)
        if order not in (1, 2) or isinstance(order, bool):
            raise ValueError(f"order = {order!r}: choose 1 (DDIM) or 2")
        self.order, self.lower_order_final = order, lower_order_final

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "time_uniform", ddim_eta: float = 0.0, verbose: bool = True,
        **ours: Any,
    ) -> None:  # fmt: skip
        """DDIMSampler's, with eta = 0 whatever is given."""
        if ddim_eta != 0:
            warn(f"eta = {ddim_eta!r} has no effect: DPM-Solver++ is deterministic (DDIMSampler is not)")
        super().make_schedule(ddim_num_steps, ddim_discretize, 0.0, verbose, **ours)

    def stepper(self, levels: Levels) -> Callable[..., tuple[Tensor, Tensor]]:
        last: dict[str, Any] = {}
        steady = self.lower_order_final and len(levels) < 15

        def step(x: Tensor, c: Conditioning, t: Tensor, index: int, **how: Any) -> tuple[Tensor, Tensor]:
            past = {} if self.order == 1 or steady and index == 0 else dict(last)
            x_prev, x0 = self.p_sample_dpm(x, c, t, index, **past, **how)
            last.update(old_x0=x0, old_alpha_bar=levels.alpha_bar[index])
            return x_prev, x0

        return step

    @torch.no_grad()
    def p_sample_dpm(
        self,
        x: Tensor,
        c: Conditioning,
        t: Tensor,
        index: int,
        repeat_noise: bool = False,
        use_original_steps: bool = False,
        *,
        old_x0: Tensor | None = None,
        old_alpha_bar: float = 0.0,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        noise: Tensor | float | None = None,
        **how: Any,
    ) -> tuple[Tensor, Tensor]:
        """One step: (x_prev, x0) from latents `x` (B, …) at level `index`, the model asked at timesteps `t` (B,).

        `old_x0`: the x0 of the step before, and `old_alpha_bar` its level; without them the step is of order 1. `how`:
        p_sample_ddim's other arguments. eps always follows from x0 as limited (`rederive_eps`). No noise is added.
        """
        # repeat_noise, temperature, noise_dropout and noise are those of CompVis' steps, which a run calls all alike;
        # they must be taken out of `how`, and there is no noise here that they could change.
        levels, (asked, limits) = self.levels(use_original_steps), split(how)
        alpha_bar, alpha_bar_prev = levels.alpha_bar[index], levels.alpha_bar_prev[index]
        x0, eps = denoise(self.model, x, c, t, alpha_bar, **asked)
        x0, _ = limit(self.model, x, x0, eps, alpha_bar, **limits)
        ahead = x0
        if old_x0 is not None:
            ahead = x0 + (x0 - old_x0) * half_ratio(old_alpha_bar, alpha_bar, alpha_bar_prev)
        return ddim_step(ahead, eps_from_x0(x, ahead, alpha_bar), alpha_bar_prev), x0


def half_ratio(before: float, now: float, to: float) -> float:
    """1/(2r) = h/(2 h_before), for steps of λ from ᾱ = `now` to `to` and from `before` to `now`; 0 if one is endless.

    (Algorithm 2 of DPM-Solver++ has D = (1 + 1/(2r)) x0 − x0_before/(2r).)
    """
    if before == 0 or to == 1 or before == now:
        return 0.0
    return (log_snr(to) - log_snr(now)) / (2 * (log_snr(now) - log_snr(before)))


def log_snr(alpha_bar: float) -> float:
    """λ = log(√ᾱ / √(1 − ᾱ))."""
    return (log(alpha_bar) - log(1 - alpha_bar)) / 2
