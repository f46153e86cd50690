"""A batch of rows → their pictures, or why there are none; less at a time where memory is short."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ldm.bulk.rows import Row

Drawer = Callable[[Sequence[Row]], Sequence[bytes]]  # rows that are alike → a PNG of each
_NO_MEMORY = re.compile("out of memory|can't allocate memory|_ALLOC_FAILED")  # the last as cuBLAS and cuDNN say it


@dataclass(frozen=True)
class Drawn:
    index: int
    png: bytes


@dataclass(frozen=True)
class Failed:
    index: int
    kind: str  # "memory" or "numbers"
    reason: str


class ModelError(ValueError):
    """What is no row's fault: the model cannot be loaded, or fails whatever it is asked."""


class Worker:
    """Has the model, and never fails for a row: called with rows that are alike, it says what became of each.

    A batch that does not fit into memory is halved, and later ones like it are as small from the beginning. One in
    which numbers overflow is halved, too, until the row that did it stands alone. All else is a `ModelError`.
    """

    def __init__(self, make_drawer: Callable[[], Drawer]):
        try:
            self._draw = make_drawer()
        except Exception as error:
            raise ModelError(f"the model cannot be loaded: {said(error)}") from error
        self._fits: dict[tuple, int] = {}  # likeness: how many at a time

    def __call__(self, rows: Sequence[Row]) -> list[Drawn | Failed]:
        found: list[Drawn | Failed] = []
        left = list(rows)
        while left:
            size = min(len(left), self._fits.get(left[0].likeness, len(left)))
            batch, left = left[:size], left[size:]
            found += self._drawn(batch)
        return found

    def _drawn(self, batch: Sequence[Row]) -> list[Drawn | Failed]:
        try:
            found = self._draw(batch)
        except Exception as error:
            kind, reason = _kind(error), said(error)
        else:
            if len(found) != len(batch):
                raise ModelError(f"the model gave {len(found)} pictures for {len(batch)} rows")
            return [Drawn(row.index, png) for row, png in zip(batch, found, strict=True)]
        if kind is None:
            raise ModelError(f"the model failed: {reason}")
        if len(batch) == 1:
            return [Failed(batch[0].index, kind, reason)]
        half = len(batch) // 2  # here, not in the handler: there the error holds all that the attempt had made
        if kind == "memory":
            _give_back()
            self._fits[batch[0].likeness] = half
            return self(batch)
        return [*self._drawn(batch[:half]), *self._drawn(batch[half:])]


def _kind(error: Exception) -> str | None:
    """Of what a row can be to blame for; None for all else."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return "memory"
    return "numbers" if isinstance(error, ValueError | ArithmeticError) else None


def said(error: BaseException) -> str:
    """In a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _give_back() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
