"""What every sampler of CompVis' family is: a model's noise schedule, made ready for S steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import SCHEDULE, Options, differs, idle_offset, select, warn
from .checks import check_noising, check_tensors
from .model import DiffusionModel, check_model
from .schedule import Levels, NoiseSchedule, q_sample
from .timesteps import given_timesteps, make_timesteps
from .values import as_device, as_number, check_numbers

log = logging.getLogger(__name__)
_PLAIN = Options()


class Sampler(nn.Module):
    """Holds a model without owning it: the model is no sub-module, and `state_dict()` is empty.

    So a model may keep its sampler as an attribute. The buffers follow the model's device at `make_schedule`, and stay
    float32 whatever the model is converted to.

    `schedule` is kept under CompVis' name; the schedule itself is always the model's. `device` is for a model whose own
    is not where it runs. `options` are defaults for the keyword-only arguments of `sample` (arguments.Options).
    """

    DEFAULTS: Mapping[str, Any] = {}  # a kind of sampler's own, of the options

    def __init__(
        self,
        model: DiffusionModel,
        schedule: str = "linear",
        *,
        device: torch.device | str | None = None,
        **options: Any,
    ):
        super().__init__()
        check_model(model)
        if schedule != "linear":
            warn(f"schedule = {schedule!r} has no effect, as in CompVis: the noise schedule is the model's own")
        self.model = model
        self.schedule = schedule
        self.ddpm_num_timesteps = int(model.num_timesteps)
        self.device = device
        self.options = Options(**self.DEFAULTS).updated(options, type(self).__name__)
        self.verbose = True
        self._levels: dict[bool, Levels] = {}  # by use_original_steps
        self.levels_are_the_models = True  # or of given or rescaled betas

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "model":  # not through nn.Module, which would make it a sub-module
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        """Where latents live: as given, else the model's device, else that of its betas."""
        device = self._device if self._device is not None else getattr(self.model, "device", None)
        return torch.device(device) if device is not None else self.model.betas.device

    @device.setter
    def device(self, device: torch.device | str | None) -> None:
        self._device = None if device is None else as_device("device", device)

    def register_buffer(self, name: str, attr: Any, persistent: bool = False) -> None:
        """CompVis' hook: keep `attr` as an attribute, a tensor on the model's device. Never in the state dict."""
        self.__dict__.pop(name, None)
        self._buffers.pop(name, None)
        if isinstance(attr, Tensor):
            super().register_buffer(name, attr.to(self.device), persistent=persistent)
        else:
            setattr(self, name, attr)

    def _apply(self, fn, recurse: bool = True) -> Sampler:
        for name, buffer in self._buffers.items():  # .half() on a model that holds a sampler moves it, and no more
            self._buffers[name] = buffer.to(fn(buffer).device)
        return self

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = True,
        *,
        timesteps: Sequence[int] | None = None,
        final_alpha: str = "first",
        steps_offset: int | None = None,
        betas: Sequence[float] | None = None,
        zero_terminal_snr: bool = False,
        sigma: str = "small",
    ) -> None:
        """Choose S timesteps and set their noise levels; `verbose` shows bars in what follows.

        Buffers, float32 on the model's device: CompVis' betas, alphas_cumprod, …, (T,), and ddim_sigmas, ddim_alphas,
        ddim_alphas_prev, ddim_sqrt_one_minus_alphas, (S,), ascending in noise like `ddim_timesteps`, (S,) int64.
        By keyword: see arguments.Options. ValueError for an S that the model's T does not hold.
        """
        check_model(self.model)
        total = int(self.model.num_timesteps)  # read again: `model` may be another than the constructor's
        Options(  # refuses what cannot be
            final_alpha=final_alpha, steps_offset=steps_offset, sigma=sigma, zero_terminal_snr=zero_terminal_snr
        )
        if idle := idle_offset(steps_offset, timesteps, ddim_discretize):
            warn(idle)
        schedule = NoiseSchedule.sampling(self.model, betas, zero_terminal_snr)
        if timesteps is None:
            steps = make_timesteps(ddim_discretize, ddim_num_steps, total, steps_offset, schedule.alpha_bar)
        else:
            steps = given_timesteps(timesteps, ddim_num_steps, total)
        alphas = schedule.alpha_bar[steps]
        last = 1.0 if final_alpha == "one" else schedule.alpha_bar[0]
        ddim = Levels.of(steps, alphas, np.append(last, alphas[:-1]), ddim_eta, sigma)
        original = Levels.of(range(total), schedule.alpha_bar, schedule.alpha_bar_prev, ddim_eta, sigma)

        self.ddpm_num_timesteps, self.ddim_timesteps, self.verbose = total, steps, verbose
        self._levels = {False: ddim, True: original}
        self.levels_are_the_models = betas is None and not zero_terminal_snr
        buffers = schedule.buffers() | {
            "ddim_sigmas": ddim.sigma,
            "ddim_alphas": ddim.alpha_bar,
            "ddim_alphas_prev": ddim.alpha_bar_prev,
            "ddim_sqrt_one_minus_alphas": np.sqrt(1 - alphas),
            "ddim_sigmas_for_original_num_steps": original.sigma,
        }
        for name, values in buffers.items():  # the cast: the loop reads the float64 levels, not these
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))
        if verbose:
            log.info("timesteps %s, eta %g", steps.tolist(), ddim.eta)

    def levels(self, use_original_steps: bool = False) -> Levels:
        """The noise levels of the S steps, or of the model's own T. RuntimeError before `make_schedule`."""
        if not self._levels:
            raise RuntimeError(
                "there are no timesteps yet: call make_schedule(S) first (an override of it must call "
                "super().make_schedule, as the ddim_* buffers are only copies of the levels that it sets)"
            )
        return self._levels[bool(use_original_steps)]

    def _schedule_for(self, S: int, eta: float, verbose: bool, given: Mapping[str, Any]) -> dict[str, Any]:
        """make_schedule with those of the given options that are its own; returns the others.

        None is what the sampler was built with. An override of make_schedule may take CompVis' arguments alone: it gets
        those of ours that are not the default.
        """
        o = self.options.updated(select(given, SCHEDULE), type(self).__name__)
        ours = {name: getattr(o, name) for name in SCHEDULE[1:] if differs(getattr(o, name), getattr(_PLAIN, name))}
        self.make_schedule(ddim_num_steps=S, ddim_discretize=o.ddim_discretize, ddim_eta=eta, verbose=verbose, **ours)
        return {name: value for name, value in given.items() if name not in SCHEDULE}

    def _subset(self, timesteps: int | None, use_original_steps: bool) -> int | None:
        """How many of the levels `ddim_sampling(timesteps=…)` means."""
        if timesteps is None:
            return None
        check_numbers(timesteps=timesteps)
        total = len(self.levels(use_original_steps))
        count = int(timesteps) if use_original_steps else int(min(timesteps / total, 1) * total) - 1  # CompVis' rule
        if not 1 <= count <= total:
            raise ValueError(
                f"timesteps = {timesteps} leaves {count} of {total} steps: choose "
                + (f"1 to {total}" if use_original_steps else "2 or more (n means n - 1 steps, as in CompVis)")
            )
        return count

    def _check_count(self, name: str, count: int, use_original_steps: bool, least: int = 1) -> None:
        """ValueError unless there are `count` levels, and at least `least`."""
        total = len(self.levels(use_original_steps))
        if as_number(count) not in range(least, total + 1):
            raise ValueError(f"{name} = {count!r}: there are {total} steps; choose from {least} to {total}")

    @torch.no_grad()
    def stochastic_encode(
        self, x0: Tensor, t: Tensor | int, use_original_steps: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """x0 noised to level t (Ho et al. 2020, eq. 4); `t`, (B,) or one int, counts the sampler's levels from 0.

        The step from level t is the (t + 1)-th from the end. CompVis' img2img decodes t steps from there: one fewer.
        """
        alpha_bar = self.levels(use_original_steps).alpha_bar
        check_tensors(x0=x0, noise=noise)
        t = torch.as_tensor(t, device=x0.device)
        check_noising(x0, t, noise, len(alpha_bar))
        noise = torch.randn_like(x0) if noise is None else noise
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
        a = torch.tensor(alpha_bar, dtype=x0.dtype, device=x0.device)[t.long()]
        return q_sample(x0, a.reshape(-1, *[1] * (x0.ndim - 1)), noise.to(x0))
