"""A model from a config and a checkpoint: the weights must fit, all but the known harmless keys."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.errors import CheckpointError, some
from ldm.checkpoint.files import Checkpoint, describe, load_checkpoint
from ldm.checkpoint.identify import config_of
from ldm.checkpoint.recognise import recognise
from ldm.checkpoint.taking import taken, without_memory
from ldm.checkpoint.variants import averaged, with_average, with_schedule, with_unused, without_wrapper
from ldm.modules.encoders.clip import rename_text_keys
from ldm.util import instantiate_from_config

_logger = logging.getLogger(__name__)

_SCHEDULE = r"(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior|lvlb)_\w+|logvar)$"
# In a file but not in the model, and of no use to it: the schedule's buffers (the config makes them), EMA copies where
# the model keeps none, the weights of a training loss, a constant that older text encoders saved, and the estimator
# that makes a picture's depth map.
_HARMLESS_UNEXPECTED = re.compile(
    rf"(low_scale_model\.)?{_SCHEDULE}|(\w+\.)?(model_ema|loss)\.|cond_stage_model\..*position_ids$|depth_model\."
)
# In the model but not in the file, and made from the config alone. `scale_factor` is not: where kept, it was measured.
_HARMLESS_MISSING = re.compile(rf"(low_scale_model\.)?{_SCHEDULE}|model_ema\.(decay|num_updates)$")
# The vectors of words that textual inversion adds to a model: where a file has none, they begin as their config says.
_ADDED_WORDS = "embedding_manager."
# Few and small: copied, so that they do not hold the whole file in memory, and in the file's dtype, as the modules that
# keep them in float32 see to that themselves.
_SMALL = re.compile(rf"(low_scale_model\.)?({_SCHEDULE}|scale_factor$)|model_ema\.(decay|num_updates)$")


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
    read before it is used, and nothing is held twice. (So two models of one opened Checkpoint share their weights.) In
    another dtype, in another memory layout, and on another device they are copied one by one, and on Linux the memory
    of what was read for that is given back on the way.
    The file must fit: CheckpointError lists keys that are missing, unexpected or of another shape, all but the known
    harmless ones.
    """
    if config is not None and "model" not in config:
        raise ValueError(f"the config has no 'model' section (it has: {some(config)})")
    if ckpt is None:
        if config is None:
            raise ValueError("there is nothing to build: give a config, a checkpoint, or both")
        return _build(config).eval().to(device=device, dtype=dtype)
    opened = ckpt if isinstance(ckpt, Checkpoint) else load_checkpoint(ckpt)  # first: a bad file shows at once
    config = _without_files(config_of(opened) if config is None else config)
    weights = without_wrapper(opened.weights)
    weights = averaged(weights, opened.path) if ema else weights
    model = _build_empty(config)
    load_weights(model, weights, opened.path, dtype=dtype, device=device)
    if any(tensor.is_meta for tensor in _tensors(model)):  # a foreign module has constants that no file holds
        model = _build(config)
        load_weights(model, weights, opened.path, dtype=dtype)
    return model.eval().to(device)


