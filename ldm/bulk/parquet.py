"""Rows of a parquet table, by pyarrow, which is needed for nothing else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BATCH = 64  # rows that are unpacked at a time
_ROOM, _GROWTH = 2**27, 100  # bytes that a file may unpack to, or so many times its size
_FEW_ROWS, _ROWS_PER_BYTE = 200_000, 4  # rows that it may have


def records(path: Path, cell: int) -> Iterator[dict[str, Any]]:
    """The rows, each without what is null in it. ValueError where the file is none, OSError where it is not there.

    What it unpacks to is bounded by the file's size, as one of a few kB can say that it has a billion rows; `cell`:
    bytes of a row on average. pyarrow checks what it reads, and is another's code: a file that deceives it is not
    bounded by this.
    """
    parquet = _reader(path)
    with path.open("rb") as file:  # the system's own error where it cannot be read
        size = file.seek(0, 2)
    room, rows = max(_ROOM, _GROWTH * size), _most_rows(size)
    with _arrows_errors(path):
        table = parquet.ParquetFile(path, thrift_string_size_limit=10**8, thrift_container_size_limit=10**7)
        wrong = _too_much(table.metadata, size, room)
        wrong = wrong or (None if "prompt" in table.schema_arrow.names else "has no column 'prompt'")
        batches = table.iter_batches(batch_size=_BATCH, use_threads=False)
    while not wrong:
        with _arrows_errors(path):
            batch = next(batches, None)
            if batch is None:
                return
            room, rows = room - batch.nbytes, rows - batch.num_rows
            fits = batch.nbytes <= _BATCH * cell and min(room, rows) >= 0
            records = batch.to_pylist() if fits else []
        yield from ({k: v for k, v in record.items() if v is not None} for record in records)
        wrong = None if fits else "holds far more than its size says, or cells that are too large"
    raise ValueError(f"{path} {wrong}; keep large things elsewhere, or save it as .jsonl")


def _reader(path: Path):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: .parquet needs pyarrow (pip install pyarrow), or save it as .jsonl") from error
    if tuple(map(int, re.findall(r"\d+", pyarrow.__version__)[:3])) < (14, 0, 1):
        safe = "before 14.0.1 it may run what a file says (CVE-2023-47248): pip install -U pyarrow"
        raise ImportError(f"{path}: pyarrow {pyarrow.__version__} is too old; {safe}")
    return parquet


def _too_much(metadata, size: int, room: int) -> str | None:
    """What the footer says that there is, which may be a lie, before it is unpacked.

    Only of groups: pyarrow 26 ends the process where it is asked of a column that lies about itself.
    """
    if not 0 <= metadata.num_rows <= _most_rows(size):
        return f"has {metadata.num_rows:,} rows in {size:,} bytes"
    groups = (metadata.row_group(k) for k in range(metadata.num_row_groups))
    fits = sum(max(0, group.total_byte_size) for group in groups) <= room
    return None if fits else "unpacks to far more than its size"


def _most_rows(size: int) -> int:
    return _FEW_ROWS + _ROWS_PER_BYTE * size


@contextlib.contextmanager
def _arrows_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pyarrow's, Python's and those of time zones; there is no end of their kinds
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as parquet ({said})") from error
