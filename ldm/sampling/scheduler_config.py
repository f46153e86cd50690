"""A scheduler's options: kept, read from diffusers' scheduler_config.json and from others' words, and written back."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .arguments import refuse_unknown, warn
from .schedule import make_beta_schedule, rescale_zero_terminal_snr

FILE = "scheduler_config.json"

# The options that diffusers' schedulers do not have. A config mentions them only where they differ from these, so that
# diffusers reads the others without a word, and says of these that it ignores them.
OURS = {"step_rule": "next", "eta": 0.0, "use_clipped_model_output": False, "sigma": "small"}


class Word(NamedTuple):
    """What a word of another vocabulary means: the option, and its values where they have other names too."""

    option: str
    values: Mapping[str, Any] = {}


# Their word → ours. This is the one place that knows them; ours are diffusers'.
VOCABULARIES: dict[str, dict[str, Word]] = {
    "bumblebee": {
        "num_train_steps": Word("num_train_timesteps"),
        "beta_schedule": Word(
            "beta_schedule", {"linear": "linear", "quadratic": "scaled_linear", "squared_cosine": "squaredcos_cap_v2"}
        ),
        "prediction_type": Word("prediction_type", {"noise": "epsilon", "angular_velocity": "v_prediction"}),
        "alpha_clip_strategy": Word("set_alpha_to_one", {"one": True, "alpha_zero": False}),
        "timesteps_offset": Word("steps_offset"),
        "clip_denoised_sample": Word("clip_sample"),
        "rederive_noise": Word("use_clipped_model_output"),
    },
    "compvis": {
        "timesteps": Word("num_train_timesteps"),
        "linear_start": Word("beta_start"),
        "linear_end": Word("beta_end"),
        "beta_schedule": Word(
            "beta_schedule", {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
        ),
        "parameterization": Word("prediction_type", {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}),
        "given_betas": Word("trained_betas"),
    },
}

# What CompVis' DDIMSampler does where a config says nothing, and diffusers' defaults differ.
COMPVIS = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}

# The words of diffusers' other schedulers for these models. They choose a solver, or a noise that DDIM's eta chooses…
ELSEWHERE = frozenset(
    """algorithm_type corrector_order disable_corrector euler_at_final final_sigmas_type flow_shift interpolation_type
    lambda_min_clipped lower_order_final original_inference_steps predict_x0 predictor_order rho s_noise sigma_data
    sigma_schedule skip_prk_steps solver_order solver_p solver_type tau_func time_shift_type timestep_scaling
    variance_type""".split()
)
# …or, unless they have these values, other noise levels than this scheduler will visit.
OTHER_LEVELS: dict[str, Any] = {
    "shift_terminal": None,
    "sigma_max": None,
    "sigma_min": None,
    "snr_shift_scale": 1.0,
    "timestep_type": "discrete",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": False,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
}


def _read_only(self: SchedulerConfig, *_: Any, **__: Any) -> NoReturn:
    raise TypeError("a scheduler's config is read-only: make another scheduler with from_config(config, name=value)")


class SchedulerConfig(dict):
    """Options by name, as items and as attributes; read-only. A dict, because diffusers' from_config asks for one."""

    def __missing__(self, name: str) -> Any:
        return OURS[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the scheduler's config has no option {name!r}") from None

    def __reduce__(self) -> tuple:  # a dict is copied item by item, which this one refuses
        return SchedulerConfig, (dict(self),)

    __setattr__ = __setitem__ = __delitem__ = __delattr__ = __ior__ = _read_only
    update = setdefault = pop = popitem = clear = _read_only

    def to_json(self) -> str:
        """The text of diffusers' scheduler_config.json."""

        def plain(value: Any) -> Any:
            return value.tolist() if hasattr(value, "tolist") else list(value)

        values = {name: value for name, value in self.items() if name != "_use_default_values"}
        return json.dumps(values, indent=2, sort_keys=True, default=plain) + "\n"


def keeps_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates an __init__ so that all its arguments are in `self.config` before it runs.

    `_use_default_values` lists those that were not given: another scheduler's from_config puts its own defaults there.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        options = dict(list(bound.arguments.items())[1:])  # without self
        default = [name for name in options if name not in given and name not in OURS]
        options["_class_name"] = type(self).__name__
        self._internal_dict = options | ({"_use_default_values": default} if default else {})
        init(self, *args, **kwargs)

    return wrapped


def translated(
    config: Mapping[str, Any], vocabulary: str | None, options: Collection[str], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options in our words, the rest that is to be kept) of a config in diffusers', Bumblebee's or CompVis' words.

    Bumblebee's are told by their names; CompVis' "linear" is not diffusers', so theirs only if `vocabulary` says so.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config is a {type(config).__name__}: give a mapping, such as another scheduler's config "
            "(from_pretrained reads a folder)"
        )
    if vocabulary not in (None, "diffusers", *VOCABULARIES):
        choices = ", ".join(("diffusers", *VOCABULARIES))
        raise ValueError(f"vocabulary = {vocabulary!r}: choose one of {choices}")
    words = VOCABULARIES["compvis" if vocabulary == "compvis" else "bumblebee"]
    not_given = config.get("_use_default_values") or ()
    found: dict[str, Any] = dict(COMPVIS) if vocabulary == "compvis" else {}
    rest, said = {}, {}
    for name, value in config.items():
        if name in words or name in options:
            option, value = _meaning(name, value, words)
            if option in said:
                raise TypeError(f"{where}: {said[option]} and {name} both say {option}; give one of them")
            said[option] = name
            if name not in not_given:
                found[option] = value
        elif name != "_use_default_values" and name not in not_given:
            rest[name] = value
    _check_rest(rest, {*options, *words}, where)
    return found, rest


