"""Which model a script runs, from --config and --ckpt to a config and an open checkpoint; what the model is told."""

from __future__ import annotations

import argparse
import os.path
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import _config

# Of these many classes the last stands for none: ImageNet's 1000, and one that training drew instead of the label so
# that guidance has something to lead away from (cin256-v2). With any other number the last is a class like the others.
IMAGENET_AND_NONE = 1001
# Classes of models that have a script of their own: the released one's config, and its usual file.
_RELEASED = {
    "LatentDepth2ImageDiffusion": ("stable-diffusion/v2-midas-inference", "512-depth-ema.ckpt"),
    "LatentUpscaleDiffusion": ("stable-diffusion/x4-upscaling", "x4-upscaler-ema.ckpt"),
}
UNGUIDED = {"unconditional_guidance_scale": 1.0, "ucg_schedule": None}
# What models of these conditioning_keys are shown, and the scripts that show it.
_SHOWS = {
    "concat": "one with a hole (scripts/inpaint.py)",
    "hybrid": "one with a hole (scripts/inpaint.py) or a depth map (depth2img.py)",
    "hybrid-adm": "a small one (scripts/upscale.py)",
}
_CLASSES = 1000  # where the config does not say: ClassEmbedder's default


def open_model(opt: argparse.Namespace):
    """(config, checkpoint, what pictures are to tell of both): what --config says, else what the file shows itself to
    be, else the bundled model. The weights are not read yet: they are mapped, and come in when they are used."""
    path = checkpoint_path(opt.config, opt.ckpt)
    own = opt.config is None and opt.ckpt is not None  # the file's own config
    config = None if own else _config.load_config(opt.config, opt.overrides)  # first, as its errors cost nothing

    from ldm.checkpoint import config_path, identify, load_checkpoint

    checkpoint = load_checkpoint(path)
    if own:
        found = identify(checkpoint)
        print(f"{path}: {found if isinstance(found, str) else 'a diffusers folder'}", file=sys.stderr)
        config = _config.load_config(config_path(found) if isinstance(found, str) else found, opt.overrides)
        name = found if isinstance(found, str) else "diffusers"
    else:
        file = _config.BUNDLED_CONFIG if opt.config is None else Path(opt.config)
        name = file.stem if file.is_file() else opt.config
    return config, checkpoint, _told(opt, path, name)


def _told(opt: argparse.Namespace, ckpt: str, config: str) -> dict[str, Any]:
    """Which model drew, for a picture's file: with it and the sampler's options the picture can be made again."""
    path = Path(os.path.abspath(ckpt))  # "." has a name, too; but a link keeps its own: caches name files by hashes
    told: dict[str, Any] = {"model": path.name if path.is_dir() else path.stem, "config": config}
    if opt.ema:
        told["ema"] = True
    if changes := [override for override in opt.overrides if override.startswith(("model.", "model="))]:
        told["overrides"] = changes
    return told


def checkpoint_path(config: str | None, ckpt: str | None) -> str:
    """The weights' file: --ckpt, or the bundled model's where --config names no other model."""
    if ckpt is None and config is not None and _config.find(config).resolve() != _config.BUNDLED_CONFIG:
        raise ValueError(f"--config {config} needs its weights: give --ckpt too")
    if ckpt is None and not _config.BUNDLED_CKPT.is_file():
        raise FileNotFoundError(f"the bundled weights, {_config.BUNDLED_CKPT}, are missing; give --ckpt")
    return str(_config.BUNDLED_CKPT) if ckpt is None else ckpt


def find_trained(resume: str) -> tuple[Path, Path | None, Path]:
    """What --resume names, a checkpoint or the folder of a training: (checkpoint, config, folder); None: no config.

    The layouts are CompVis': FOLDER/model.ckpt with config.yaml, and FOLDER/checkpoints/last.ckpt with
    configs/TIME-project.yaml, of which the newest is taken. A folder of diffusers' is a checkpoint.
    """
    path = Path(os.path.abspath(resume))
    if not path.exists():
        raise FileNotFoundError(f"--resume {resume!r} does not exist; give a checkpoint, or the folder of a training")
    ckpt, folder = path, path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if (path / "model_index.json").is_file():
        return path, None, path
    if path.is_dir():
        folder, names = path, ("model.ckpt", "checkpoints/last.ckpt")
        ckpt = next((path / name for name in names if (path / name).is_file()), None)
        if ckpt is None:
            remedy = "give the path of the checkpoint"
            raise FileNotFoundError(f"--resume {resume!r} is a folder without {' and '.join(names)}; {remedy}")
    configs = [ckpt.parent / "config.yaml", folder / "config.yaml"]
    configs += sorted((folder / "configs").glob("*-project.yaml"), reverse=True)
    return ckpt, next((file for file in configs if file.is_file()), None), folder


def check_class(config, name: str) -> None:
    """ValueError unless the config's model is of this class of ldm.models.diffusion.ddpm, or of one derived from it."""
    from ldm.models.diffusion import ddpm
    from ldm.util import get_obj_from_str

    target = config.model.get("target")
    found = get_obj_from_str(target) if target else None
    if not (isinstance(found, type) and issubclass(found, getattr(ddpm, name))):
        released, file = _RELEASED[name]
        raise ValueError(
            f"this script is for models of the class {name}, and this one's is {str(target).rpartition('.')[2]}: give "
            f"such weights with --ckpt, as {file}, or those of your own and their --config, like {released}"
        )


