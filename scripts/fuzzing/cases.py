"""What a case is, which kinds there are, and what counts as right."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# kind → the module whose `case(chance, folder)` makes one, and whose `warm(folder)` reads something good
KINDS = {
    "checkpoints": "fuzzing.checkpoints",
    "pickles": "fuzzing.gadgets",
    "embeddings": "fuzzing.embeddings",
    "folders": "fuzzing.folders",
    "configs": "fuzzing.configs",
    "pictures": "fuzzing.pictures",
    "settings": "fuzzing.settings",
    "depth": "fuzzing.depth",
    "prompts": "fuzzing.prompts",
    "parquet": "fuzzing.parquet",
}


@dataclass
class Case:
    """A hostile file, and who reads it.

    `refusals`: the types of error that are an answer, exactly these; `names`: what their messages must say.
    `wrong`: of what was read, what is not right with it, or None. `hostile`: it must be refused.
    """

    path: Path
    read: Callable[[], Any]
    refusals: tuple[type[Exception], ...]
    names: str
    wrong: Callable[[Any], str | None] = lambda result: None
    hostile: bool = False


def maker(kind: str):
    """The module of a kind: one of KINDS, or the name of another, with `case` and `warm`."""
    return importlib.import_module(KINDS.get(kind, kind))


def make(kind: str, seed: int, folder: Path) -> Case:
    """The same file for the same kind and seed, whatever was made before."""
    return maker(kind).case(random.Random(f"{kind} {seed}"), folder)
