"""What layers make of a conditioning, kept for as long as there is one: in a sampling run each step makes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.sampling.values import version


def keeping(context: Tensor) -> Tensor:
    """A conditioning (B, M, D) with which layers may leave what they make of it, as long as there are no gradients.

    For a sampling run, in which it does not change; what was kept goes with it.
    """
    context.kept = {}
    return context


def once(layer: nn.Module, context: Tensor, made_by: tuple[nn.Module, ...], how: Any, make: Callable[[], Any]) -> Any:
    """What `layer` makes of `context`: if `keeping` gave that, the first time, and again when the weights of the layers
    that it is `made_by` are others or were written into, or `how` (a dtype, say) is another."""
    kept = None if torch.compiler.is_compiling() else getattr(context, "kept", None)
    if kept is None or torch.is_grad_enabled():
        return make()
    weights = [dict.get(part._parameters, "weight") for part in made_by]  # not looked into: inference.py packs them
    state = [how, *map(id, weights), *map(version, weights)]
    if layer not in kept or kept[layer][0] != state:
        kept[layer] = state, weights, make()
    return kept[layer][-1]
