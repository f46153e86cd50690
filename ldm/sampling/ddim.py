"""DDIMSampler: CompVis' interface over the core. Song et al. 2021, "Denoising Diffusion Implicit Models"."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

import torch
from torch import Generator, Tensor

from .arguments import ENCODES, Options, Request, names_of, refuse_unknown, select, without_none
from .base import Sampler
from .checks import check_tensors, latent_shape
from .guidance import Conditioning, guided_output
from .inversion import invert, logged
from .loop import Run, Step
from .model import parameterization_of, quantize
from .noise import global_noise
from .prediction import eps_from_x0, limit_x0, predict, x0_from_eps
from .transition import ddim_step
from .values import check_numbers


class DDIMSampler(Sampler):
    """Samples from any DiffusionModel, as CompVis' DDIMSampler does: the same arguments, seeds and numbers.

        samples, intermediates = DDIMSampler(model).sample(50, batch_size, (4, 64, 64), conditioning=c)

    A subclass may override `make_schedule`, `ddim_sampling` and `p_sample_ddim` with CompVis' signatures: all goes
    through them, and they get arguments that CompVis' do not have only where a caller uses them. An override of
    `make_schedule` must call super().make_schedule: the buffers are read-only copies of the levels that it sets.
    """

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Conditioning = None,
        callback: Callable[[int], Any] | None = None,
        normals_sequence: Sequence[Tensor] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        quantize_x0: bool = False,
        eta: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        verbose: bool = True,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        dynamic_threshold: float | None = None,
        ucg_schedule: Sequence[float] | None = None,
        *,
        ddim_discretize: str | None = None,
        timesteps: Sequence[int] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        seeds: Sequence[int] | None = None,
        noise_device: torch.device | str | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        batch_guidance: bool | None = None,
        clip_x0: bool | float | None = None,
        final_alpha: str | None = None,
        steps_offset: int | None = None,
        betas: Sequence[float] | None = None,
        zero_terminal_snr: bool | None = None,
        sigma: str | None = None,
        dynamic_threshold_max: float | None = None,
        rederive_eps: bool | None = None,
        blend_final: bool | None = None,
        progress: bool | None = None,
        **unknown: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """S steps from noise, or from `x_T`, to samples of (batch_size, *shape); `shape` may have any rank.

        conditioning, unconditional_conditioning: tensors, or lists and dicts of them, nested, batch first
        callback(i), img_callback(x0, i): called after step i = 0, 1, …
        normals_sequence: the noise of each step, the noisiest step's first, instead of drawn noise
        eta: 0 deterministic … 1 DDPM. temperature, noise_dropout: scale the noise of a step; drop parts of it
        mask, x0: the latents to keep where the mask is 1
        score_corrector: its `modify_score(model, eps, x, t, c, **corrector_kwargs)` returns the eps to use
        verbose: show a progress bar. log_every_t: keep each such index, and the first step, in the intermediates
        dynamic_threshold: the quantile for Imagen's thresholding of x0. quantize_x0: put x0 on the codebook
        ucg_schedule: a guidance scale for each step, the noisiest step's first
        and, by keyword only, `arguments.Options`: None is what the sampler was built with

        Returns the samples, float32 (float64 if x_T is), and {"x_inter": […], "pred_x0": […]}, both from x_T on.
        FloatingPointError if the model's output is not finite.
        """
        options = select(locals(), names_of(Options))  # all are spelled out above, for editors and the scripts' YAML
        refuse_unknown(unknown, set(inspect.signature(self.sample).parameters) - {"unknown"}, "sample")
        size = latent_shape(batch_size, shape)
        options = self._schedule_for(S, eta, verbose, options)
        return self.ddim_sampling(
            conditioning, size, x_T=x_T, callback=callback, quantize_denoised=quantize_x0, mask=mask, x0=x0,
            img_callback=img_callback, log_every_t=log_every_t, temperature=temperature, noise_dropout=noise_dropout,
            score_corrector=score_corrector, corrector_kwargs=corrector_kwargs,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            **without_none(dynamic_threshold=dynamic_threshold, ucg_schedule=ucg_schedule),
            **without_none(normals_sequence=normals_sequence, **options),
        )  # fmt: skip

    @torch.no_grad()
    def ddim_sampling(
        self,
        cond: Conditioning,
        shape: Sequence[int],
        x_T: Tensor | None = None,
        ddim_use_original_steps: bool = False,
        callback: Callable[[int], Any] | None = None,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        log_every_t: int = 100,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        dynamic_threshold: float | None = None,
        ucg_schedule: Sequence[float] | None = None,
        *,
        normals_sequence: Sequence[Tensor] | None = None,
        **options: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """`sample` after `make_schedule`, for latents of `shape` = (B, …).

        `timesteps`, an int n, starts lower down: at the n-th of the original steps, or the (n − 1)-th of S (CompVis).
        """
        check_numbers(log_every_t=log_every_t)
        request = Request(
            x_T=x_T, mask=mask, x0=x0, normals_sequence=normals_sequence, quantize_x0=quantize_denoised,
            unconditional_guidance_scale=unconditional_guidance_scale, ucg_schedule=ucg_schedule,
            unconditional_conditioning=unconditional_conditioning, dynamic_threshold=dynamic_threshold,
            temperature=temperature, noise_dropout=noise_dropout, score_corrector=score_corrector,
            corrector_kwargs=corrector_kwargs, use_original_steps=ddim_use_original_steps,
        )  # fmt: skip
        count = self._subset(timesteps, ddim_use_original_steps)
        run = Run.of(self, cond, shape, request, options, "ddim_sampling", count=count)
        x_inter, pred_x0 = [run.x], [run.x]
        for i, step in enumerate(run):
            if callback:
                callback(i)
            if img_callback:
                img_callback(step.x0, i)
            if i == 0 or step.index % log_every_t == 0:
                x_inter.append(step.x_prev)
                pred_x0.append(step.x0)
        return step.x_prev, {"x_inter": x_inter, "pred_x0": pred_x0}

    def steps(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Conditioning = None,
        *,
        eta: float = 0.0,
        verbose: bool = False,
        **arguments: Any,
    ) -> Iterator[Step]:
        """`sample`, one `Step` at a time; `x_prev` of the last is the samples. Leaving the loop early cancels the rest.

            for step in sampler.steps(50, 1, (4, 64, 64), c, seeds=[0]):
                show(step.timestep, step.x0)

        Takes `sample`'s arguments by name, but callbacks and `log_every_t`. One run at a time on one sampler.
        """
        if "use_original_steps" in arguments:
            raise TypeError('steps walks S of the T timesteps: for the original ones pass S=T and final_alpha="one"')
        size = latent_shape(batch_size, shape)
        known = {*names_of(Request), *names_of(Options), "eta", "verbose"} - {"use_original_steps"}
        refuse_unknown(arguments.keys() - known, known, "steps")
        options = self._schedule_for(S, eta, verbose, select(arguments, names_of(Options)))
        request = Request(**select(arguments, names_of(Request)))
        return iter(Run.of(self, conditioning, size, request, options, "steps"))

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
        guidance_rescale: float = 0.0,
        batch_guidance: bool = True,
        clip_x0: bool | float = False,
        dynamic_threshold_max: float = inf,
        rederive_eps: bool = False,
        noise: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step: (x_prev, x0) from latents `x` (B, …) at level `index`, with the model asked at timesteps `t` (B,).

        `noise` is used as it is; None draws it from the global generator, also where none is needed, as CompVis does.
        """
        levels = self.levels(use_original_steps)
        alpha_bar = levels.alpha_bar[index]
        output = guided_output(
            self.model, x, t, c, unconditional_conditioning, unconditional_guidance_scale,
            rescale=guidance_rescale, batched=batch_guidance,
        )  # fmt: skip
        pred_x0, eps = predict(output, x, alpha_bar, parameterization_of(self.model))
        if score_corrector is not None:
            eps = score_corrector.modify_score(self.model, eps, x, t, c, **(corrector_kwargs or {}))
            pred_x0 = x0_from_eps(x, eps, alpha_bar) if alpha_bar > 0 else pred_x0  # at ᾱ = 0 they are not tied
        pred_x0 = limit_x0(pred_x0, clip_x0, dynamic_threshold, dynamic_threshold_max)
        if quantize_denoised:
            pred_x0 = quantize(self.model, pred_x0)
        if rederive_eps:
            eps = eps_from_x0(x, pred_x0, alpha_bar)
        noise = global_noise(x, repeat_noise, noise_dropout) if noise is None else noise
        noise = temperature * levels.noise_scale[index] * noise
        x_prev = ddim_step(pred_x0, eps, levels.alpha_bar_prev[index], levels.sigma[index], noise)
        return x_prev, pred_x0

    @torch.no_grad()
    def decode(
        self,
        x_latent: Tensor,
        cond: Conditioning,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        use_original_steps: bool = False,
        callback: Callable[[int], Any] | None = None,
        **options: Any,
    ) -> Tensor:
        """Samples from latents at the noise of level `t_start` (`stochastic_encode`), down the lowest `t_start` steps.

        `options`: those of `arguments.Options` that are not for `make_schedule`.
        """
        if t_start == 0:
            return x_latent
        self._check_count("t_start", t_start, use_original_steps, least=0)
        check_tensors(x_latent=x_latent)
        request = Request(
            x_T=x_latent, unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning, use_original_steps=use_original_steps,
        )  # fmt: skip
        for i, step in enumerate(Run.of(self, cond, x_latent.shape, request, options, "decode", count=t_start)):
            x = step.x_prev
            if callback:
                callback(i)
        return x

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