def _meaning(name: str, value: Any, words: Mapping[str, Word]) -> tuple[str, Any]:
    """(option, value) in our words."""
    option, values = words.get(name, Word(name))
    if not values or not isinstance(value, str):
        return option, value
    if words is VOCABULARIES["bumblebee"] and name == option:  # diffusers' word too, with values of its own
        return option, values.get(value, value)
    if value not in values:
        hint = "; for another schedule give trained_betas" if option == "beta_schedule" else ""
        raise ValueError(f"{name} = {value!r}: choose one of {', '.join(values)}{hint}")
    return option, values[value]


def _check_rest(rest: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """TypeError for unknown names, a warning for what would change the numbers if it were obeyed."""
    unknown = [n for n in rest if not n.startswith("_") and n not in ELSEWHERE and n not in OTHER_LEVELS]
    if "_class_name" in rest:  # a file of diffusers', perhaps of a newer one
        if unknown:
            warn(f"{', '.join(unknown)} in the config has no effect: {where} does not know it")
    else:
        refuse_unknown(unknown, known, where)
    moved = [f"{n} = {rest[n]!r}" for n, unmoved in OTHER_LEVELS.items() if n in rest and rest[n] != unmoved]
    if moved:
        warn(f"{', '.join(moved)} in the config has no effect: {where} takes its noise levels from timestep_spacing")


def read_config(folder: str | PathLike[str], subfolder: str | None = None) -> dict[str, Any]:
    """The scheduler_config.json at `folder` (or in it, or in its sub-folder "scheduler") as a dict."""
    path = Path(folder) / (subfolder or "")
    places = [path] if path.is_file() else [path / FILE, *([path / "scheduler" / FILE] if subfolder is None else [])]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"there is no {FILE} at {str(path)!r}: give a folder that holds one, a pipeline's folder, or the file "
            "itself (nothing is downloaded: a name on a hub must be fetched first)"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON's and UTF-8's errors are both
        raise ValueError(f"{file} is not JSON ({error}): save the scheduler again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, but a scheduler's config is an object")
    return config


def write_config(config: SchedulerConfig, folder: str | PathLike[str]) -> None:
    """Write scheduler_config.json into `folder`, which is made if it is not there."""
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: give a folder for {FILE}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(config.to_json(), encoding="utf-8")


SPACINGS = ("leading", "trailing", "linspace")
KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}  # prediction_type → the core's word
BETA_SCHEDULES = {"linear": "sqrt_linear", "scaled_linear": "linear", "squaredcos_cap_v2": "cosine"}
STEP_RULES = ("next", "stride")


