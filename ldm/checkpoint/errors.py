"""What the readers of checkpoints say when a file is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class CheckpointError(ValueError):
    """A file that holds no weights, cannot be read safely, or does not fit the model."""


class RefusedError(CheckpointError):
    """A file that asks to run something."""


def some(names: Iterable[Any], limit: int = 5) -> str:
    """The first few of `names`, and how many more there are."""
    names = list(names)
    more = f", … and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(str(name), 200) for name in names[:limit]) + more


# The readers do not say which file it is: `load_checkpoint` puts its name in front.


def damaged(reason: str) -> CheckpointError:
    """For a file that contradicts itself."""
    return CheckpointError(f"is truncated or damaged ({reason}); get the file again")


def truncated(reason: str) -> CheckpointError:
    """For a file that is shorter than it says."""
    return CheckpointError(f"is truncated ({reason}); get the file again")


def shown(text: str, limit: int = 80) -> str:
    """A text from a file for a message: of bounded length, on one line, without control characters."""
    cut = text[:limit] + ("…" if len(text) > limit else "")
    return cut if cut.isprintable() else ascii(cut)
