"""PLMSSampler: pseudo linear multi-step sampling (Liu et al. 2022, PNDM), with CompVis' interface and numbers.

A step is DDIM's with η = 0, taken along a mean of the eps of this step and of up to three before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .denoise import denoise, limit, split
from .guidance import Conditioning
from .noise import global_noise
from .prediction import x0_from_eps
from .schedule import Levels
from .solver import Solver
from .transition import ddim_step

# Adams-Bashforth (Liu et al. 2022, eq. 12 and appendix): weights of the newest eps first, by how many there are.
WEIGHTS = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


class PLMSSampler(Solver):
    """CompVis' PLMSSampler: `sample` as of DDIMSampler, with eta = 0 only. One call of the model a step, and one more.

    A subclass may override `make_schedule`, `plms_sampling` and `p_sample_plms`.
    """

    DETERMINISTIC = True
    SAMPLING, STEP, BAR = "plms_sampling", "p_sample_plms", "PLMS sampler"
    plms_sampling = Solver.sampling

    @classmethod
    def check_eta(cls, eta: float) -> None:
        """ValueError unless eta is 0: the noise of a step would spoil what the next learns of it."""
        if eta != 0:
            raise ValueError(f"eta = {eta!r}: PLMS is deterministic; choose eta = 0, or DDIMSampler")

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = True,
        **ours: Any,
    ) -> None:  # fmt: skip
        """DDIMSampler's, with eta = 0 only."""
        self.check_eta(ddim_eta)
        super().make_schedule(ddim_num_steps, ddim_discretize, ddim_eta, verbose, **ours)

    def stepper(self, levels: Levels) -> Callable[..., tuple[Tensor, Tensor]]:
        past: list[Tensor] = []

        def step(x: Tensor, c: Conditioning, t: Tensor, index: int, **how: Any) -> tuple[Tensor, Tensor]:
            t_next = torch.full_like(t, levels.timesteps[max(index - 1, 0)])
            x_prev, x0, eps = self.p_sample_plms(x, c, t, index, old_eps=past[-3:], t_next=t_next, **how)
            past.append(eps)
            del past[:-3]
            return x_prev, x0

        return step

    @torch.no_grad()
    def p_sample_plms(
        self,
        x: Tensor,
        c: Conditioning,
        t: Tensor,
        index: int,
        repeat_noise: bool = False,
        use_original_steps: bool = False,
        *,
        old_eps: Sequence[Tensor] = (),
        t_next: Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        noise: Tensor | float | None = None,
        **how: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step: (x_prev, x0, eps) from latents `x` (B, …) at level `index`, the model asked at timesteps `t` (B,).

        `old_eps`: those of the steps before, the last step's last. The first step, which has none, asks the model again
        where a DDIM step leads, at `t_next`, and takes the mean (the improved Euler method). `how`: p_sample_ddim's
        other arguments. No noise is added; where `noise` is None it is drawn all the same, as in CompVis.
        """
        levels, (asked, limits) = self.levels(use_original_steps), split(how)
        alpha_bar, alpha_bar_prev = levels.alpha_bar[index], levels.alpha_bar_prev[index]

        def along(x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
            x0, eps = limit(self.model, x, x0, eps, alpha_bar, **limits)
            if noise is None:
                global_noise(x, repeat_noise, noise_dropout)
            return ddim_step(x0, eps, alpha_bar_prev), x0

        x0, eps = denoise(self.model, x, c, t, alpha_bar, **asked)
        if alpha_bar == 0 or not old_eps and alpha_bar_prev == 1:  # eps says nothing of x0 here, or there
            return *along(x0, eps), eps
        if old_eps:
            recent = [eps, *reversed(old_eps)][:4]
            mean = sum(w * e for w, e in zip(WEIGHTS[len(recent)], recent, strict=True))
        else:
            _, eps_next = denoise(self.model, along(x0, eps)[0], c, t_next, alpha_bar_prev, **asked)
            mean = (eps + eps_next) / 2
        return *along(x0_from_eps(x, mean, alpha_bar), mean), eps