def check_config(c: Mapping[str, Any]) -> None:
    """ValueError for an option's value that cannot be, with the choices."""

    def number(name: str, fits: Callable[[float], bool], remedy: str) -> None:
        value = c[name]
        if not isinstance(value, int | float | np.number) or not fits(value):
            raise ValueError(f"{name} = {value!r}: {remedy}")

    for name, choices in (
        ("beta_schedule", BETA_SCHEDULES),
        ("prediction_type", KINDS),
        ("timestep_spacing", SPACINGS),
        ("step_rule", STEP_RULES),
        ("sigma", ("small", "large")),
    ):
        if not isinstance(c[name], str) or c[name] not in choices:
            raise ValueError(f"{name} = {c[name]!r}: choose one of {', '.join(choices)}")
    flags = ("clip_sample", "set_alpha_to_one", "thresholding", "rescale_betas_zero_snr", "use_clipped_model_output")
    for name in flags:
        if not isinstance(c[name], bool | int | np.bool_) or c[name] not in (True, False):
            raise ValueError(f"{name} = {c[name]!r}: choose True or False")
    for name in ("beta_start", "beta_end"):
        number(name, lambda v: -np.inf < v < np.inf, "give a number, such as 0.02")
    given = c["trained_betas"]
    if given is not None and (isinstance(given, str) or not hasattr(given, "__len__")):
        raise ValueError(f"trained_betas = {given!r}: give a list of numbers, one for each timestep")
    number("num_train_timesteps", lambda v: 1 <= v <= 1e6 and v % 1 == 0, "give a whole number from 1 to a million")
    number("steps_offset", lambda v: v >= 0 and v % 1 == 0, "give a whole number of timesteps, 0 or more")
    number("eta", lambda v: 0 <= v < float("inf"), "choose 0 (deterministic) to 1 (as much noise as DDPM)")
    number("clip_sample_range", lambda v: v > 0, "give the limit of x0 as a positive number")
    number("dynamic_thresholding_ratio", lambda v: 0 < v <= 1, "give a quantile, above 0 and up to 1")
    number("sample_max_value", lambda v: v > 0, "give the most that x0 is divided by, a positive number")


def make_betas(c: Any) -> np.ndarray:
    """The betas that a config asks for, (T,) in float64."""
    if c.trained_betas is not None:
        betas = np.array([float(beta) for beta in c.trained_betas])
    else:
        betas = make_beta_schedule(
            BETA_SCHEDULES[c.beta_schedule], int(c.num_train_timesteps), float(c.beta_start), float(c.beta_end)
        )
    if not (len(betas) and np.isfinite(betas).all() and betas.min() >= 0):
        raise ValueError("betas must be finite and at least 0: see trained_betas, or beta_start and beta_end")
    if betas.max() > 1:  # not an error yet: the timesteps before are sound
        warn(f"betas reach {betas.max():.4g}; from the first above 1 on, no timestep can be visited")
    if c.rescale_betas_zero_snr:
        if len(betas) < 2 or not betas[1:].any():
            raise ValueError("rescale_betas_zero_snr needs two noise levels or more: leave it out")
        if betas[:-1].max() >= 1 or betas[-1] > 1:
            raise ValueError("rescale_betas_zero_snr needs betas below 1: see trained_betas, or beta_end")
        betas = rescale_zero_terminal_snr(betas) if betas[-1] < 1 else betas
    return betas
