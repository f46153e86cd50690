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
from ldm.checkpoint.files import load_state_dict
from ldm.util import instantiate_from_config

# In a file but not in the model, and of no use to it: the schedule's buffers (the config makes them), EMA copies where
# the model keeps none, the weights of a training loss, and a constant that older text encoders saved.
_HARMLESS_UNEXPECTED = re.compile(
    r"(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior|lvlb)_\w+|logvar)$|model_ema\.|(\w+\.)?loss\."
    r"|cond_stage_model\..*position_ids$"
)
# In the model but not in the file, and made from the config alone. `scale_factor` is not: where kept, it was measured.
_HARMLESS_MISSING = re.compile(r"(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior|lvlb)_\w+|logvar)$")


def load_model(config: Mapping[str, Any], ckpt: str | Path | None = None, *, device: str | torch.device = "cpu"):
    """Build `config["model"]` (target and params), give it the weights of `ckpt`, and return it on `device`, eval().

    config: an OmegaConf node or plain dicts, as in CompVis' YAML files; without `ckpt` the weights stay random.
    The file must fit: CheckpointError lists keys that are missing, unexpected or of another shape, all but the known
    harmless ones.
    """
    if "model" not in config:
        raise ValueError(f"the config has no 'model' section (it has: {some(config)})")
    weights = load_state_dict(ckpt) if ckpt is not None else None  # first: a bad file shows before the model is built
    try:
        model = instantiate_from_config(config["model"])
    except TypeError as error:  # a parameter that a constructor does not have, or a target that is no class
        raise ValueError(f"the config's model cannot be built: {error}") from error
    if weights is not None:
        load_weights(model, weights, str(ckpt))
    return model.eval().to(device)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into the model; CheckpointError, which names `source`, where they do not fit."""
    own = model.state_dict()
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
    found = "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in problems.items() if keys)
    if found:
        raise CheckpointError(f"{source!r} does not fit the config's model ({found}); is it the config of this file?")
    if "betas" in own and "betas" in weights and not torch.allclose(own["betas"], weights["betas"].float(), rtol=1e-3):
        warnings.warn(
            f"{source!r} was trained with another noise schedule than the config's; its own is used", stacklevel=3
        )
    model.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)  # all else is accounted for
