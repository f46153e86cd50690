"""Textual-inversion files of every layout, changed: each is finite vectors by their words, or a CheckpointError."""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path

import torch

from fuzzing.cases import Case
from fuzzing.mutate import changed
from ldm.checkpoint import load_embeddings, save_checkpoint
from ldm.checkpoint.errors import CheckpointError, RefusedError

VECTORS = torch.arange(8.0).view(2, 4)
LAYOUTS = (
    {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": VECTORS}, "name": "cat"},
    {"<cat>": VECTORS.half()},
    {"emb_params": VECTORS},
    {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})},
)


@cache
def _good() -> tuple[bytes, ...]:
    made = []
    for content in LAYOUTS:
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            made.append(file.getvalue())
    return tuple(made)


def case(chance: random.Random, folder: Path) -> Case:
    path = folder / chance.choice(["a.pt", "a.bin", "a.safetensors"])
    path.write_bytes(changed(chance.choice(_good()), chance))
    return Case(path, lambda: load_embeddings(path), (CheckpointError, RefusedError), repr(str(path)), _wrong)


def _wrong(words: dict) -> str | None:
    fine = all(v.ndim == 2 and v.dtype == torch.float32 and v.isfinite().all() for v in words.values())
    return None if words and fine else "its vectors are not finite float32, (n, width)"


def warm(folder: Path) -> None:
    for k, content in enumerate(_good()):
        (folder / f"{k}.pt").write_bytes(content)
        load_embeddings(folder / f"{k}.pt")
    save_checkpoint({"<cat>": VECTORS}, folder / "a.safetensors")
    load_embeddings(folder / "a.safetensors")
