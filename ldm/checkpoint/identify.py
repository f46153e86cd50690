"""From a checkpoint alone to the config of its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import Checkpoint, describe
from ldm.checkpoint.recognise import config_path, predicts_v, recognise
from ldm.checkpoint.variants import without_wrapper

_EPS, _V = "stable-diffusion/v2-inference", "stable-diffusion/v2-inference-v"
_PARTS = {"model.": "denoising network", "first_stage_model.": "autoencoder", "cond_stage_model.": "text encoder"}


def config_of(ckpt: Checkpoint) -> Mapping[str, Any]:
    """The config of a checkpoint that is one of the released models, or a diffusers folder."""
    found = identify(ckpt)
    return _read(found) if isinstance(found, str) else found


def identify(ckpt: Checkpoint) -> str | Mapping[str, Any]:
    """The name of the released config that a file fits (for `config_path`), or the config that a diffusers folder has.

    Where the keys of two fit, Stable Diffusion 2's for eps and for v, the network is asked which it predicts: its
    weights are read for that. CheckpointError where none fits.
    """
    if ckpt.config is not None:
        return ckpt.config
    weights = without_wrapper(ckpt.weights)
    names = recognise(weights, ckpt.global_step)
    if not names:
        raise CheckpointError(f"{ckpt.path!r} {_what(weights)}")
    if {_EPS, _V} <= set(names):
        return _V if predicts_v(_network(ckpt, weights)) else _EPS
    return names[0]


def _network(ckpt: Checkpoint, weights: Mapping[str, Tensor]):
    """Stable Diffusion 2 without its autoencoder and text encoder, in the file's own precision."""
    from ldm.checkpoint.load import load_model

    model = dict(_read(_V)["model"])
    params = {**model["params"], "first_stage_config": {"target": "ldm.models.autoencoder.IdentityFirstStage"}}
    model["params"] = {**params, "cond_stage_config": {"target": "torch.nn.Identity"}}
    of_network = {key: value for key, value in weights.items() if key.startswith("model.")}
    dtypes = {value.dtype for value in of_network.values()}
    dtype = torch.float32 if dtypes == {torch.float32} else torch.bfloat16  # no copy, or no overflow
    return load_model({"model": model}, replace(ckpt, weights=of_network), dtype=dtype)


def _read(name: str) -> Mapping[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(config_path(name)))


def _what(weights: Mapping[str, Tensor]) -> str:
    if told := describe(weights):
        return f"looks like {told}; that cannot be run here"
    absent = [what for prefix, what in _PARTS.items() if not any(key.startswith(prefix) for key in weights)]
    if 0 < len(absent) < len(_PARTS):
        return f"has no {' and no '.join(absent)}: a whole model is needed, or the config that fits what is there"
    return "is none of the released models known here; give the config that it was trained with"