def _without_files(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config without the files that its parts would begin from (`ckpt_path`): the checkpoint holds all of them."""
    if not hasattr(config, "items"):
        return config
    return {k: _without_files(v) for k, v in config.items() if k not in ("ckpt_path", "ignore_keys")}


def _build(config: Mapping[str, Any]) -> nn.Module:
    try:
        return instantiate_from_config(config["model"])
    except TypeError as error:  # a parameter that a constructor does not have, or a target that is no class
        raise ValueError(f"the config's model cannot be built: {error}") from error


def _build_empty(config: Mapping[str, Any]) -> nn.Module:
    """The model without memory for its weights, and without the time to draw them."""
    with without_memory():
        try:
            return _build(config)
        except (NotImplementedError, RuntimeError):  # a foreign module computes with its weights
            pass
    return _build(config)


def _tensors(model: nn.Module):
    yield from model.parameters()
    yield from model.buffers()


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    partly: Sequence[str] | None = None,
) -> None:
    """Give the model `weights`, which it takes over where it was built without memory ("meta") and copies elsewhere.

    dtype: that of the parameters (None: the model's); device: where a model without memory gets it. CheckpointError,
    which names `source`, where they do not fit.
    partly: prefixes of the keys that are asked for. Missing ones of these, and unexpected ones, are then logged as a
    warning and no error, and what is missing stays as it is.
    """
    own = model.state_dict()
    weights = with_words(model, with_average(own, rename_text_keys(weights), source), source)
    penultimate = getattr(getattr(model, "cond_stage_model", None), "layer", None) == "penultimate"
    weights = with_unused(own, weights, penultimate)
    problems = _misfits(model, own, weights, source)
    if partly is not None:
        missing = [key for key in problems.pop("missing") if key.startswith(tuple(partly))]
        _log_report({"missing": missing, "unexpected": problems.pop("unexpected")}, source)
    if found := _listed(problems):
        hint = "" if partly is None else "; leave their keys out with ignore_keys"
        raise CheckpointError(f"{source!r} does not fit the config's model{_guess(own, weights)}: {found}{hint}")
    weights = with_schedule(own, weights, source)
    if dtype is not None:
        model.to(dtype)
    empty = any(tensor.is_meta for tensor in own.values())
    kept = model.state_dict()  # after the cast: every tensor has the dtype that it is to have
    weights = {key: value for key, value in weights.items() if key in kept}
    if empty:
        small = {key: value.clone() for key, value in weights.items() if _SMALL.match(key)}
        large = {key: value for key, value in weights.items() if key not in small}
        weights = _apart({**taken(large, kept, device), **small})
    model.load_state_dict(weights, strict=False, assign=empty)  # all else is accounted for


def with_words(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """The weights with the learned words of a textual inversion under this model's keys; left out, which is logged,
    where it has none. The original saves them by their names, and where they began (`initial_embeddings`), too."""
    if not any(key.startswith(_ADDED_WORDS) for key in weights):
        return weights
    manager = getattr(model, "embedding_manager", None)
    if manager is None:
        _logger.warning("%r holds learned words, which this config has no embedding_manager for: left out", source)
        return {key: value for key, value in weights.items() if not key.startswith(_ADDED_WORDS)}
    begun = f"{_ADDED_WORDS}initial_embeddings."
    ours = {
        f"{_ADDED_WORDS}string_to_param_dict.{word}": f"{_ADDED_WORDS}vectors.{k}"
        for k, word in enumerate(manager.string_to_token_dict)
    }
    return {ours.get(key, key): value for key, value in weights.items() if not key.startswith(begun)}


def load_partly(
    model: nn.Module,
    path: str | Path,
    ignore_keys: Sequence[str] = (),
    *,
    prefix: str = "",
    widened: Sequence[str] = (),
) -> None:
    """Give the model what a checkpoint has for it, as a training does that begins from another's weights.

    Passed over: weights whose keys begin with one of `ignore_keys`, and with `prefix` all whose keys do not begin with
    it (a file of that part alone may lack it). `widened`: keys of layers that take more input channels here; the new
    ones begin at zero, as if they were not there. What is missing and what is unexpected is logged as a warning;
    CheckpointError where a shape is another, or where nothing fits.
    """
    weights, own = dict(without_wrapper(load_checkpoint(path).weights)), model.state_dict()
    if prefix and not any(key.startswith(prefix) for key in weights):
        weights = {prefix + key: value for key, value in weights.items()}
    wanted = (prefix, "model_ema.") if prefix == "model." else (prefix,)
    weights = {k: v for k, v in weights.items() if k.startswith(wanted) and not k.startswith(tuple(ignore_keys))}
    for key in set(widened) & weights.keys() & own.keys():
        weights[key] = _widened(weights[key], own[key].shape)
    if not any(key in own for key in rename_text_keys(weights)):
        raise CheckpointError(f"{str(path)!r} has nothing that this model has{_guess(own, weights)}")
    load_weights(model, weights, str(path), partly=wanted)


def _widened(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """A layer's weight (out, in, …) with zeros for more input channels; as it is where they are not more."""
    if weight.ndim < 2 or weight.shape[1] >= shape[1]:
        return weight
    more = weight.new_zeros(weight.shape[0], shape[1] - weight.shape[1], *weight.shape[2:])
    return torch.cat([weight, more], dim=1)


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, none of which shares its memory with another: a step of training must not move both."""
    taken, apart = set(), {}
    for key, value in weights.items():
        place = value.untyped_storage().data_ptr()
        apart[key] = value.clone() if value.numel() and place in taken else value
        taken.add(place)
    return apart


def _misfits(
    model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str
) -> dict[str, list[str]]:
    """What is wrong with the weights for this model, and where. CheckpointError for a scale factor that is another."""
    both, learned = [key for key in own if key in weights], dict(model.named_parameters())
    absent = [key for key in own if key not in weights and not key.startswith(_ADDED_WORDS)]
    problems = {
        "missing": [k for k in absent if k in learned or not _HARMLESS_MISSING.match(k)],
        "unexpected": [k for k in weights if k not in own and not _HARMLESS_UNEXPECTED.match(k)],
        "of another shape": [
            f"{k} {tuple(weights[k].shape)}, the model's is {tuple(own[k].shape)}"
            for k in both
            if weights[k].shape != own[k].shape
        ],
        "quantized, or no numbers with a fraction": [
            k for k in both if own[k].is_floating_point() and not weights[k].is_floating_point()
        ],
    }
    if getattr(model, "cond_stage_model", None) is getattr(model, "first_stage_model", 0):  # the original saves both
        problems["unexpected"] = [k for k in problems["unexpected"] if not k.startswith("cond_stage_model.")]
    if "scale_factor" in problems["unexpected"]:
        problems["unexpected"].remove("scale_factor")
        _check_scale_factor(model, weights["scale_factor"], source)
    return problems


def _listed(problems: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in problems.items() if keys)


def _log_report(problems: Mapping[str, list[str]], source: str) -> None:
    if found := _listed(problems):
        _logger.warning("%r was loaded in part: %s", source, found)
    else:
        _logger.info("%r was loaded, and all of it fits", source)


def _check_scale_factor(model: nn.Module, stored: Tensor, source: str) -> None:
    """A config may say it, too; another value would spoil every picture."""
    factor = getattr(model, "scale_factor", None)
    if stored.numel() != 1 or factor is not None and abs(stored.item() - factor) > 1e-3 * abs(factor):
        said = f"{stored.item():.6g}" if stored.numel() == 1 else f"of shape {tuple(stored.shape)}"
        raise CheckpointError(
            f"{source!r}: its scale_factor is {said}, the config's {factor}; model.params.scale_by_std=true takes the"
            " file's"
        )


def _guess(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """What the file may be instead, where hardly anything of it fits; else nothing, for then it is that model."""
    if sum(key in weights and weights[key].shape == own[key].shape for key in own) > 0.9 * len(own):
        return ""
    names = [describe(weights)] if describe(weights) else recognise(weights)[:2]
    return f" (it looks like {' or '.join(names)})" if names else " (is it the config of this file?)"
