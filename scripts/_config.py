"""From a config file and flags to a picture size and a sampler, checked before anything is loaded.

The `sampler:` section of a config names the sampler and its options:

    sampler:
      target: ldm.sampling.DDIMSampler
      params:                             # arguments of the sampler's constructor and of its `sample`, by their names
        S: 50                             # --ddim_steps
        eta: 0.0                          # --ddim_eta
        unconditional_guidance_scale: 5.0 # --scale

A flag goes before the config, the config before CompVis' defaults (50, 0.0, 7.5).
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _values import typed
from _yaml import check_references, read_yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))  # a checkout's scripts use the checkout's ldm, installed or not

BUNDLED_CONFIG = ROOT / "configs" / "shapes.yaml"
BUNDLED_CKPT = ROOT / "ldm" / "assets" / "shapes.safetensors"
SAMPLER = "ldm.sampling.DDIMSampler"
DEFAULTS = {"S": 50, "eta": 0.0, "unconditional_guidance_scale": 7.5}
FLAGS = {"ddim_steps": "S", "ddim_eta": "eta", "scale": "unconditional_guidance_scale"}
# What a script gives to `sample` itself, and what cannot be written in YAML.
_NOT_OPTIONS = frozenset(
    "self model schedule batch_size shape conditioning unconditional_conditioning image_conditioning seeds generator "
    "callback img_callback verbose normals_sequence mask x0 x_T init strength score_corrector corrector_kwargs "
    "progress device".split()
)
_SECTIONS = ("model", "sampler", "precision")  # others are of the training
_REFERENCE = re.compile(r"\$\{[\s.\[]*([\w-]+)")  # the first name of ${a.b}, or of ${..a.b}
_RESOLVER = re.compile(r"\$\{(?!\s*[\w.\[\]-]+\s*\})[^}]*\}?")  # every ${…} but a plain reference, ${a.b}


def load_config(source: str | Path | Mapping[str, Any] | None, overrides: Iterable[str] = ()):
    """A YAML file (None: the bundled model's; a name as of `find`) or mapping, with `key=value` overrides, as an
    OmegaConf node of _SECTIONS and what these refer to; `sampler` and `precision` are there, whatever was given.

    ValueError for what cannot be a config, and for OmegaConf's resolvers: configs come from strangers, and
    `${oc.env:…}` would put the user's environment into the pictures' settings.
    """
    source = BUNDLED_CONFIG if source is None else source
    name = "config of the checkpoint" if isinstance(source, Mapping) else f"config {str(source)!r}"
    try:
        return _load(source, name, overrides)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply to be a model's") from error


def _load(source: str | Path | Mapping[str, Any], name: str, overrides: Iterable[str]):
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.create(dict(source)) if isinstance(source, Mapping) else read_yaml(find(source))
    if not isinstance(config, DictConfig) or OmegaConf.to_container(config).get("model") is None:
        raise ValueError(f"{name} has no 'model' section with target and params")
    config = OmegaConf.merge({"sampler": {"target": SAMPLER, "params": {}}, "precision": "auto"}, config)
    _refuse_resolvers(_used(config), name)
    for override in overrides:
        _override(config, override)
        _refuse_resolvers(_used(config), f"override {override!r}")
    config = _used(config)
    check_references(OmegaConf.to_container(config), name)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from error
    _refuse_resolvers(config, name)  # references can put one together
    if missing := OmegaConf.missing_keys(config):
        raise ValueError(f"{name} leaves {min(missing)} open (???); set it, as in {min(missing)}=VALUE")
    for section in ("model", "sampler"):
        _check_section(config[section], section)
    return config


def find(name: str | Path) -> Path:
    """The file that --config names: its path, or the name of a released model's config, as txt2img.py prints it."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise IsADirectoryError(f"config {str(path)!r} is a folder; a diffusers folder goes to --ckpt, alone")
    from ldm.checkpoint import config_path

    try:
        return config_path(str(name))
    except ValueError:
        remedy = "give the path of a model's YAML with --config, or a name such as stable-diffusion/v1-inference"
        raise FileNotFoundError(f"config {str(path)!r} does not exist; {remedy}") from None


def _used(config):
    """The sections that are used, and those that they refer to: what else a training wrote is not looked at."""
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config)
    names = [name for name in _SECTIONS if name in raw]
    for name in names:  # which grow
        names += [found for found in set(_REFERENCE.findall(repr(raw[name]))) if found in raw and found not in names]
    return OmegaConf.create({name: raw[name] for name in names})


def _refuse_resolvers(config, where: str) -> None:
    from omegaconf import OmegaConf

    if found := _RESOLVER.search(repr(OmegaConf.to_container(config))):
        raise ValueError(
            f"{where}: {found[0]} asks for a computed value, which could read your environment, so it is refused; "
            "write the value itself, or refer to another of the config, as in ${model.params.channels}"
        )


def _check_section(section, name: str) -> None:
    """ValueError unless it, and all below it, can say what to build: `target` is text, `params` a mapping."""
    if not isinstance(section, Mapping):
        raise ValueError(f"{name} is {section!r}; give it a target and params")
    for key, value in section.items():
        if key == "target" and not (isinstance(value, str) and value):
            raise ValueError(f"{name}.target is {value!r}; give the dotted path of a class, as in {SAMPLER}")
        if key == "params" and not isinstance(value, Mapping | None):
            raise ValueError(f"{name}.params is {value!r}; give a mapping, as in {name}.params.NAME=VALUE")
        if isinstance(value, Mapping):
            _check_section(value, f"{name}.{key}")


