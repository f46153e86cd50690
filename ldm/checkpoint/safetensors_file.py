"""The safetensors format: eight bytes that say how long the header is, the header (JSON), and the tensors' bytes.

Read here, not by the `safetensors` package: a plain install then reads what most models come in, the tensors are mapped
as those of the other formats are, and a header that lies is told by its lie. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ldm.checkpoint.errors import CheckpointError, damaged, shown, some, truncated
from ldm.checkpoint.mapped import MappedFile, tensor

MAX_HEADER = 100_000_000  # bytes: the format's own limit
_MOST_DIMENSIONS = 32

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(start: bytes) -> bool:
    """By its first bytes: a length that may be, then a JSON object."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, mapped from the file, and its metadata. CheckpointError (its message lacks the file's name)."""
    file = MappedFile(path)
    with path.open("rb") as stream:
        header, data = _header(stream, file.size)
    metadata = header.pop("__metadata__", {})
    places = {name: _place(name, entry) for name, entry in header.items()}
    _check_cover(places, file.size - data)
    tensors = {}
    for name, (dtype, shape, start, end) in places.items():
        storage = file.bytes(data + start, end - start, dtype.itemsize)
        tensors[name] = tensor(storage, dtype, 0, (math.prod(shape),), (1,)).reshape(shape)
    return tensors, metadata if isinstance(metadata, dict) else {}


def _header(stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    length = int.from_bytes(stream.read(8), "little")
    if 8 + length > size:
        raise truncated(f"its header is said to have {length:,} bytes, and the file has {size:,}")
    try:
        header = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is no JSON: {shown(str(error))}") from error
    if not isinstance(header, dict):
        raise damaged("its header is no JSON object")
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON allows a key twice; other readers might take another one of the two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("one name stands in it twice")
    return found


def _place(name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """dtype, shape, and the tensor's first byte and the one after its last, counted from where the data begins."""
    if not isinstance(entry, dict):
        raise damaged(f"its header says nothing of {shown(name)}")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(f"has {shown(name)} in the dtype {shown(str(kind))}, which cannot be read here")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS:
        raise damaged(f"its header gives no possible shape or place of {shown(name)}")
    if math.prod(max(n, 1) for n in shape) >= 2**62:  # more than torch can count, even where another size is 0
        raise damaged(f"its header gives {shown(name)} the shape {shape}")
    size = math.prod(shape) * DTYPES[kind].itemsize
    if offsets[1] - offsets[0] != size:
        said = f"{offsets[1] - offsets[0]:,} bytes to {shown(name)}, whose shape and dtype need {size:,}"
        raise damaged(f"its header gives {said}")
    return DTYPES[kind], tuple(shape), *offsets


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**62 for n in values)


def _check_cover(places: Mapping[str, tuple], size: int) -> None:
    """The tensors lie one behind the other, without a gap, to the end of the file: nothing is hidden, or read twice."""
    position = 0
    for name, (_dtype, _shape, start, end) in sorted(places.items(), key=lambda place: place[1][2:]):
        if start != position:
            raise damaged(f"{shown(name)} {'overlaps the tensor' if start < position else 'leaves a gap'} before it")
        position = end
    if position > size:
        raise truncated(f"its tensors have {position:,} bytes, and {size:,} are there")
    if position < size:
        raise damaged(f"{size - position:,} bytes lie behind its last tensor")


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]
) -> None:
    """Write each tensor in its dtype of `dtypes`, one after the other; ValueError where the format has no such one."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    if wrong := [key for key, dtype in dtypes.items() if dtype not in names or key == "__metadata__"]:
        raise ValueError(f"safetensors cannot hold {some(f'{key!r} ({dtypes[key]})' for key in wrong)}")
    order = sorted(tensors, key=lambda key: (-dtypes[key].itemsize, key))  # the wide first, so that all lie aligned
    header, position = {"__metadata__": dict(metadata)}, 0
    for key in order:
        end = position + tensors[key].numel() * dtypes[key].itemsize
        shape = list(tensors[key].shape)
        header[key] = {"dtype": names[dtypes[key]], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for key in order:
        plain = tensors[key].detach().to("cpu", dtypes[key]).resolve_conj().resolve_neg().contiguous()
        file.write(plain.reshape(-1).view(torch.uint8).numpy())
