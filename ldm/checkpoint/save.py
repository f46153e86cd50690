"""Weights into a file in CompVis' layout: safetensors, or what `torch.save` writes with a "state_dict" in it."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from ldm.checkpoint.errors import some
from ldm.checkpoint.safetensors_file import write_safetensors

# Half precision has three digits: enough for weights, not for a noise schedule or a measured factor.
_KEPT = re.compile(r"(^|\.)(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior|lvlb)_\w+|logvar|scale_factor|decay)$")


def save_checkpoint(
    weights: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str | int | float] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model's state dict, or named tensors, to a `.safetensors` or `.ckpt` file.

    dtype: what floating-point weights are saved in (None: as they are); the noise schedule's buffers, `scale_factor`
    and the average's `decay` stay as they are. metadata: such as {"global_step": 10}; in a `.ckpt` it stands beside the
    state dict, in safetensors in the header, as text. A safetensors file is written tensor by tensor, with no copy of
    the whole.

    The file appears whole or not at all: it is written beside its place, and renamed. An existing one is replaced only
    with `overwrite` (FileExistsError). ValueError where the suffix, the dtype or a tensor cannot be saved.
    """
    path, metadata = Path(path), dict(metadata or {})
    _check_request(path, dtype, metadata, overwrite)
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    _check_tensors(tensors)
    dtypes = {
        key: dtype if dtype and tensor.is_floating_point() and not _KEPT.search(key) else tensor.dtype
        for key, tensor in tensors.items()
    }
    _check_range(tensors, dtypes)
    with appearing_whole(path) as file:
        if path.suffix == ".safetensors":
            text = {key: str(value) for key, value in metadata.items()}
            write_safetensors(file, tensors, dtypes, {**text, "format": "pt"})
        else:
            state = {key: _whole(tensor.detach().to("cpu", dtypes[key])) for key, tensor in tensors.items()}
            try:
                torch.save({**metadata, "state_dict": state}, file)
            except RuntimeError as error:  # torch's word for a failed write
                raise OSError(f"{str(path)!r} could not be written; is the disk full? ({error})") from error


def _check_request(path: Path, dtype: torch.dtype | None, metadata: Mapping, overwrite: bool) -> None:
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"{str(path)!r}: checkpoints are saved as .safetensors or .ckpt, not {path.suffix!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} holds no weights; choose torch.float16, torch.bfloat16 or torch.float32")
    reserved = "format" if path.suffix == ".safetensors" else "state_dict"
    if wrong := [k for k, v in metadata.items() if k == reserved or not isinstance(v, (str, int, float))]:
        raise ValueError(f"metadata: {some(wrong)}; give texts and numbers, under other names than {reserved!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} is there already; give another name, or overwrite=True to replace it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{str(path)!r} cannot be saved: make the folder {str(path.parent)!r} first")


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise ValueError("there are no weights to save")
    if wrong := [key for key, tensor in tensors.items() if not isinstance(tensor, Tensor)]:
        raise ValueError(f"only tensors can be saved, and these are none: {some(wrong)}")
    if empty := [key for key, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(f"{len(empty)} weights have a shape but no values (meta device): {some(empty)}; load some")
    if wrong := [key for key, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]:
        raise ValueError(f"sparse and quantized tensors cannot be saved here: {some(wrong)}; make them dense first")


def _check_range(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """A large weight would be infinite in half precision, and stay so."""
    for key, tensor in tensors.items():
        if dtypes[key] != tensor.dtype and torch.finfo(dtypes[key]).max < torch.finfo(tensor.dtype).max:
            cast = tensor.detach().to(dtypes[key]).float()
            if (tensor.isfinite() & ~cast.isfinite()).any():
                largest = torch.finfo(dtypes[key]).max
                raise ValueError(f"{key!r} has values beyond {largest:g}, the largest {dtypes[key]}; save it as it is")


def _whole(tensor: Tensor) -> Tensor:
    """torch.save writes all of a tensor's storage, so it gets none that is longer than the tensor."""
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


@contextmanager
def appearing_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is at `path` once all of it is on the disk; after an error there is none.

    It is where a link at `path` points to, and may be read by those who could read the one that it replaces.
    """
    path = path.resolve()
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with partial.open("xb") as file:
            with suppress(OSError):  # there was none, or the disk knows no permissions
                partial.chmod(stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    with suppress(OSError):  # so that the name is on the disk, too; not every system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
