"""What conditionings share: the layers before the first cross-attention see the latents alone, and run once for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.kept import keeping
from ldm.modules.untouched import untouched


def joined_contexts(network: nn.Module, conds: Sequence[Mapping[str, Any]]) -> dict[str, list[Tensor]] | None:
    """`conds`, as `apply_model` takes them, as one for latents that are not repeated: their contexts along the batch.

    None where more than the context differs, or where a network with layers of somebody else's, or hooks that look into
    them, might tell the difference. The context keeps what layers make of it (`keeping`).
    """
    texts, pictures = ([_tensors(cond.get(name, ())) for cond in conds] for name in ("c_crossattn", "c_concat"))
    if not all(texts) or None in pictures or any(cond.keys() - {"c_crossattn", "c_concat"} for cond in conds):
        return None
    same = all(len(p) == len(pictures[0]) and all(map(is_, p, pictures[0])) for p in pictures)
    contexts = [torch.cat(text, dim=1) for text in texts]
    if not same or len({context.shape for context in contexts}) != 1 or not is_plain(network):
        return None
    joined: dict[str, list[Tensor]] = {"c_crossattn": [keeping(torch.cat(contexts).to(network.dtype))]}
    return joined | ({"c_concat": pictures[0]} if pictures[0] else {})


def _tensors(value: Any) -> list[Tensor] | None:
    """One tensor, or a list of them, as a list; None for what is neither."""
    value = [value] if isinstance(value, Tensor) else value
    fits = isinstance(value, (list, tuple)) and all(isinstance(part, Tensor) for part in value)
    return list(value) if fits else None


def is_plain(network: nn.Module) -> bool:
    """Whether the network's layers are ours, nobody looks on (`untouched`: who does expects all of a guided batch), and
    none draws, which it would do once where it did so twice."""
    drawing = any(isinstance(layer, nn.Dropout) and layer.training and layer.p for layer in network.modules())
    return type(network) is UNetModel and untouched(network) and not drawing
