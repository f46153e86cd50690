"""Checkpoints of every format, changed: each is tensors that lie within the file, or a CheckpointError."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import torch

from fuzzing.cases import Case
from fuzzing.mutate import changed
from ldm.checkpoint.errors import CheckpointError, RefusedError
from ldm.checkpoint.files import load_state_dict
from ldm.checkpoint.safetensors_file import write_safetensors

WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.ones(3).half(), "count": torch.tensor(7)}
CONTENT = {"global_step": 3, "callbacks": {"x": [1, (2, 3), {4}, b"5", 6.0]}, "state_dict": WEIGHTS}


def saved(form: str) -> bytes:
    file = io.BytesIO()
    if form == "safetensors":
        write_safetensors(file, WEIGHTS, {key: value.dtype for key, value in WEIGHTS.items()}, {"global_step": "3"})
    else:
        torch.save(CONTENT, file, _use_new_zipfile_serialization=form != "torch-legacy")
    return file.getvalue()


def zipped(records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same bytes at any time of day."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            record = zipfile.ZipInfo(name)
            record.compress_type = compression
            archive.writestr(record, content)
    return file.getvalue()


@cache
def good_files() -> dict[str, tuple[bytes, Callable[[bytes], bytes]]]:
    """Every format as bytes, each with what puts a changed one together again."""
    with zipfile.ZipFile(io.BytesIO(saved("torch"))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    safetensors = saved("safetensors")
    begin = 8 + int.from_bytes(safetensors[:8], "little")
    return {
        "torch": (saved("torch"), bytes),
        "torch's pickle": (
            records["archive/data.pkl"],
            lambda pickled: zipped({**records, "archive/data.pkl": pickled}),
        ),
        "torch, zipped again": (zipped(records, zipfile.ZIP_DEFLATED), bytes),
        "torch-legacy": (saved("torch-legacy"), bytes),
        "bare pickle": (pickle.dumps({"a": [1, "b", {2: (3,)}]}, 0), bytes),
        "safetensors": (safetensors, bytes),
        "safetensors' header": (safetensors[8:begin], lambda h: len(h).to_bytes(8, "little") + h + safetensors[begin:]),
    }


def case(chance: random.Random, folder: Path) -> Case:
    content, pack = chance.choice(list(good_files().values()))
    path = folder / chance.choice(["a.ckpt", "a.safetensors", "a.bin", "a"])
    made = pack(changed(content, chance))
    if chance.random() < 0.1:  # two formats in one file
        other = chance.choice(list(good_files().values()))[0]
        made = made[: chance.randrange(len(made) + 1)] + other[chance.randrange(len(other)) :]
    path.write_bytes(made)
    return Case(path, lambda: load_state_dict(path), (CheckpointError, RefusedError), repr(str(path)), beyond(path))


def beyond(path: Path) -> Callable[[Mapping], str | None]:
    """What says where tensors are more than their file; it reads all of them."""

    def wrong(weights: Mapping) -> str | None:
        if not all(isinstance(key, str) for key in weights):
            return "a name is no text"
        size = path.stat().st_size
        return next((f"{key} has more bytes than the file" for key, t in weights.items() if _bytes(t) > size), None)

    return wrong


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.clone().nbytes if tensor.numel() < 2**24 else tensor.nbytes


def warm(folder: Path) -> None:
    for name, (content, pack) in good_files().items():
        (folder / "a.ckpt").write_bytes(pack(content))
        _tried(folder / "a.ckpt", name == "bare pickle")


def _tried(path: Path, refused: bool) -> Iterable[str]:
    try:
        return list(load_state_dict(path))
    except CheckpointError:
        if not refused:
            raise
        return []
