"""A model is built without memory, and takes a file's tensors one by one: none is drawn first, or held twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.checkpoint.mapped import release


class _NothingDrawn(TorchFunctionMode):
    """On "meta" an initialization has nothing to do, and for a normal one torch would import its compiler: seconds, and
    100 MB."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.normal_ or getattr(function, "__module__", None) == nn.init.__name__:
            target = args[0] if args else kwargs["tensor"]
            if target.is_meta:
                return target
        return function(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, what is built is on "meta": it has shapes and dtypes, and no numbers."""
    with torch.device("meta"), _NothingDrawn():
        yield


def taken(weights: Mapping[str, Tensor], like: Mapping[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    """`weights` on `device`, in the dtype and the memory layout of the tensors (on "meta", say) in `like`.

    What a mapped file has so is taken as it is. All else is copied, in the file's order, tensor by tensor, and what was
    read of the file for it gives its memory back before more is read.
    """
    device, found = torch.device(device), dict(weights)
    others = [key for key, value in weights.items() if not _as_wanted(value, like[key], device)]
    for key in sorted(others, key=lambda key: weights[key].untyped_storage().data_ptr()):
        wanted = like[key]
        made = torch.empty_strided(wanted.shape, wanted.stride(), dtype=wanted.dtype, device=device)
        found[key] = made.copy_(weights[key])
        release(weights[key])
    return found


def _as_wanted(value: Tensor, wanted: Tensor, device: torch.device) -> bool:
    return (value.device, value.dtype, value.stride()) == (device, wanted.dtype, wanted.stride())
