"""Named tensors from a file, whatever its format. Nothing that a file says is run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.errors import CheckpointError, some

_MAX_HEADER = 100_000_000  # bytes: safetensors' own limit for its header


def load_state_dict(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on `device`; its format is recognised by content, not by the file's name.

    Reads safetensors and what `torch.save` writes (the zip format and the older pickle), without running anything that
    a pickle asks for. A "state_dict" around the tensors is taken off. CheckpointError (a ValueError) or
    FileNotFoundError say what is wrong with the file.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {str(path)!r} {what}; give the path of a .safetensors or .ckpt file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
    if _is_safetensors(start):
        content = _read_safetensors(path, size, start, device)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        content = _read_torch(path, device, mmap=start.startswith(b"PK"))
    else:
        found = "is empty" if not size else f"starts with {start!r}"
        raise CheckpointError(f"{str(path)!r} is not a checkpoint: it {found}; safetensors and torch files can be read")
    return _tensors(content, path)


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of header length (little-endian), then the header, a JSON object."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER


def _read_safetensors(path: Path, size: int, start: bytes, device: str | torch.device) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{str(path)!r} is a safetensors file: `pip install safetensors` to read it") from error
    if 8 + int.from_bytes(start[:8], "little") > size:
        raise CheckpointError(f"{str(path)!r} is truncated: its header alone is longer than the file")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} is truncated or damaged ({error}); get the file again") from error


def _read_torch(path: Path, device: str | torch.device, mmap: bool) -> Any:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # CVE-2025-32434: weights_only could be got round
        raise CheckpointError(f"{str(path)!r} is a pickle, safe to read from torch 2.6 on; this is {torch.__version__}")
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not wanted:
            raise CheckpointError(f"{str(path)!r} is damaged or not a torch file; get the file again") from error
        raise CheckpointError(
            f"{str(path)!r} was refused: reading it would run {wanted[1]}, and a checkpoint may hold anything there; "
            "save its state_dict alone, best as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{str(path)!r} is truncated or damaged ({reason}); get the file again") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}, not named tensors (a state_dict)")
    wrong = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong or not content:
        found = f"other things ({some(wrong)})" if wrong else "nothing"
        raise CheckpointError(f"{str(path)!r} holds {found} where a state_dict has named tensors")
    return dict(content)
