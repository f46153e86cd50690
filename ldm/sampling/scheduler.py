"""DDIMScheduler: diffusers' interface, and Bumblebee's options, over the core. Song et al. 2021, eq. 12 and 16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from .noise import noise_source
from .prediction import eps_from_x0, limit_x0, predict
from .schedule import Levels
from .scheduler_base import SchedulerBase
from .scheduler_config import KINDS
from .transition import ddim_sigma, ddim_step
from .values import check_numbers


class DDIMSchedulerOutput(dict):
    """What a step gives: as attributes, by name, and by position."""

    prev_sample: Tensor  # the sample at the level where the step ends
    pred_original_sample: Tensor | None  # x0 as the model predicts it, limited

    def __init__(self, prev_sample: Tensor, pred_original_sample: Tensor | None = None):
        super().__init__(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to_tuple(self) -> tuple[Tensor, ...]:
        """(prev_sample, pred_original_sample), without the latter where there is none."""
        return tuple(value for value in self.values() if value is not None)


class DDIMScheduler(SchedulerBase):
    """diffusers' DDIMScheduler: its options, methods and config file; it goes into diffusers' pipelines.

        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    num_train_timesteps      T
    beta_schedule            "linear" (Ho et al. 2020), "scaled_linear" (Stable Diffusion's: linear in √β) or
                             "squaredcos_cap_v2" (Nichol & Dhariwal 2021, eq. 17), from beta_start to beta_end
    trained_betas            the betas themselves, (T,)
    clip_sample              clamp x0 to ±clip_sample_range at each step
    set_alpha_to_one         whether ᾱ is 1 where the last step ends, or that of timestep 0
    steps_offset             the first of the leading timesteps (Stable Diffusion: 1)
    prediction_type          what the model says: "epsilon", "sample" (x0) or "v_prediction"
    thresholding             dynamic thresholding (Saharia et al. 2022, section 2.3) instead of clip_sample, at the
                             quantile dynamic_thresholding_ratio of |x0|; x0 is divided by no more than sample_max_value
    timestep_spacing         "leading", "trailing" or "linspace" (Lin et al. 2023, table 2)
    rescale_betas_zero_snr   make the last ᾱ 0 (Lin et al. 2023, algorithm 1)
    and, which diffusers' does not have:
    step_rule                where a step ends: "next", at the timestep that comes next, or "stride", T // S below, as
                             in diffusers. They agree but where that misses the next: where S does not divide T, for
                             "trailing" and "linspace"; and where the last leading timestep is T // S or more
    eta                      `step`'s where that is given none: 0 deterministic … 1 DDPM
    use_clipped_model_output the same: whether eps is derived again from the limited x0, as in GLIDE
    sigma                    with eta = 1, "large" gives DDPM's larger variance, σ̂ (Song et al. 2021, section 5)

    diffusers' `save_pretrained` of a pipeline saves no foreign scheduler: put diffusers' own back before,
    `pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)`.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: Generator | list[Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from `sample`, (B, …) at `timestep`, to the level that `step_rule` says (eq. 12).

        eta, use_clipped_model_output: None is the config's
        generator: one torch.Generator, or a list with one for each sample; variance_noise: the noise itself. Either is
        used where eta > 0, and neither means the global generator.

        Computes in float32, float64 for such samples, and returns the sample's dtype. An int, or an element of
        `timesteps`, never waits for the device; another tensor there does.
        """
        eta = self.config.eta if eta is None else eta
        if use_clipped_model_output is None:
            use_clipped_model_output = self.config.use_clipped_model_output
        check_numbers(eta=eta)
        alpha_bar, alpha_bar_prev = self._levels(timestep)
        x_t, output, dtype = as_computed(sample, model_output)
        x0, eps = self._predict(x_t, output, alpha_bar)
        if use_clipped_model_output:
            eps = eps_from_x0(x_t, x0, alpha_bar)
        scale = 1.0
        if self.config.sigma == "large":
            (scale,) = Levels.of((0,), (alpha_bar,), (alpha_bar_prev,), eta, "large").noise_scale
        noise = scale * self._noise(x_t, generator, variance_noise) if eta > 0 else 0.0
        prev = ddim_step(x0, eps, alpha_bar_prev, ddim_sigma(alpha_bar, alpha_bar_prev, float(eta)), noise)
        found = DDIMSchedulerOutput(prev.to(dtype), x0.to(dtype))
        return found if return_dict else found.to_tuple()

    def _predict(self, x_t: Tensor, output: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor]:
        """(x0, eps), x0 limited as the config says; thresholding displaces clipping, as in diffusers."""
        c = self.config
        if alpha_bar == 0 and c.prediction_type == "epsilon" and (c.thresholding or c.clip_sample):
            # The limit of x0 = (x_t − √(1 − ᾱ) eps)/√ᾱ as ᾱ falls to 0: as large as can be, until it is limited.
            x0, eps = (x_t - output).sign() * torch.finfo(x_t.dtype).max, output
        else:
            x0, eps = predict(output, x_t, alpha_bar, KINDS[c.prediction_type])
        quantile = c.dynamic_thresholding_ratio if c.thresholding else None
        return limit_x0(x0, c.clip_sample and c.clip_sample_range, quantile, c.sample_max_value), eps

    @staticmethod
    def _noise(x_t: Tensor, generator: Generator | list[Generator] | None, given: Tensor | None) -> Tensor:
        """The noise of a step, like x_t: as given, or drawn."""
        if given is None:
            if isinstance(generator, list | tuple) and len(generator) == 1:
                generator = generator[0]
            drawn = x_t.dtype  # as diffusers: a seed means something else in float64
            return noise_source(len(x_t), generator).normal(x_t.shape, x_t.device, x_t.dtype, drawn)
        if generator is not None:
            raise ValueError("generator and variance_noise are both given: give one of them")
        if given.shape != x_t.shape:
            raise ValueError(f"variance_noise has shape {tuple(given.shape)}, but sample {tuple(x_t.shape)}")
        return given.to(x_t)


def as_computed(sample: Tensor, output: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """(sample, output, the dtype to return), both in float32 at least. ValueError unless they have one shape."""
    if sample.shape != output.shape:
        learned = sample.ndim > 1 and output.ndim > 1 and output.shape[1] == 2 * sample.shape[1]
        raise ValueError(
            f"model_output has shape {tuple(output.shape)}, but sample {tuple(sample.shape)}: make them agree"
            + (f" (a learned variance comes after the prediction: give model_output[:, :{sample.shape[1]}])" * learned)
        )
    dtype = torch.result_type(sample, output)
    computed = torch.promote_types(dtype, torch.float32)
    dtype = dtype if dtype.is_floating_point else computed
    return sample.to(computed), output.to(computed), dtype