def _override(config, override: str) -> None:
    """Set one value; only `params` take new keys (their constructors know which exist), so a typo cannot pass."""
    from omegaconf import DictConfig

    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ValueError(
            f"{override!r}: an override is KEY=VALUE, as in sampler.params.eta=0.5; a text to draw is --prompt"
        )
    names = key.split(".")
    node = config
    for k, name in enumerate(names):
        where = ".".join(names[:k])
        if not isinstance(node, DictConfig):
            raise ValueError(f"override {override!r}: {where!r} is a value of the config, nothing lies below it")
        if name not in node and not (k == len(names) - 1 and k and names[k - 1] == "params"):
            hint = _suggest(name, list(node))
            raise ValueError(f"override {override!r}: {where or 'the config'} has no {name!r}{hint}")
        node = node.get(name)
    try:
        config.merge_with_dotlist([override])
    except Exception as error:  # whatever the YAML parser and OmegaConf raise for a value that they cannot read
        raise ValueError(f"override {override!r}: {str(error).splitlines()[0]}") from error


def _suggest(name: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (there are: {', '.join(map(str, choices))})"


def of_model(config, key: str, kind: Any) -> Any:
    """model.params.KEY of a config, None where it is not there; ValueError where it is of another kind."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(config, f"model.params.{key}")
    return None if value is None else typed(f"model.params.{key}", value, kind)


def timesteps(config) -> int | None:
    """T, where it is known before the model is built: what the config says, else the default of a class that is ours
    (another class may have another one). Betas that are given say it by their number, to the model."""
    if of_model(config, "given_betas", Any) is not None:
        return None
    ours = (config.model.get("target") or "").startswith("ldm.models.diffusion.ddpm.")
    said = of_model(config, "timesteps", int)
    return 1000 if said is None and ours else said


def latent_shape(config, H: int | None, W: int | None, C: int | None, f: int | None) -> tuple[int, int, int]:
    """(C, H / f, W / f), the shape of the latents of a picture of H×W pixels; None takes what the config says.

    ValueError for sizes that are not a multiple of `multiple`.
    """
    C, f = scales(config, C, f)
    step = multiple(config, f)
    shape = [C]
    for flag, value, own in zip("HW", (H, W), own_size(config, f), strict=True):
        if value is None and own is None:
            raise ValueError(f"the config does not say the picture's size (model.params.image_size); give --{flag}")
        value = own if value is None else value
        if value % step:
            near = math.ceil(value / step) * step
            raise ValueError(f"--{flag} {value}: this model takes multiples of {step}, such as {near}")
        shape.append(value // f)
    return tuple(shape)


def scales(config, C: int | None, f: int | None) -> tuple[int, int]:
    """(latent channels, how many pixels a side make one latent), where --C and --f agree with the config."""
    levels = of_model(config, "first_stage_config.params.ddconfig.ch_mult", Sequence[int])
    f = _agreed("f", f, 2 ** (len(levels) - 1) if levels else None, "a downsampling factor of {}")
    return _agreed("C", C, of_model(config, "channels", int), "{} latent channels"), f


def multiple(config, f: int) -> int:
    """What divides the sides of all pictures that the network takes: each of its levels halves the latents."""
    return f * 2 ** (len(of_model(config, "unet_config.params.channel_mult", Sequence[int]) or (1, 2, 4, 8)) - 1)


def own_size(config, f: int) -> tuple[int, int] | tuple[None, None]:
    """(H, W) in pixels that the model was made for, where the config says it."""
    side = of_model(config, "image_size", int | tuple[int, int])
    sides = (side, side) if isinstance(side, int) else side
    return (None, None) if sides is None else (sides[0] * f, sides[1] * f)


def _agreed(flag: str, given: int | None, known: int | None, what: str) -> int:
    if given is None and known is None:
        raise ValueError(f"the config does not say what --{flag} is; give the flag")
    if None not in (given, known) and given != known:
        raise ValueError(f"--{flag} {given}: this model has {what.format(known)}; leave the flag out")
    return known if given is None else given


# ------------------------------------------------------------------------------------------------------------ sampler


def sampler_class(config, opt: argparse.Namespace | None = None) -> type:
    """The sampler that a flag such as --plms, or else the config, names."""
    from ldm.util import get_obj_from_str

    target = getattr(opt, "sampler", None) or config.sampler.get("target", SAMPLER)
    sampler = get_obj_from_str(target)
    if not callable(getattr(sampler, "sample", None)):
        raise ValueError(f"sampler.target {target!r} has no `sample`; a sampler is {SAMPLER}")
    return sampler


def sampler_options(
    config, sampler: type, opt: argparse.Namespace, defaults: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the constructor takes and what `sample` takes, of the config's `sampler.params` and the flags; `defaults`
    go before CompVis', and both behind these."""
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(config.sampler).get("params") or {}
    flags = {FLAGS[flag]: value for flag, value in vars(opt).items() if flag in FLAGS and value is not None}
    built = _options_of(sampler.__init__)
    known = _options_of(sampler.sample) | built
    options = {**DEFAULTS, **(defaults or {}), **given, **flags}
    for key, value in options.items():
        if key not in known:
            hint = f"; it is called {FLAGS[key]!r} there" if key in FLAGS else _suggest(key, sorted(known))
            raise ValueError(f"sampler.params has {key!r}, which {sampler.__name__} does not know{hint}")
        typed(f"sampler.params.{key}", value, known[key])
    return (
        {key: value for key, value in options.items() if key in built},
        {key: value for key, value in options.items() if key not in built},
    )


def _options_of(function: Callable) -> dict[str, Any]:
    """What may be set of a function's parameters, with the annotation of each."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # of a name that is imported for type checkers alone
        hints = {}
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind in kinds and p.name not in _NOT_OPTIONS}
