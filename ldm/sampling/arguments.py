"""What a caller may say, by name: CompVis' arguments and the options beyond them."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .guidance import Conditioning
from .timesteps import WITH_OFFSET
from .values import as_interval, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `DDIMSampler.sample` takes beyond CompVis' arguments, and the constructor as defaults for it.

    The timesteps and their noise levels, for `make_schedule`:
      ddim_discretize    "uniform", "compvis", "quad", "leading", "trailing", "linspace", "time_uniform" or
                         "logsnr" (timesteps.py)
      steps_offset       the first timestep, where not the spacing's own: 0 of "leading", 1 of "uniform", "compvis"
                         and "quad"; the other spacings have none
      timesteps          a list of S timesteps, in either order, instead of a spacing
      final_alpha        ᾱ where the last step ends: "first" (that of timestep 0, CompVis) or "one" (no noise at all)
      betas              T betas instead of the model's
      zero_terminal_snr  rescale the betas so that the last ᾱ is 0 (Lin et al. 2023, algorithm 1): for v and x0 models
      sigma              "small", η times DDPM's posterior (eq. 16), or "large", DDPM's σ̂ = √(1 − ᾱ/ᾱ_prev), for η = 1
    The noise:
      generator          one torch.Generator, or a list with one for each sample
      seeds              one int for each sample: a sample is then the same alone and in any batch
      noise_device       where noise is drawn: "cpu" makes devices agree (for seeds that is the default)
    The model's prediction:
      guidance_rescale   φ in [0, 1] of Lin et al. 2023: 0.7 is usual with v models and zero terminal SNR
      guidance_interval  (lo, hi) in timesteps, such as (200, 800): guide only there (Kynkäänniemi et al. 2024)
      image_conditioning, image_guidance_scale  what a picture says without the text, and the scale of that: guidance
                         with two scales (InstructPix2Pix; Brooks et al. 2023, eq. 3); 1.5 is usual. Outside of
                         guidance_interval it is 1, too
      batch_guidance     False asks the model for each conditioning after the other: half the memory
      clip_x0            True or a limit: clamp the predicted x0 to ±1 or ±limit at each step
      dynamic_threshold_max  the most that `dynamic_threshold` divides x0 by, 1 or more; no limit unless given
      rederive_eps       derive eps again from x0 as limited or quantised, so that the two agree about x_t (GLIDE)
    Where a run starts (SDEdit, Meng et al. 2022):
      init, strength     latents (B, …) to start from, noised to the level of the last int(strength · S) of the S steps,
                         which are those taken, at least one; 0 < strength ≤ 1, and 1 leaves the least of `init`
    The rest:
      gradual_mask       what is m in the mask, between 0 and 1, is kept in the first m · S steps (Levin & Fried 2023);
                         else x0 and what is sampled are mixed there, at each step
      blend_final        with a mask: put x0 back into the known region, exactly, after the last step
      progress           show a bar; None does what `verbose` says
    """

    ddim_discretize: str = "uniform"
    timesteps: Sequence[int] | None = None
    final_alpha: str = "first"
    steps_offset: int | None = None
    betas: Sequence[float] | None = None
    zero_terminal_snr: bool = False
    sigma: str = "small"
    generator: Generator | Sequence[Generator] | None = None
    seeds: Sequence[int] | None = None
    noise_device: torch.device | str | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    image_conditioning: Conditioning = None
    image_guidance_scale: float = 1.0
    batch_guidance: bool = True
    clip_x0: bool | float = False
    dynamic_threshold_max: float = math.inf
    rederive_eps: bool = False
    init: Tensor | None = None
    strength: float = 1.0
    gradual_mask: bool = False
    blend_final: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.final_alpha not in ("first", "one"):
            raise ValueError(f'final_alpha = {self.final_alpha!r}: choose "first" (ᾱ of timestep 0) or "one"')
        if self.sigma not in ("small", "large"):
            raise ValueError(f'sigma = {self.sigma!r}: choose "small" (eta decides) or "large" (DDPM\'s σ̂)')
        for name in ("zero_terminal_snr", "rederive_eps", "batch_guidance", "gradual_mask", "blend_final"):
            if getattr(self, name) not in (True, False) or isinstance(getattr(self, name), float):
                raise ValueError(f"{name} = {getattr(self, name)!r}: choose True or False")
        numbers = ("steps_offset", "guidance_rescale", "image_guidance_scale", "clip_x0", "dynamic_threshold_max",
                   "strength")  # fmt: skip
        check_numbers(**without_none(**{name: getattr(self, name) for name in numbers}))
        if self.guidance_interval is not None:
            as_interval(self.guidance_interval)

    def updated(self, given: Mapping[str, Any], where: str) -> Options:
        """These options with those given, which displace what they exclude; None keeps. TypeError for unknown names."""
        names = names_of(Options)
        refuse_unknown([name for name in given if name not in names], names, where)
        given = without_none(**select(given, names))
        if "timesteps" in given and "ddim_discretize" in given:
            warn("ddim_discretize has no effect: timesteps are given")
        displaced = {partner: None for name, partner in EXCLUDES.items() if name in given}
        options = dataclasses.replace(self, **displaced | given)
        if idle := idle_offset(options.steps_offset, options.timesteps, options.ddim_discretize):
            if "steps_offset" in given:
                warn(idle)
            options = dataclasses.replace(options, steps_offset=None)
        return options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One run down the noise levels, in CompVis' words: what `sample`, `ddim_sampling` and `decode` ask of the loop."""

    x_T: Tensor | None = None
    mask: Tensor | None = None
    x0: Tensor | None = None
    normals_sequence: Sequence[Tensor] | None = None
    unconditional_guidance_scale: float = 1.0
    unconditional_conditioning: Conditioning = None
    ucg_schedule: Sequence[float] | None = None
    dynamic_threshold: float | None = None
    quantize_x0: bool = False
    temperature: float = 1.0
    noise_dropout: float = 0.0
    score_corrector: Any = None
    corrector_kwargs: dict[str, Any] | None = None
    use_original_steps: bool = False


