"""Whether layers are as they were made: repositories replace their methods, or hook them, and count on being called."""

from __future__ import annotations

import os
from pathlib import Path
from types import FunctionType
from typing import Any

import torch.nn.modules.module as torch_module
from torch import nn

# By file and not by name: a repository may have an `ldm.modules` of its own, which Python merges with this one.
_PLACES = tuple(f"{Path(file).parent}{os.sep}" for file in (Path(__file__).parent, nn.__file__))


def untouched(network: nn.Module) -> bool:
    """Whether all of a network's layers are ours or torch's, every method of theirs is, and nobody looks on."""
    watched = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    layers = list(network.modules())
    return not watched and all(map(is_own_kind, {type(layer) for layer in layers})) and not any(map(is_changed, layers))


def is_own_kind(kind: type[nn.Module]) -> bool:
    """Whether a kind of layer and what it derives from are ours or torch's, and no method was replaced."""
    kinds = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return all(map(is_own, (f for k in kinds for f in vars(k).values() if callable(f) and not isinstance(f, type))))


def is_own(function: Any) -> bool:
    """Whether a function or method was written here or in torch.nn, and is not wrapped by one that was not."""
    function = getattr(function, "__func__", function)
    return isinstance(function, FunctionType) and function.__code__.co_filename.startswith(_PLACES)


def is_changed(layer: nn.Module) -> bool:
    """Whether a layer is hooked, or has a method of its own in its class' place."""
    own = [name for name, value in vars(layer).items() if callable(value) and name != "_compiled_call_impl"]
    shadows = any(callable(getattr(type(layer), name, None)) for name in own)
    return shadows or bool(layer._forward_hooks or layer._forward_pre_hooks)
