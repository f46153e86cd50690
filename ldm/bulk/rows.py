"""What is to be drawn: a file of prompts → rows, and those that cannot be drawn, each with its reason.

    .txt      a prompt a line; empty lines are passed over
    .csv      a header with `prompt`, and any of `COLUMNS` and of one's own
    .jsonl    an object a line with the same names, or the prompt alone, as a string
    .parquet  a table with the same names (needs pyarrow)

A file that cannot be read at all is a ValueError; a row that cannot is a `BadRow`, and the others go on.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_ROWS = 10_000_000
MAX_PROMPT = 10_000  # characters
MAX_LINE = 1_000_000  # characters of a line of text, bytes of a cell of parquet
MAX_STEPS = 1000
MAX_SCALE = 1000.0
MAX_SIDE = 4096  # pixels
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Row:
    """One picture. What is None is as for the whole job.

    index: in the file, from 0, bad rows counted. width, height: in pixels. extra: columns of one's own, which the
    manifest repeats.
    """

    index: int
    seed: int
    prompt: str = ""
    negative_prompt: str | None = None
    steps: int | None = None
    scale: float | None = None
    width: int | None = None
    height: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def likeness(self) -> tuple:
        """Rows that are alike in this can be drawn in one batch."""
        return self.width, self.height, self.steps, self.scale


@dataclass(frozen=True)
class BadRow:
    """A row of the file that asks for no picture, and why not; the manifest lists it."""

    index: int
    reason: str


def row_seed(base: int, index: int) -> int:
    """The seed of a row whose own is not given, in [0, 2³²): no two rows of a job have the same.

    It depends on the base seed and the row's index alone. Both steps are MurmurHash3's finalizer (Appleby 2011), which
    gives each number another one, so that rows, and jobs with bases beside each other, have nothing in common.
    """
    return _mixed(_mixed(index & _LOW) ^ _mixed((base ^ base >> 32 ^ _APART) & _LOW) ^ _mixed(index >> 32))


_LOW = 0xFFFFFFFF  # torch's CPU generator takes no more of a seed
_APART = 0x9E3779B9  # else row 1 of base 1 and row 2 of base 2 would meet


def _mixed(h: int) -> int:
    h = (h ^ h >> 16) * 0x85EBCA6B & _LOW
    h = (h ^ h >> 13) * 0xC2B2AE35 & _LOW
    return h ^ h >> 16


# -------------------------------------------------------------------------------------------------------------- files


def read_rows(path: str | Path, base_seed: int) -> list[Row | BadRow]:
    """The rows of a file of prompts, in its order. ValueError where it is none, OSError where it is not there."""
    kind = Path(path).suffix.lower()
    if kind not in _READERS:
        raise ValueError(f"{path}: prompts are read from {', '.join(_READERS)}; save them as one of these")
    records = itertools.islice(_READERS[kind](Path(path)), MAX_ROWS + 1)
    rows = [checked(index, record, base_seed) for index, record in enumerate(records)]
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    if len(rows) > MAX_ROWS:
        raise ValueError(f"{path} has more than {MAX_ROWS} rows; split it")
    return rows


Record = Mapping[str, Any] | str  # the second says what is wrong


def _lines(path: Path) -> Iterator[str | None]:
    """Lines without their ends; None for one that is longer than MAX_LINE, which is never held."""
    with path.open(encoding="utf-8-sig", newline=None) as file:
        try:
            while line := file.readline(MAX_LINE + 1):
                if len(line) <= MAX_LINE:
                    yield line.rstrip("\n")
                    continue
                while line and not line.endswith("\n"):
                    line = file.readline(MAX_LINE)
                yield None
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(f"{path} is not text (a byte 0x{byte:02x} is not UTF-8); save it as UTF-8") from error


def _txt(path: Path) -> Iterator[Record]:
    for line in _lines(path):
        if line is None:
            yield _LONG
        elif line.strip():
            yield {"prompt": line.strip()}


def _jsonl(path: Path) -> Iterator[Record]:
    for line in _lines(path):
        if line is None:
            yield _LONG
        elif line.strip():
            yield _parsed(line)


def _parsed(line: str) -> Record:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # the first also for an endless number
        return f"it is not JSON ({str(error).splitlines()[0]})"
    if isinstance(found, str):
        return {"prompt": found}
    return found if isinstance(found, dict) else f"it is {_shown(found)}; give an object, or a prompt as a string"


def _csv(path: Path) -> Iterator[Record]:
    """Empty cells are as if they were not there."""
    longer = csv.field_size_limit(MAX_LINE)
    try:
        reader = csv.reader("" if line is None else f"{line}\n" for line in _lines(path))
        header = _header(path, reader)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"it is not CSV ({error})"
                continue
            if len(cells) > len(header):
                yield f"it has {len(cells)} cells, and the header {len(header)}; quote prompts that have commas"
            elif cells:
                yield {name: _of_text(name, cell) for name, cell in zip(header, cells, strict=False) if cell.strip()}
    finally:
        csv.field_size_limit(longer)


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"{path}: its first line is not CSV ({error}); it should name the columns") from error
    if "prompt" not in header:
        raise ValueError(f"{path}: the first line of a .csv names its columns, and none is called 'prompt'")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"{path} has two columns {_shown(min(twice))}; leave one out")
    return header


def _of_text(name: str, cell: str) -> Any:
    """Numbers of columns that have numbers; what is none stays text, and is refused as such."""
    kind = COLUMNS.get(name, str)
    try:
        return cell if kind is str or len(cell) > 40 else kind(cell)
    except ValueError:
        return cell


def _parquet(path: Path) -> Iterator[Record]:
    from ldm.bulk.parquet import records

    yield from records(path, MAX_LINE)


_READERS = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
_LONG = f"it is longer than {MAX_LINE} characters"

# --------------------------------------------------------------------------------------------------------------- rows

COLUMNS: dict[str, type] = {
    "prompt": str, "negative_prompt": str, "seed": int, "steps": int, "scale": float, "width": int, "height": int,
}  # fmt: skip
_LIMITS = {
    "seed": (0, MAX_SEED), "steps": (1, MAX_STEPS), "scale": (-MAX_SCALE, MAX_SCALE), "width": (1, MAX_SIDE),
    "height": (1, MAX_SIDE),
}  # fmt: skip


def checked(index: int, record: Record, base_seed: int) -> Row | BadRow:
    """A record as a row, or what is wrong with it."""
    if isinstance(record, str):
        return BadRow(index, record)
    try:
        given = {name: _value(name, record[name]) for name in COLUMNS if record.get(name) is not None}
        if "prompt" not in given:
            raise ValueError("prompt is null" if "prompt" in record else "it has no prompt")
        extra = {_whole(str(name)): _plain(value) for name, value in record.items() if name not in COLUMNS}
    except (ValueError, RecursionError) as error:
        return BadRow(index, str(error) or "it is nested too deeply")
    return Row(index, **{"seed": row_seed(base_seed, index), **given}, extra=extra)


def _value(name: str, value: Any) -> Any:
    kind = COLUMNS[name]
    if kind is str:
        return _text(name, value)
    low, high = _LIMITS[name]
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # false for NaN
    if not fits or (kind is int and value != math.floor(value)):
        raise ValueError(f"{name} is {_shown(value)}; give {'an integer' if kind is int else 'a number'} "
                         f"from {low} to {high}")  # fmt: skip
    return kind(value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):  # the number of a class
        value = str(value) if abs(value) < 10**18 else value
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}; give text")
    if len(value) > MAX_PROMPT:
        raise ValueError(f"{name} has {len(value)} characters; at most {MAX_PROMPT} are read")
    if any("\ud800" <= c <= "\udfff" for c in value):  # JSON can say half of a character
        raise ValueError(f"{name} holds half of a character ({_shown(value)}); save it as UTF-8")
    return value


def _plain(value: Any) -> Any:
    """A value that JSON can say: that of a column of one's own. Half characters and NaN are not its."""
    try:
        return json.loads(_whole(json.dumps(value, allow_nan=False, ensure_ascii=False)))
    except (TypeError, ValueError):
        return _whole(str(value)[:1000])


def _whole(text: str) -> str:
    """Half characters, which no file can hold, are question marks."""
    return text.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    text = f"a whole number of {value.bit_length()} bits" if _endless(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _endless(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 200


def batches(rows: Iterable[Row], size: int) -> list[list[Row]]:
    """Rows that are alike, `size` at a time; batches stand in the order of their first rows."""
    made: list[list[Row]] = []
    filling: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.likeness not in filling:
            made.append(filling.setdefault(row.likeness, []))
        batch = filling[row.likeness]
        batch.append(row)
        if len(batch) == size:
            del filling[row.likeness]
    return made
