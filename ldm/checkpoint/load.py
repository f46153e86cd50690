"""A model from a config and a checkpoint: the weights must fit, all but the known harmless keys."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.errors import CheckpointError, some
from ldm.checkpoint.files import Checkpoint, describe, load_checkpoint
from ldm.checkpoint.recognise import config_path, predicts_v, recognise
from ldm.modules.encoders.clip import rename_text_keys
from ldm.util import instantiate_from_config

_SCHEDULE = r"(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior|lvlb)_\w+|logvar)$"
# In a file but not in the model, and of no use to it: the schedule's buffers (the config makes them), EMA copies where
# the model keeps none, the weights of a training loss, a constant that older text encoders saved, and the estimator
# that makes a picture's depth map.
_HARMLESS_UNEXPECTED = re.compile(
    rf"(low_scale_model\.)?{_SCHEDULE}|(\w+\.)?(model_ema|loss)\.|cond_stage_model\..*position_ids$|depth_model\."
)
# In the model but not in the file, and made from the config alone. `scale_factor` is not: where kept, it was measured.
_HARMLESS_MISSING = re.compile(rf"(low_scale_model\.)?{_SCHEDULE}|model_ema\.(decay|num_updates)$")
# Few and small: copied, so that they do not hold the whole file in memory, and in the file's dtype, as the modules that
# keep them in float32 see to that themselves.
_SMALL = re.compile(rf"(low_scale_model\.)?({_SCHEDULE}|scale_factor$)|model_ema\.(decay|num_updates)$")
_EMA = "model_ema."


def load_model(
    config: Mapping[str, Any] | None = None,
    ckpt: str | Path | Checkpoint | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    ema: bool = False,
) -> nn.Module:
    """Build `config["model"]` (target and params), give it the weights of `ckpt`, and return it on `device`, eval().

    config: an OmegaConf node or plain dicts, as in CompVis' YAML files; None: what `identify` says of `ckpt`.
    ckpt: a file, a diffusers folder, or what `load_checkpoint` made of one; None leaves the weights random.
    dtype: what the networks compute in (None: float32); schedules stay float32. ema: take the averaged weights that
    the file holds beside the others.

    The model takes the file's tensors: in their own dtype and on the CPU they stay mapped from the file, so nothing is
    read before it is used, and nothing is held twice. The file must fit: CheckpointError lists keys that are missing,
    unexpected or of another shape, all but the known harmless ones.
    """
    if config is not None and "model" not in config:
        raise ValueError(f"the config has no 'model' section (it has: {some(config)})")
    if ckpt is None:
        if config is None:
            raise ValueError("there is nothing to build: give a config, a checkpoint, or both")
        return _build(config).eval().to(device=device, dtype=dtype)
    opened = ckpt if isinstance(ckpt, Checkpoint) else load_checkpoint(ckpt)  # first: a bad file shows at once
    config = config_of(opened) if config is None else config
    weights = averaged(opened.weights, opened.path) if ema else opened.weights
    model = _build_empty(config)
    load_weights(model, weights, opened.path, dtype=dtype)
    if any(tensor.is_meta for tensor in _tensors(model)):  # a foreign module has constants that no file holds
        model = _build(config)
        load_weights(model, weights, opened.path, dtype=dtype)
    return model.eval().to(device)


def config_of(ckpt: Checkpoint) -> Mapping[str, Any]:
    """The config of a checkpoint that is one of the released models, or a diffusers folder."""
    found = identify(ckpt)
    if not isinstance(found, str):
        return found
    from omegaconf import OmegaConf

    return OmegaConf.load(config_path(found))


def identify(ckpt: Checkpoint) -> str | Mapping[str, Any]:
    """The name of the released config that a file fits (for `config_path`), or the config that a diffusers folder has.

    Where the keys of two fit, Stable Diffusion 2's for eps and for v, the network is asked which it predicts: its
    weights are read for that. CheckpointError where none fits.
    """
    if ckpt.config is not None:
        return ckpt.config
    names = recognise(ckpt.weights, ckpt.global_step)
    if not names:
        told = describe(ckpt.weights)
        what = f"looks like {told}" if told else "is none of the released models known here"
        remedy = "that cannot be run here" if told else "give the config that it was trained with"
        raise CheckpointError(f"{ckpt.path!r} {what}; {remedy}")
    eps, v = "stable-diffusion/v2-inference", "stable-diffusion/v2-inference-v"
    if {eps, v} <= set(names):
        from omegaconf import OmegaConf

        return v if predicts_v(load_model(OmegaConf.load(config_path(v)), ckpt)) else eps
    return names[0]


def _build(config: Mapping[str, Any]) -> nn.Module:
    try:
        return instantiate_from_config(config["model"])
    except TypeError as error:  # a parameter that a constructor does not have, or a target that is no class
        raise ValueError(f"the config's model cannot be built: {error}") from error


def _build_empty(config: Mapping[str, Any]) -> nn.Module:
    """The model without memory for its weights, and without the time to draw them."""
    with torch.device("meta"):
        try:
            return _build(config)
        except (NotImplementedError, RuntimeError):  # a foreign module computes with its weights
            pass
    return _build(config)


def _tensors(model: nn.Module):
    yield from model.parameters()
    yield from model.buffers()


def averaged(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights with the network's replaced by their running average, which `LitEma` keeps under dotless names."""
    names = _ema_names(weights)
    missing = [name for name in names.values() if name not in weights]
    if missing or not names:
        found = f"{len(missing)} of its {len(names)} averages are missing" if len(missing) < len(names) else "none"
        raise CheckpointError(f"{source!r} holds no averaged weights ({_EMA}*: {found}); load it without ema")
    return {**weights, **{key: weights[name] for key, name in names.items()}}


