"""What every sampler does that walks its noise levels down: `sample`, the same step by step, and `decode`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .arguments import Options, Request, names_of, refuse_unknown, select, without_none
from .base import Sampler
from .checks import check_tensors, latent_shape
from .guidance import Conditioning
from .loop import Run, Step
from .schedule import Levels
from .values import check_numbers

_OURS = f"{__package__}."


class Solver(Sampler):
    """A sampler whose step a subclass says (`stepper`); `sample` takes the same arguments in all of them.

    A subclass of one of ours may override the methods named SAMPLING and STEP, and `make_schedule`, with CompVis'
    signatures: all goes through them, and they get arguments that CompVis' do not have only where a caller uses them.
    """

    DETERMINISTIC = False  # whether eta can only be 0
    SAMPLING = "sampling"  # the name under which CompVis has the loop
    STEP: str  # and the step
    BAR: str  # what the progress bar says

    @classmethod
    def check_eta(cls, eta: float) -> None:
        """ValueError for an eta that this kind of sampler refuses; it can be asked before there is a model."""

    def stepper(self, levels: Levels) -> Callable[..., tuple[Tensor, Tensor]]:
        """The step of one run along `levels`: called as `p_sample_ddim` is, noisiest first, it returns (x_prev, x0).

        What one step leaves for the next, such as past predictions, belongs to what is returned, not to the sampler.
        """
        raise NotImplementedError

    @property
    def steps_itself(self) -> bool:
        """Whether the step is ours, and neither a subclass' own nor set on this sampler."""
        return all(getattr(getattr(self, name), "__module__", "").startswith(_OURS) for name in (self.STEP, "stepper"))

    def direct(self, run: Run) -> Callable[[Tensor, int, int], tuple[Tensor, Tensor]] | None:
        """A shorter way to the same step: (x, its number, its index) → (x_prev, x0); None where there is none."""
        return None

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
        image_conditioning: Conditioning = None,
        image_guidance_scale: float | None = None,
        batch_guidance: bool | None = None,
        clip_x0: bool | float | None = None,
        final_alpha: str | None = None,
        steps_offset: int | None = None,
        betas: Sequence[float] | None = None,
        zero_terminal_snr: bool | None = None,
        sigma: str | None = None,
        dynamic_threshold_max: float | None = None,
        rederive_eps: bool | None = None,
        init: Tensor | None = None,
        strength: float | None = None,
        gradual_mask: bool | None = None,
        blend_final: bool | None = None,
        progress: bool | None = None,
        **unknown: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """S steps from noise, from `x_T` or from `init`, to samples of (batch_size, *shape); `shape` may have any rank.

        conditioning, unconditional_conditioning: tensors, or lists and dicts of them, nested, batch first
        callback(i), img_callback(x0, i): called after step i = 0, 1, …
        normals_sequence: the noise of each step, the noisiest step's first, instead of drawn noise
        eta: 0 deterministic … 1 DDPM. temperature, noise_dropout: scale the noise of a step; drop parts of it
        mask, x0: the latents to keep where the mask is 1
        score_corrector: its `modify_score(model, eps, x, t, c, **corrector_kwargs)` returns the eps to use
        verbose: show a progress bar. log_every_t: keep each such index, and the first step, in the intermediates
        dynamic_threshold: the quantile for Imagen's thresholding of x0. quantize_x0: put x0 on the codebook
        ucg_schedule: a guidance scale for each step, the noisiest step's first
        and, by keyword only, what help(ldm.sampling.arguments.Options) lists: None is what the sampler was built with

        Returns the samples, float32 (float64 if x_T is), and {"x_inter": […], "pred_x0": […]}, both from x_T on.
        FloatingPointError if the model's output is not finite.
        """
        options = select(locals(), names_of(Options))  # all are spelled out above, for editors and the scripts' YAML
        if unknown:
            refuse_unknown(unknown, set(inspect.signature(self.sample).parameters) - {"unknown"}, "sample")
        size = latent_shape(batch_size, shape)
        options = self._schedule_for(S, eta, verbose, options)
        return getattr(self, self.SAMPLING)(
            conditioning, size, x_T=x_T, callback=callback, quantize_denoised=quantize_x0, mask=mask, x0=x0,
            img_callback=img_callback, log_every_t=log_every_t, temperature=temperature, noise_dropout=noise_dropout,
            score_corrector=score_corrector, corrector_kwargs=corrector_kwargs,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            **without_none(dynamic_threshold=dynamic_threshold, ucg_schedule=ucg_schedule),
            **without_none(normals_sequence=normals_sequence, **options),
        )  # fmt: skip

    @torch.no_grad()
    def sampling(
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
        run = Run.of(self, cond, shape, request, options, self.SAMPLING, count=count)
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
