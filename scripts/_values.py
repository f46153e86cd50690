"""A value of a config, and the annotation that says which values it may take."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a name", type(None): "null", ...: "…"}
_LISTS = (Sequence, list, tuple)


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value, if it is what an annotation says, else ValueError. Annotations beyond _WORDS take everything."""
    if not _fits(value, kind):
        raise ValueError(f"{name} is {value!r}; give {_words(kind)}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin in _LISTS:
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        if origin is not tuple or ... in parts:
            parts = parts[:1] * len(value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool) and kind in (int, float):  # an int to Python, not to people
        return False
    if kind is float:
        return isinstance(value, int | float)
    return kind not in _WORDS or isinstance(value, kind)


def _words(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in _LISTS:
        return f"[{', '.join(map(_words, parts))}{'' if origin is tuple else ', …'}]"
    return _WORDS.get(kind) or ", or ".join(_words(part) for part in parts if part in _WORDS or typing.get_args(part))
