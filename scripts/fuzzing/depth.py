"""Depth maps, as arrays of numpy's and as pictures, changed: finite numbers, (H, W), or a ValueError."""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path

import numpy as np

from fuzzing import pictures
from fuzzing.cases import Case
from fuzzing.mutate import changed
from ldm.depth_files import read_depth

_WORDS = [b"|O", b"<f8", b">i2", b"True", b"(", b"-", b"9" * 30, b"{", b"'", b"\0", b"None", b"[", b"1e9", b"(4,)"]
_HEADERS = [
    "{'descr': '|O', 'fortran_order': False, 'shape': (3, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (%s, 1), }" % ("9" * 5000),
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4), }",
    "{'descr': '<U4', 'fortran_order': False, 'shape': (3, 4), }",
    "{'descr': 'M8[s]', 'fortran_order': False, 'shape': (3, 4), }",
    "__import__('os').system('touch canary')",
    "(" * 3000,
    "-" * 5000 + "1",
    "[" * 90 + "]" * 90,
    "{" * 3000,
    "9" * 5000,
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 150 + ")" * 150 + "}",
    "",
    "\0",
]


def _npy(text: str, data: bytes, version: int = 1) -> bytes:
    header = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + data


@cache
def _good() -> tuple[bytes, ...]:
    made = []
    for dtype in ("f4", "f8", "u2", "i4", "f2", "?"):
        file = io.BytesIO()
        np.save(file, (np.arange(12).reshape(3, 4) % 7).astype(dtype))
        made.append(file.getvalue())
    return tuple(made)


def case(chance: random.Random, folder: Path) -> Case:
    path = folder / "a.npy"
    match chance.randrange(4):
        case 0:
            path.write_bytes(
                _npy(chance.choice(_HEADERS), bytes(chance.choice([0, 48, 96])), chance.choice([1, 2, 3, 9]))
            )
        case 1:
            path = folder / "a.png"
            path.write_bytes(changed(chance.choice(pictures.good()), chance))
        case _:
            path.write_bytes(changed(chance.choice(_good()), chance, _WORDS))
    return Case(path, lambda: read_depth(path), (ValueError, IsADirectoryError), repr(str(path)), _wrong)


def _wrong(values: np.ndarray) -> str | None:
    fine = values.ndim == 2 and values.dtype == np.float32 and np.isfinite(values).all()
    return None if fine else f"it is {values.dtype} of shape {values.shape}, or not finite"


def warm(folder: Path) -> None:
    for k, content in enumerate(_good()):
        (folder / f"{k}.npy").write_bytes(content)
        read_depth(folder / f"{k}.npy")
    pictures.warm(folder)