def _ema_names(weights: Mapping[str, Any]) -> dict[str, str]:
    """model.a.b → model_ema.ab, for each weight of the network."""
    keys = [key for key in weights if key.startswith("model.")]
    return {key: _EMA + key.removeprefix("model.").replace(".", "") for key in keys}


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, *, dtype: torch.dtype | None = None
) -> None:
    """Give the model `weights`, which it takes over where it was built without memory ("meta") and copies elsewhere.

    dtype: that of the parameters (None: the model's). CheckpointError, which names `source`, where they do not fit.
    """
    own = model.state_dict()
    weights = _with_average(own, rename_text_keys(weights), source)
    _check_fit(model, own, weights, source)
    _compare_schedules(own.get("betas"), weights.get("betas"), source)
    if dtype is not None:
        model.to(dtype)
    kept = model.state_dict()  # after the cast: every tensor has the dtype that it is to have
    cast = {
        key: value.clone() if _SMALL.match(key) else value.to(kept[key].dtype)
        for key, value in weights.items()
        if key in kept
    }
    empty = any(tensor.is_meta for tensor in own.values())
    model.load_state_dict(cast, strict=False, assign=empty)  # all else is accounted for


def _compare_schedules(own: Tensor | None, given: Tensor | None, source: str) -> None:
    if own is None or given is None or own.is_meta or torch.allclose(own, given.float(), rtol=1e-2):
        return
    said = f"{source!r} was trained with another noise schedule than the config's; its own is used"
    warnings.warn(said, stacklevel=4)


def _with_average(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """A model that keeps an average, and a file without one: the average begins at the weights, as in training."""
    if not any(key.startswith(_EMA) for key in own) or any(key.startswith(_EMA) for key in weights):
        return weights
    warnings.warn(f"{source!r} holds no averaged weights; the network's own are used instead", stacklevel=4)
    average = {name: weights[key].clone() for key, name in _ema_names(weights).items() if name in own}
    return {**weights, **average}


def _check_fit(model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    problems = {
        "missing": [k for k in own if k not in weights and not _HARMLESS_MISSING.match(k)],
        "unexpected": [k for k in weights if k not in own and not _HARMLESS_UNEXPECTED.match(k)],
        "of another shape": [
            f"{k} {tuple(weights[k].shape)}, the model's is {tuple(own[k].shape)}"
            for k in own
            if k in weights and weights[k].shape != own[k].shape
        ],
    }
    if "scale_factor" in problems["unexpected"]:  # a config may say it, too; another value would spoil every picture
        factor = getattr(model, "scale_factor", None)
        if factor is None or abs(weights["scale_factor"].item() / factor - 1) < 1e-3:
            problems["unexpected"].remove("scale_factor")
    if getattr(model, "cond_stage_model", None) is getattr(model, "first_stage_model", 0):  # the original saves both
        problems["unexpected"] = [k for k in problems["unexpected"] if not k.startswith("cond_stage_model.")]
    found = "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in problems.items() if keys)
    if found:
        raise CheckpointError(f"{source!r} does not fit the config's model ({found}); {_remedy(weights)}")


def _remedy(weights: Mapping[str, Tensor]) -> str:
    if told := describe(weights):
        return f"it looks like {told}"
    names = recognise(weights)
    return f"it looks like {' or '.join(names[:2])}" if names else "is it the config of this file?"
