"""The loop: a run is checked when it is made, and is then a generator of steps; leaving it early cancels the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from .arguments import Options, Request, warn, without_none
from .checks import check_finite, check_predictions, check_request, warn_idle
from .guidance import Conditioning, Guide, guidance_scales
from .mask import keep_known, kept_at
from .noise import NoiseSource, noise_source
from .schedule import Levels, q_sample
from .values import to_device

if TYPE_CHECKING:
    from .solver import Solver

BARS = {"encode": "Encoding", "decode": "Decoding"}


@dataclass(frozen=True)
class Step:
    """One step that was taken: from `x_t` at `timestep`, where the model predicts `x0`, to `x_prev`."""

    index: int  # CompVis' index: steps - 1 at the first step (the noisiest), 0 at the last
    timestep: int
    x_t: Tensor  # (B, …), what the model saw
    x0: Tensor
    x_prev: Tensor  # after the last step: the samples


_NOTHING = nullcontext()


@dataclass(frozen=True)
class Run:
    """A run that is ready to go: what stays the same from step to step. Iterating takes the steps."""

    sampler: Solver
    cond: Conditioning
    x: Tensor  # the latents to start from
    request: Request
    options: Options
    levels: Levels
    guide: Guide
    scales: list[float]  # of guidance, the first step's first
    image_scales: list[float]
    source: NoiseSource
    mask: Tensor | None
    x0: Tensor | None  # to keep
    caller: str  # the method that was called, for messages and the bar

    @classmethod
    def of(
        cls,
        sampler: Solver,
        cond: Conditioning,
        shape: Sequence[int],
        request: Request,
        given: dict[str, Any],
        caller: str,
        *,
        count: int | None = None,
    ) -> Run:
        """The run along the lowest `count` (default: all) of the sampler's noise levels, on latents of `shape`, (B, …).

        `given`: the options of this call of the method `caller`. All errors that can be told before the first step are
        told here.
        """
        shape, given = tuple(shape), without_none(**given)
        if request.dynamic_threshold is not None:  # displaces the sampler's clip_x0, not this call's
            given = {"clip_x0": False} | given
        options = sampler.options.updated(given, caller)
        levels = sampler.levels(request.use_original_steps).lowest(count)
        if options.init is not None:
            levels = levels.lowest(steps_of_strength(options.strength, len(levels)))
        times, interval = levels.timesteps[::-1], options.guidance_interval
        scales = guidance_scales(request.unconditional_guidance_scale, times, request.ucg_schedule, interval)
        image_scales = guidance_scales(options.image_guidance_scale, times, interval=interval)
        check_request(cond, shape, request, options, levels)
        check_predictions(sampler.model, levels, request.quantize_x0)
        if caller == "encode" and any(levels.sigma):
            warn("eta is not 0: decode adds noise and will not come back; call make_schedule with ddim_eta=0")
        if not sampler.steps_itself and any(scale != 1 for scale in levels.noise_scale):
            name = sampler.STEP
            warn(f'sigma = "large" is not in ddim_sigmas: a {name} of your own has to call super().{name}')
        warn_idle(request, given, options, scales, image_scales, levels)

        source = noise_source(shape[0], options.generator, options.seeds, options.noise_device)
        guide = Guide(
            sampler.model, cond, request.unconditional_conditioning, image=options.image_conditioning,
            rescale=options.guidance_rescale, batched=options.batch_guidance, timesteps=levels.timesteps,
        )  # fmt: skip
        x = start(request.x_T, options.init, shape, sampler.device, source, levels.alpha_bar[-1])
        mask = x0 = None
        if request.mask is not None:
            mask = to_device(request.mask, x.device, x.dtype)
            x0 = to_device(request.x0, x.device).reshape(-1, *shape[1:])
        return cls(sampler, cond, x, request, options, levels, guide, scales, image_scales, source, mask, x0, caller)

    def __iter__(self) -> Iterator[Step]:
        levels, timesteps, mask, n, x = self.levels, self.levels.timesteps, self.mask, len(self.levels), self.x
        step, sums, made = self.sampler.direct(self) or self.stepwise(), [], None
        for i in self.bar(range(n)):
            index = n - 1 - i
            made = self.still(made)
            with torch.no_grad() if torch.is_grad_enabled() else _NOTHING:  # inference_mode: correctors differentiate
                if mask is not None:
                    x = keep_known(x, self.known(x, index), self.mask_at(i))
                x_prev, x0 = step(x, i, index)
                if mask is not None and index == 0 and self.options.blend_final:
                    x_prev = keep_known(x_prev, self.x0.to(x_prev), self.mask_at(n))
                sums.append(x_prev.sum())
            yield Step(index, timesteps[index], x, x0, x_prev)
            x = x_prev
        check_finite(sums, levels.timesteps[::-1])

    def still(self, made: object) -> object:
        """What make_schedule left, at the first step and then; RuntimeError once it is not this run's.

        Another `model` may be put in within a run (a refiner, say), and is asked from then on.
        """
        if self.guide.model is not self.sampler.model:
            self.guide.ask(self.sampler.model)
        now = self.sampler._levels
        if now is not made:
            levels = self.sampler.levels(self.request.use_original_steps)
            if levels.lowest(len(self.levels)) != self.levels:
                name = type(self.sampler).__name__
                raise RuntimeError(f"make_schedule was called within a run: use another {name} for the other run")
        return now

    def stepwise(self) -> Callable[[Tensor, int, int], tuple[Tensor, Tensor]]:
        """The sampler's step with all its arguments, as a function of x, the step's number and its index."""
        step, arguments = self.sampler.stepper(self.levels), self.arguments()

        def take(x: Tensor, i: int, index: int) -> tuple[Tensor, Tensor]:
            noise = self.noise(i, index, x)
            return step(
                x, self.cond, self.times(x, index), index=index, unconditional_guidance_scale=self.scales[i],
                **arguments, **self.image_guidance(i), **({} if noise is None else {"noise": noise}),
            )  # fmt: skip

        return take

    def times(self, x: Tensor, index: int) -> Tensor:
        """The timestep of a level, (B,)."""
        return torch.full((len(x),), self.levels.timesteps[index], device=x.device, dtype=torch.long)

    def bar(self, steps: Iterable) -> Iterable:
        """The steps with a progress bar, where one is to be shown."""
        show = self.sampler.verbose if self.options.progress is None else self.options.progress
        return tqdm(steps, desc=BARS.get(self.caller, self.sampler.BAR)) if show else steps

    def image_guidance(self, i: int) -> dict[str, Any]:
        """The second scale of guidance as arguments, where there is one."""
        image = self.options.image_conditioning
        return {} if image is None else {"image_conditioning": image, "image_guidance_scale": self.image_scales[i]}

    def noise(self, i: int, index: int, x: Tensor) -> Tensor | float | None:
        """The noise of step i; None where the step is to draw it from the global generator."""
        if self.request.normals_sequence is not None:
            noise = to_device(self.request.normals_sequence[i], x.device, x.dtype)
        elif self.source.is_global:
            return None
        elif self.levels.sigma[index] * self.request.temperature == 0:
            return 0.0  # a given generator is not advanced for noise that is not used
        else:
            noise = self.source.normal(x.shape, x.device, x.dtype)
        return self.source.dropout(noise, self.request.noise_dropout)

    def mask_at(self, i: int) -> Tensor:
        """The mask before step i, or after the last one."""
        return kept_at(self.mask, i, len(self.levels)) if self.options.gradual_mask else self.mask

    def known(self, x: Tensor, index: int) -> Tensor:
        """x0 at x's noise level: by the model's q_sample, as in CompVis, unless noise or levels are not the model's."""
        if self.source.is_global and self.sampler.levels_are_the_models and hasattr(self.sampler.model, "q_sample"):
            return self.sampler.model.q_sample(self.x0, self.times(x, index)).to(x.dtype)
        noise = self.source.normal(x.shape, x.device, x.dtype)
        return q_sample(self.x0.to(x.dtype), self.levels.alpha_bar[index], noise)

    def arguments(self) -> dict[str, Any]:
        """The step's arguments: CompVis', and of ours those in use: an override may take CompVis' alone."""
        r, o = self.request, self.options
        ours = {
            "dynamic_threshold": (r.dynamic_threshold, None),
            "guidance_rescale": (o.guidance_rescale, 0),
            "batch_guidance": (o.batch_guidance, True),
            "clip_x0": (o.clip_x0, False),
            "dynamic_threshold_max": (o.dynamic_threshold_max, inf),
            "rederive_eps": (o.rederive_eps, False),
        }
        return {
            "use_original_steps": r.use_original_steps,
            "quantize_denoised": r.quantize_x0,
            "temperature": r.temperature,
            "noise_dropout": r.noise_dropout,
            "score_corrector": r.score_corrector,
            "corrector_kwargs": r.corrector_kwargs,
            "unconditional_conditioning": r.unconditional_conditioning,
            **({"guide": self.guide} if self.sampler.steps_itself else {}),
        } | {name: value for name, (value, default) in ours.items() if value != default}


def start(
    x_T: Tensor | None,
    init: Tensor | None,
    shape: tuple[int, ...],
    device: torch.device,
    source: NoiseSource,
    top: float,
) -> Tensor:
    """The latents to start from: x_T, or `init` noised to ᾱ = `top`, or noise.

    float32, or float64 where they are given so, whatever the network computes in.
    """
    given = x_T if init is None else init
    if given is None:
        return source.normal(shape, device)
    x = to_device(given, device, torch.promote_types(given.dtype, torch.float32))
    return x if init is None else q_sample(x, top, source.normal(shape, device, x.dtype))


def steps_of_strength(strength: float, steps: int) -> int:
    """How many of the last `steps` steps are taken: int(strength · S), as in CompVis' img2img, but at least one."""
    return max(1, int(strength * steps + 1e-9))  # 0.29 · 100 is a little less than 29
