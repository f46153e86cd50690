"""DDIMSampler: CompVis' interface over the core. Song et al. 2021, "Denoising Diffusion Implicit Models"."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor

from .arguments import ENCODES, Request, refuse_unknown, select
from .checks import check_tensors
from .denoise import denoise, limit
from .guidance import Conditioning, Guide
from .inversion import invert, logged
from .loop import Run, Step
from .model import parameterization_of
from .noise import global_noise
from .prediction import predict
from .schedule import Levels
from .solver import Solver
from .transition import ddim_step
from .values import check_numbers

__all__ = ["DDIMSampler", "Step"]


class DDIMSampler(Solver):
    """Samples from any DiffusionModel, as CompVis' DDIMSampler does: the same arguments, seeds and numbers.

        samples, intermediates = DDIMSampler(model).sample(50, batch_size, (4, 64, 64), conditioning=c)

    A subclass may override `make_schedule`, `ddim_sampling` and `p_sample_ddim` with CompVis' signatures: all goes
    through them, and they get arguments that CompVis' do not have only where a caller uses them. An override of
    `make_schedule` must call super().make_schedule: the buffers are read-only copies of the levels that it sets.
    """

    SAMPLING, STEP, BAR = "ddim_sampling", "p_sample_ddim", "DDIM sampler"
    ddim_sampling = Solver.sampling

    def stepper(self, levels: Levels) -> Callable[..., tuple[Tensor, Tensor]]:
        return self.p_sample_ddim

    def direct(self, run: Run) -> Callable[[Tensor, int, int], tuple[Tensor, Tensor]] | None:
        """p_sample_ddim's numbers without its arguments, where nothing is done to eps and x0."""
        r, o, levels, guide = run.request, run.options, run.levels, run.guide
        limited = r.quantize_x0 or o.clip_x0 or r.dynamic_threshold is not None
        if limited or r.score_corrector is not None or not self.steps_itself:
            return None
        steps = list(zip(levels.alpha_bar, levels.alpha_bar_prev, levels.sigma, levels.noise_scale, strict=True))
        drawn = run.source.is_global or r.normals_sequence is not None or any(levels.sigma)

        def step(x: Tensor, i: int, index: int) -> tuple[Tensor, Tensor]:
            alpha_bar, alpha_bar_prev, sigma, scale = steps[index]
            output = guide(x, index, run.scales[i], run.image_scales[i])
            x0, eps = predict(output, x, alpha_bar, parameterization_of(self.model))
            noise = run.noise(i, index, x) if drawn else 0.0
            noise = global_noise(x, dropout=r.noise_dropout) if noise is None else noise
            return ddim_step(x0, eps, alpha_bar_prev, sigma, r.temperature * scale * noise if sigma else 0.0), x0

        return step

    @torch.no_grad()
    def p_sample_ddim(
        self,
        x: Tensor,
        c: Conditioning,
        t: Tensor,
        index: int,
        repeat_noise: bool = False,
        use_original_steps: bool = False,
        quantize_denoised: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        dynamic_threshold: float | None = None,
        *,
        image_conditioning: Conditioning = None,
        image_guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        batch_guidance: bool = True,
        clip_x0: bool | float = False,
        dynamic_threshold_max: float = inf,
        rederive_eps: bool = False,
        noise: Tensor | float | None = None,
        guide: Guide | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step: (x_prev, x0) from latents `x` (B, …) at level `index`, with the model asked at timesteps `t` (B,).

        `noise` is used as it is; None draws it from the global generator, also where none is needed, as CompVis does.
        `guide`: the run's, of these conditionings; without it one is made.
        """
        levels = self.levels(use_original_steps)
        alpha_bar = levels.alpha_bar[index]
        x0, eps = denoise(
            self.model, x, c, t, alpha_bar, score_corrector=score_corrector, corrector_kwargs=corrector_kwargs,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning, image_conditioning=image_conditioning,
            image_guidance_scale=image_guidance_scale, guidance_rescale=guidance_rescale, batch_guidance=batch_guidance,
            guide=guide,
        )  # fmt: skip
        x0, eps = limit(
            self.model, x, x0, eps, alpha_bar, quantize_denoised=quantize_denoised, dynamic_threshold=dynamic_threshold,
            clip_x0=clip_x0, dynamic_threshold_max=dynamic_threshold_max, rederive_eps=rederive_eps,
        )  # fmt: skip
        noise = global_noise(x, repeat_noise, noise_dropout) if noise is None else noise
        noise = temperature * levels.noise_scale[index] * noise
        return ddim_step(x0, eps, levels.alpha_bar_prev[index], levels.sigma[index], noise), x0

    @torch.no_grad()
    def encode(
        self,
        x0: Tensor,
        c: Conditioning,
        t_enc: int,
        use_original_steps: bool = False,
        return_intermediates: int | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        callback: Callable[[int], Any] | None = None,
        *,
        refine: int = 0,
        **options: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """DDIM inversion: `t_enc` steps from data to noise, which `decode(…, t_enc)` retraces, but for an error of 1/S.

        `refine`: take each step so often again, the model asked where it led: the error vanishes (inversion.py says
        when). `options`: guidance_rescale, guidance_interval, batch_guidance, progress (arguments.Options). Returns the
        latents and {"x_encoded": them, "intermediate_steps": […]}, with about as many "intermediates" as asked for.
        """
        refuse_unknown(options.keys() - ENCODES, ENCODES | {"refine"}, "encode")
        check_numbers(refine=refine)
        self._check_count("t_enc", t_enc, use_original_steps)
        check_tensors(x0=x0)
        request = Request(
            x_T=x0, unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning, use_original_steps=use_original_steps,
        )  # fmt: skip
        run = Run.of(self, c, x0.shape, request, select(options, ENCODES), "encode", count=t_enc)
        return logged(invert(run, int(refine)), len(run.levels), return_intermediates, callback)