# What an option displaces where that one was said earlier, such as in the constructor.
EXCLUDES = {"ddim_discretize": "timesteps", "seeds": "generator", "generator": "seeds"}

# The options that `make_schedule` takes: they are spent before a run starts.
SCHEDULE = ("ddim_discretize", "steps_offset", "timesteps", "final_alpha", "betas", "zero_terminal_snr", "sigma")

# The options that `encode` takes.
ENCODES = {
    "guidance_rescale", "guidance_interval", "image_conditioning", "image_guidance_scale", "batch_guidance", "progress",
}  # fmt: skip

# Keywords that callers of CompVis' sampler pass to `sample`, which swallowed them: why they did nothing.
SWALLOWED = {
    "quantize_denoised": "sample calls it quantize_x0",
    "return_intermediates": "sample always returns them",
    "ddim_use_original_steps": "it is an argument of ddim_sampling",
    "use_original_steps": "it is an argument of decode and encode",
    "repeat_noise": "it is an argument of p_sample_ddim",
    "ddim_steps": "sample calls it S",
    "ddim_num_steps": "sample calls it S",
    "ddim_eta": "sample calls it eta",
    "ddim": "it chooses a sampler, and this is one",
}


def refuse_unknown(unknown: Collection[str], known: Collection[str], where: str) -> None:
    """TypeError that names an unknown keyword and those like it; a warning if CompVis' callers are known to pass it."""
    for name in unknown:
        if name in SWALLOWED:
            warn(f"{name} has no effect on {where}, as in CompVis: {SWALLOWED[name]}")
            continue
        close = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it takes {', '.join(sorted(known))}"
        raise TypeError(f"{where} has no argument {name!r}: {hint}")


def idle_offset(steps_offset: int | None, timesteps: Sequence[int] | None, spacing: str) -> str | None:
    """What to warn of where steps_offset does nothing."""
    if not steps_offset or (timesteps is None and spacing in WITH_OFFSET):
        return None
    why = f'ddim_discretize = "{spacing}" has none' if timesteps is None else "timesteps are given"
    return f"steps_offset has no effect: {why}"


def names_of(arguments: type) -> list[str]:
    return [field.name for field in dataclasses.fields(arguments)]


def select(arguments: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Those of the arguments that go by one of the names."""
    return {name: value for name, value in arguments.items() if name in names}


def without_none(**arguments: Any) -> dict[str, Any]:
    """The arguments that were given."""
    return {name: value for name, value in arguments.items() if value is not None}


def differs(value: Any, default: Any) -> bool:
    """Whether an option is not at its default: of another type, if not of another value (arrays compare as neither)."""
    return type(value) is not type(default) or value != default


def warn(message: str) -> None:
    """A UserWarning that points at the caller's line: the first outside this package and torch's decorators."""
    frame, depth = inspect.currentframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith((f"{__package__}.", "torch.")):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)
