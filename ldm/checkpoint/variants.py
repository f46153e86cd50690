"""What tools that write CompVis' layout do differently: prefixes, averages, parts left out, a rounded schedule."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.checkpoint.errors import CheckpointError
from ldm.modules.encoders.clip import unused_in_open_clip
from ldm.sampling.schedule import NoiseSchedule

_EMA = "model_ema."
_WRAPPER = "module."  # of DataParallel
_OPEN_CLIP = "cond_stage_model.model."
_BLOCK = re.compile(r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)")
_NEVER_USED = ("text_projection", "logit_scale", "attn_mask")


def without_wrapper(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights by their own names, where a wrapper of the model was saved."""
    if not all(key.startswith(_WRAPPER) for key in weights):
        return weights
    return {key.removeprefix(_WRAPPER): value for key, value in weights.items()}


def averaged(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights with the network's replaced by their running average, which `LitEma` keeps under dotless names."""
    names = _ema_names(weights)
    missing = [name for name in names.values() if name not in weights]
    if missing or not names:
        found = f"{len(missing)} of its {len(names)} averages are missing" if len(missing) < len(names) else "none"
        raise CheckpointError(f"{source!r} holds no averaged weights ({_EMA}*: {found}); load it without ema")
    return {**weights, **{key: weights[name] for key, name in names.items()}}


def with_average(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """A model that keeps an average, and a file without one: the average begins at the weights, as in training."""
    if not any(key.startswith(_EMA) for key in own) or any(key.startswith(_EMA) for key in weights):
        return weights
    warnings.warn(f"{source!r} holds no averaged weights; the network's own are used instead", stacklevel=4)
    average = {name: weights[key].clone() for key, name in _ema_names(weights).items() if name in own}
    return {**weights, **average}


def _ema_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """model.a.b → model_ema.ab, for each weight of the network."""
    keys = [key for key in weights if key.startswith("model.")]
    return {key: _EMA + key.removeprefix("model.").replace(".", "") for key in keys}


def with_unused(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], penultimate: bool) -> Mapping[str, Tensor]:
    """With the parts of OpenCLIP's text encoder that Stable Diffusion 2 has and does not use: some tools drop them.

    They are the last block (where `penultimate`), the projection to pictures' space, the loss's temperature and the
    causal mask, which is a constant.
    """
    blocks = [int(found[1]) for key in own if (found := _BLOCK.match(key))]
    last = f"transformer.resblocks.{max(blocks, default=0)}." if penultimate else None
    made = {}
    for key, value in own.items():
        name = key.removeprefix(_OPEN_CLIP)
        if key not in weights and name != key and (name in _NEVER_USED or (last and name.startswith(last))):
            made[key] = unused_in_open_clip(name, tuple(value.shape))
    return {**weights, **made}


def with_schedule(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """The file's noise schedule goes before the config's, with a warning where they differ.

    One that was saved in half precision is left for the config's, if that is the same but for the rounding; otherwise
    it is made again from its betas.
    """
    mine, given = own.get("betas"), weights.get("betas")
    if mine is None or given is None or mine.is_meta or mine.shape != given.shape or given.dtype.itemsize == 1:
        return weights  # eight bits cannot say a small β at all
    narrow = given.dtype.itemsize < 4
    same = torch.allclose(mine, given.float(), rtol=1e-2)
    if not same:
        said = f"{source!r} was trained with another noise schedule than the config's; the file's is used"
        warnings.warn(said, stacklevel=4)
    if same or not narrow:
        return weights
    buffers = NoiseSchedule.from_betas(given.double().numpy()).buffers()
    made = {name: torch.from_numpy(values).float() for name, values in buffers.items() if name in own}
    return {**weights, **made}
