"""What diffusers' schedulers have in common: a config, T noise levels, and the timesteps that a run visits."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .arguments import warn
from .schedule import q_sample
from .scheduler_config import (
    FILE,
    OURS,
    SchedulerConfig,
    check_config,
    keeps_config,
    make_betas,
    read_config,
    translated,
    write_config,
)
from .timesteps import given_timesteps, make_timesteps
from .transition import ddim_sigma

Self = TypeVar("Self", bound="SchedulerBase")


class SchedulerBase:
    """Noise levels in float64 on the host, where steps read them; `alphas_cumprod` and the like are copies in float32.

    Its options are those of DDIMScheduler. It is no subclass of diffusers' mixins: nothing of diffusers is needed.
    """

    order = 1  # model calls for each timestep
    init_noise_sigma = 1.0  # standard deviation of the noise that a run starts from
    config_name = FILE
    _ascending = False  # in which order `timesteps` runs
    _idle: tuple[str, ...] = ()  # options without effect

    @keeps_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        *,
        step_rule: str = "next",
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        sigma: str = "small",
    ):
        check_config(self.config)
        betas = make_betas(self.config)
        self._settle(len(betas))
        alpha_bar = np.where(np.maximum.accumulate(betas) > 1, np.nan, np.cumprod(1 - betas))
        self.betas = torch.as_tensor(betas, dtype=torch.float32)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = torch.as_tensor(alpha_bar, dtype=torch.float32)
        self._alpha_bar = alpha_bar
        self._final = 1.0 if set_alpha_to_one else float(alpha_bar[0])
        self.num_inference_steps: int | None = None
        self._visit(np.arange(len(betas)))

    def _settle(self, total: int) -> None:
        """Make the config say what is done: as many timesteps as betas, no option that is idle. Warn of those given."""
        given = set(self.config) - {*self.config.get("_use_default_values", ())}
        for name in self._idle:
            if name in given and self.config[name]:
                warn(f"{name} has no effect on {type(self).__name__}: such a step cannot be undone")
            self.register_to_config(**{name: type(self.config[name])(0)})
        said = self.config.num_train_timesteps
        if total != said:
            if "num_train_timesteps" in given:
                warn(f"num_train_timesteps = {said} has no effect: there are {total} trained_betas")
            self.register_to_config(num_train_timesteps=total)

    @property
    def config(self) -> SchedulerConfig:
        """The options, read-only, as attributes and as items."""
        return self._config

    @property
    def _internal_dict(self) -> SchedulerConfig:
        return self._config

    @_internal_dict.setter  # diffusers' Stable Diffusion pipelines repair old configs by assigning this
    def _internal_dict(self, config: Mapping[str, Any]) -> None:
        self._config = SchedulerConfig({n: v for n, v in config.items() if n not in OURS or v != OURS[n]})

    def register_to_config(self, **values: Any) -> None:
        """Put values into the config: what is to be saved along, or what the next step is to obey."""
        self._internal_dict = self._config | values

    @classmethod
    def from_config(
        cls: type[Self], config: Mapping[str, Any], *, vocabulary: str | None = None, **overrides: Any
    ) -> Self:
        """A scheduler with another's config, or with a mapping in diffusers' or Bumblebee's words, and `overrides`.

        CompVis' words (linear_start, timesteps, …) are read with vocabulary="compvis", as their "linear" is diffusers'
        "scaled_linear"; what they leave out is as in CompVis' DDIMSampler. Options of diffusers' other schedulers are
        kept, with a warning if they would change the noise levels. TypeError for unknown names.
        """
        options = list(inspect.signature(cls).parameters)
        named = isinstance(config, Mapping) and "_class_name" in config
        if named and not {"beta_schedule", "trained_betas"} & {*config}:
            raise ValueError(f"config is that of a {config['_class_name']}, which has no betas; DDIM needs them")
        found, rest = translated(config, vocabulary, options, cls.__name__)
        changed, unknown = translated(overrides, None, options, cls.__name__)
        scheduler = cls(**found | changed)
        scheduler.register_to_config(**{**rest, **unknown, "_class_name": cls.__name__})
        return scheduler

    @classmethod
    def from_pretrained(
        cls: type[Self], folder: str | PathLike[str], subfolder: str | None = None, **overrides: Any
    ) -> Self:
        """From a scheduler_config.json: the file, its folder, or a pipeline's folder. Nothing is downloaded."""
        return cls.from_config(read_config(folder, subfolder), **overrides)

    def save_config(self, save_directory: str | PathLike[str]) -> None:
        """Write scheduler_config.json, as diffusers does, into a folder."""
        write_config(self.config, save_directory)

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """The same by diffusers' other name."""
        self.save_config(save_directory)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.config.to_json()}"

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each timestep, (T,). Assigning it changes the levels that steps use."""
        return self._alphas_cumprod

    @alphas_cumprod.setter
    def alphas_cumprod(self, alpha_bar: Tensor) -> None:
        self._alphas_cumprod = alpha_bar
        given = alpha_bar.detach().cpu().double().numpy()
        mine = getattr(self, "_alpha_bar", None)
        if mine is not None and np.array_equal(given, mine.astype(np.float32).astype(np.float64), equal_nan=True):
            return  # only moved: the float64 levels stay
        if mine is not None and self._final == mine[0]:
            self._final = float(given[0])
        self._alpha_bar = given

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """ᾱ where the last step ends: 1, or that of timestep 0. Assigning it changes where."""
        return torch.tensor(self._final)

    @final_alpha_cumprod.setter
    def final_alpha_cumprod(self, alpha_bar: Tensor | float) -> None:
        self._final = float(alpha_bar)

    def _level(self, timestep: int | None) -> float:
        """ᾱ of a timestep; before the first (negative, or None) the final one."""
        if timestep is None or timestep < 0:
            return self._final
        alpha_bar = float(self._alpha_bar[timestep])
        if not 0 <= alpha_bar <= 1:
            raise ValueError(f"ᾱ = {alpha_bar:.4g} at timestep {timestep}: choose betas of at most 1 (see beta_end)")
        return alpha_bar

    def _get_variance(self, timestep: int, prev_timestep: int) -> Tensor:
        """σ² of the step between two timesteps at eta = 1 (Song et al. 2021, eq. 16), under diffusers' name."""
        return torch.tensor(ddim_sigma(self._level(int(timestep)), self._level(int(prev_timestep)), 1.0) ** 2)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The sample as it is: what diffusers' loops call for schedulers that scale it."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t from x0 (Ho et al. 2020, eq. 4), in x0's dtype; `timesteps`: (B,) or (1,), whole numbers below T."""
        alpha_bar = self._levels_of(timesteps, original_samples)
        return q_sample(original_samples, alpha_bar, noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = √ᾱ noise − √(1 − ᾱ) x0 (Salimans & Ho 2022, appendix D), what a v model is trained on."""
        return q_sample(noise, self._levels_of(timesteps, sample), -sample).to(sample.dtype)

    def _levels_of(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """ᾱ at each of the timesteps, to broadcast against `like`, in its dtype (float32 for halves)."""
        t = torch.as_tensor(timesteps)
        if t.is_floating_point() or t.dtype == torch.bool or t.numel() not in (1, len(like)):
            raise ValueError(
                f"timesteps has shape {tuple(t.shape)} and {t.dtype}: give whole numbers, one for each sample"
            )
        t = t.long().reshape(-1, *[1] * (like.ndim - 1))
        if t.device.type == "cpu" and not 0 <= t.min() <= t.max() < len(self):  # elsewhere the look would cost a wait
            raise ValueError(f"timesteps = {t.flatten().tolist()}: choose from 0 to {len(self) - 1}")
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.as_tensor(self._alpha_bar, dtype=dtype, device=like.device)[t.to(like.device)]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose S of the T timesteps by `timestep_spacing`, or give them, in the order in which they are to run."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give num_inference_steps or a list of timesteps, one of them")
        if timesteps is None:
            steps = self._spaced(num_inference_steps)
        else:
            timesteps = timesteps.tolist() if hasattr(timesteps, "tolist") else list(timesteps)
            if not timesteps or (len(timesteps) > 1 and (timesteps[0] < timesteps[-1]) != self._ascending):
                order = "rise" if self._ascending else "fall"
                raise ValueError(f"timesteps = {timesteps}: give one or more, which {order} from each to the next")
            steps = given_timesteps(timesteps, len(timesteps), len(self))
        self.num_inference_steps = len(steps)
        self._visit(steps, device)

    def _spaced(self, s: int) -> np.ndarray:
        """S timesteps, ascending. `steps_offset` moves the leading ones up."""
        c, total = self.config, len(self)
        try:
            s = operator.index(s)
        except TypeError:
            raise TypeError(f"num_inference_steps = {s!r}: give an int from 1 to {total}") from None
        if not 1 <= s <= total:
            raise ValueError(f"num_inference_steps = {s}: choose from 1 to {total}, the timesteps that a model knows")
        return make_timesteps(c.timestep_spacing, s, total, c.steps_offset)

    def _visit(self, steps: np.ndarray, device: torch.device | str | None = None) -> None:
        """Set `timesteps`, and what comes after each of them. `steps`: ascending."""
        steps = np.asarray(steps, dtype=np.int64)
        run = steps if self._ascending else steps[::-1]
        self._timesteps = torch.from_numpy(run.copy()).to(device)
        self._steps = run.tolist()
        self._after: dict[int, int | None] = dict(zip(steps.tolist(), [None, *steps[:-1].tolist()], strict=True))

    @property
    def timesteps(self) -> Tensor:
        """The timesteps in the order in which they run, (S,) int64."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        self._visit(np.unique(timesteps.detach().cpu().numpy()))
        self._timesteps, self._steps = timesteps.contiguous(), timesteps.tolist()

    def _as_int(self, timestep: int | Tensor) -> int:
        """A timestep as an int; one that is an element of `timesteps` without waiting for its device."""
        if isinstance(timestep, Tensor):
            if timestep.numel() != 1:
                raise ValueError(f"timestep has shape {tuple(timestep.shape)}: give one timestep for the whole batch")
            own = self._timesteps
            if timestep.device.type != "cpu" and timestep.device == own.device and timestep.dtype == own.dtype:
                if timestep.untyped_storage().data_ptr() == own.untyped_storage().data_ptr():
                    return self._steps[timestep.storage_offset() - own.storage_offset()]
            timestep = timestep.item()
        try:
            return operator.index(timestep)
        except TypeError:
            raise TypeError(f"timestep = {timestep!r}: give a whole number, an element of `timesteps`") from None

    def _levels(self, timestep: int | Tensor) -> tuple[float, float]:
        """ᾱ at a timestep and where its step ends, by the config's step_rule."""
        if self.num_inference_steps is None:
            raise ValueError("there are no timesteps yet: call set_timesteps(num_inference_steps) before step")
        t = self._as_int(timestep)
        if not 0 <= t < len(self):
            raise ValueError(f"timestep = {t}: choose from 0 to {len(self) - 1}")
        if self.config.step_rule == "stride":
            return self._level(t), self._level(t - len(self) // self.num_inference_steps)
        after = self._after[t] if t in self._after else max((s for s in self._after if s < t), default=None)
        return self._level(t), self._level(after)
