"""What the readers of checkpoints say when a file is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class CheckpointError(ValueError):
    """A file that holds no weights, cannot be read safely, or does not fit the model."""


def some(names: Iterable[Any], limit: int = 5) -> str:
    """The first few of `names`, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f", … and {len(names) - limit} more" if len(names) > limit else "")
