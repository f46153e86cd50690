"""Which model a script runs, from --config and --ckpt to a config and an open checkpoint; what the model is told."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _config


def open_model(opt: argparse.Namespace):
    """(config, checkpoint, its path): what --config says, else what the file shows itself to be, else the bundled
    model. The weights are not read yet: they are mapped, and come in when they are used."""
    path = checkpoint_path(opt.config, opt.ckpt)
    config = _config.load_config(opt.config, opt.overrides) if opt.config or not opt.ckpt else None  # errors come first

    from ldm.checkpoint import config_path, identify, load_checkpoint

    checkpoint = load_checkpoint(path)
    if config is None:
        found = identify(checkpoint)
        print(f"{path}: {found if isinstance(found, str) else 'a diffusers folder'}", file=sys.stderr)
        config = _config.load_config(config_path(found) if isinstance(found, str) else found, opt.overrides)
    return config, checkpoint, path


def checkpoint_path(config: str | None, ckpt: str | None) -> str:
    """The weights' file: --ckpt, or the bundled model's where --config names no other model."""
    if ckpt is None and config is not None and Path(config).resolve() != _config.BUNDLED_CONFIG:
        raise ValueError(f"--config {config} needs its weights: give --ckpt too")
    if ckpt is None and not _config.BUNDLED_CKPT.is_file():
        raise FileNotFoundError(f"the bundled weights, {_config.BUNDLED_CKPT}, are missing; give --ckpt")
    return ckpt or str(_config.BUNDLED_CKPT)


def told_by(config) -> str:
    """What the config's model draws from: "text", "class" or "nothing".

    ValueError for one that is shown pictures too, and where the config does not say.
    """
    params = config.model.get("params") or {}
    stage = params.get("cond_stage_config")
    if stage == "__is_unconditional__":
        return "nothing"
    key = params.get("conditioning_key") or ("concat" if params.get("concat_mode", True) else "crossattn")
    if key != "crossattn":
        raise ValueError(
            f"this model is shown a picture beside the noise (conditioning_key {key!r}), such as one with a hole to "
            "fill; text and labels alone are not enough for it"
        )
    target = stage.get("target", "") if isinstance(stage, Mapping) else ""
    return "class" if target.endswith(".ClassEmbedder") else "text"


def conditionings(model, kind: str, prompts: Sequence[str], negative: str, guided: bool) -> tuple[Any, Any]:
    """What the network is shown for the prompts, and for what guidance leads away from; None where nothing is."""
    if kind == "nothing":
        return None, None
    if kind == "text":
        cond = model.get_learned_conditioning(list(prompts))
        return cond, model.get_learned_conditioning([negative] * len(prompts)) if guided else None
    labels = [_label(prompt) for prompt in prompts]
    other = [_label(negative) if negative else model.cond_stage_model.n_classes - 1] * len(labels)
    return model.get_learned_conditioning(labels), model.get_learned_conditioning(other) if guided else None


def _label(prompt: str) -> int:
    if not prompt.strip().isdecimal():
        raise ValueError(f"this model draws classes: give a class number as the prompt, such as 207, not {prompt!r}")
    return int(prompt)


def unguided(options: dict, opt: argparse.Namespace) -> dict:
    """The sampler's options without guidance, for a model that is told nothing."""
    if opt.prompt or opt.from_file or opt.negative_prompt or opt.scale not in (None, 1):
        warnings.warn("this model is told nothing: prompts and --scale have no effect", stacklevel=2)
    return {**options, "unconditional_guidance_scale": 1.0, "ucg_schedule": None}