def conditioning_key(config) -> str | None:
    """How the config's model is conditioned, by LatentDiffusion's rules: None for one that draws from noise alone."""
    params = config.model.get("params") or {}
    if params.get("cond_stage_config") == "__is_unconditional__":
        return None
    return params.get("conditioning_key") or ("concat" if params.get("concat_mode", True) else "crossattn")


def told_by(config, shown: Collection[str] = ()) -> str:
    """What the config's model draws from: "text", "class" or "nothing".

    `shown`: the conditioning_keys of models that the script shows a picture besides. ValueError for one that is shown
    something else, and where the config does not say.
    """
    key = conditioning_key(config)
    if key is None or key == "concat" and key in shown:
        return "nothing"
    if key != "crossattn" and key not in shown:
        raise ValueError(_shown_besides(key))
    stage = (config.model.get("params") or {}).get("cond_stage_config")
    target = stage.get("target", "") if isinstance(stage, Mapping) else ""
    name = target.rpartition(".")[2]
    if stage == "__is_first_stage__" or name == "SpatialRescaler" or target.startswith("ldm.models.autoencoder."):
        raise ValueError(
            f"this model draws from a picture or a map (its cond_stage_config is {name or stage!r}), such as one of "
            "what is where; text and labels cannot be shown to it"
        )
    words = (stage.get("params") or {}).get("use_tokenizer", True) if name == "BERTEmbedder" else True
    if name == "TransformerEmbedder" or not words:
        raise ValueError(
            f"this model is told numbers, not words ({name} without a tokenizer), such as a layout's boxes; text and "
            "labels cannot be told to it"
        )
    return "class" if name == "ClassEmbedder" else "text"


def _shown_besides(key: str) -> str:
    """Why text alone is not enough for a conditioning_key that is not "crossattn"."""
    if key in _SHOWS:
        return (
            f"this model is shown a picture beside the noise (conditioning_key {key!r}), such as {_SHOWS[key]}; text "
            "and labels alone are not enough for it"
        )
    if key in ("adm", "crossattn-adm"):
        return (
            f"this model is told a vector with the noise level (conditioning_key {key!r}), such as a picture's "
            "embedding; text and labels alone are not enough for it"
        )
    choices = "crossattn, concat, hybrid, adm, hybrid-adm, crossattn-adm"
    return f"model.params.conditioning_key is {key!r}; choose one of {choices} (from text only crossattn can draw)"


def number_of_classes(config) -> int:
    """Of a model of classes, the one that stands for none included."""
    n = _config.of_model(config, "cond_stage_config.params.n_classes", int)
    return _CLASSES if n is None else n


def check_classes(config, prompts: Sequence[str | None], negative: str, guided: bool) -> None:
    """ValueError for what `conditionings` could not take, of a model of classes that is not loaded yet."""
    n = number_of_classes(config)
    for prompt in [*prompts, *([negative] if guided and negative else [])]:
        if prompt is None:
            raise ValueError(f"this model draws classes: give a class number with --prompt, from 0 to {n - 1}")
        _label(prompt, n)
    if guided and not negative and n != IMAGENET_AND_NONE:
        raise ValueError(
            f"none of this model's {n} classes is known to stand for no class, which guidance leads away from; give "
            "the one that does with --negative_prompt, or draw without guidance, with --scale 1"
        )


def conditionings(
    model,
    kind: str,
    prompts: Sequence[str],
    negative: str | Sequence[str],
    guided: bool,
    shown: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """What the network is shown for the prompts, and for what guidance leads away from; None where nothing is.

    `negative`: of all, or of each prompt; `shown`: what it is shown besides, in both, such as
    {"c_concat": [(B, C, h, w)]}.
    """
    cond, uncond = _encoded(model, kind, prompts, negative, guided)
    if shown:
        cond = {**shown, "c_crossattn": [cond]} if cond is not None else dict(shown)
        uncond = {**shown, "c_crossattn": [uncond]} if guided and uncond is not None else None
    return cond, uncond


def _encoded(model, kind: str, prompts: Sequence[str], negative: str | Sequence[str], guided: bool) -> tuple[Any, Any]:
    if kind == "nothing":
        return None, None
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if kind == "text":
        cond = model.get_learned_conditioning(list(prompts))
        return cond, model.get_learned_conditioning(negatives) if guided else None
    n = model.cond_stage_model.n_classes
    cond = model.get_learned_conditioning([_label(prompt, n) for prompt in prompts])
    if not guided:
        return cond, None
    others = [_label(each, n) if each else n - 1 for each in negatives]  # the last: see `check_classes`
    return cond, model.get_learned_conditioning(others)


def _label(prompt: str, n: int) -> int:
    number = prompt.strip()
    if not number.isdecimal():
        raise ValueError(f"this model draws classes: give a class number as the prompt, such as 207, not {prompt!r}")
    if len(number) > 18 or int(number) >= n:  # Python reads no endless numbers, and torch none beyond int64
        raise ValueError(f"class {number[:18]}{'…' * (len(number) > 18)} is not there; the model knows 0 to {n - 1}")
    return int(number)


def unguided(options: dict, opt: argparse.Namespace) -> dict:
    """The sampler's options without guidance, for a model that is told nothing."""
    if opt.prompt or opt.from_file or opt.negative_prompt or opt.scale not in (None, 1):
        warnings.warn("this model is told nothing: prompts and --scale have no effect", stacklevel=2)
    return {**options, **UNGUIDED}
