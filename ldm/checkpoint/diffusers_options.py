"""The JSON files of a diffusers pipeline folder; every value is checked where it is taken."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ldm.checkpoint.errors import CheckpointError, shown, some

_MAX_JSON = 10_000_000  # bytes; the largest there is, a tokenizer's vocabulary, has four million
_MAX_INTEGER, _MAX_LEVELS = 100_000, 16  # no width or size is larger; a damaged file's may be, and costs hours to build
_MAX = {
    **dict.fromkeys(("layers_per_block", "transformer_layers_per_block"), 100),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers"), 1000),
    **dict.fromkeys(("hidden_size", "d_model", "max_position_embeddings"), 4096),  # there are squares of these
    **dict.fromkeys(("vocab_size", "num_train_timesteps"), 1_000_000),
}
_REQUIRED = object()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError where there is none."""
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} is missing: the folder is not complete; download or save it anew")
    if (size := path.stat().st_size) > _MAX_JSON:
        raise CheckpointError(f"{str(path)!r} has {size} bytes; a JSON file of a pipeline has at most {_MAX_JSON}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is not JSON ({error}); get the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}, not an object with named options")
    return content


class Options:
    """The options in a JSON file. Each is taken once, by what it must be, and `finish` refuses what nobody took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        values = read_json(path)
        self.kind = values.get("_class_name")
        self._values = {k: v for k, v in values.items() if not k.startswith("_")}

    def __str__(self) -> str:
        return repr(str(self.path)) + (f" ({shown(str(self.kind))})" if self.kind else "")

    def refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        """Raise CheckpointError: `name` has a value that no model here can have."""
        raise CheckpointError(f"{self}: {name}={reprlib.repr(value)} cannot be loaded here; it can be {wanted}")

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The option's value, of any kind; one that is null counts as left out."""
        value = self._values.pop(name, None)
        value = default if value is None else value
        if value is _REQUIRED:
            raise CheckpointError(f"{self} does not say {name}; is the file complete?")
        return value

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        """A positive integer."""
        value, most = self.take(name, default), _MAX.get(name, _MAX_INTEGER)
        if value is default or _is_integer(value, most):
            return value
        return self.refuse(name, value, f"a positive integer up to {most}")

    def integers(self, name: str, default: Any = _REQUIRED, *, count: int | None = None) -> list[int]:
        """A list of positive integers; with `count` also one integer, which counts for all."""
        value, most = self.take(name, default), _MAX.get(name, _MAX_INTEGER)
        values = [value] * count if count is not None and _is_integer(value, most) else value
        if isinstance(values, list) and 0 < len(values) <= _MAX_LEVELS and all(_is_integer(n, most) for n in values):
            if count in (None, len(values)):
                return values
        size = f"{count} in all" if count else f"{_MAX_LEVELS} at most"
        return self.refuse(name, value, f"a list of positive integers up to {most}, {size}")

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        value = self.take(name, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return value  # JSON's integers may be larger, which no float can be
        return self.refuse(name, value, "a number")

    def flags(self, name: str, default: bool, *, count: int) -> list[bool]:
        """A list of `count` booleans, or one, which counts for all."""
        value = self.take(name, default)
        values = [value] * count if isinstance(value, bool) else value
        if isinstance(values, list) and len(values) == count and all(isinstance(v, bool) for v in values):
            return values
        return self.refuse(name, value, f"true, false, or a list of {count} of them")

    def choice(self, name: str, choices: Mapping[str, Any], default: Any = _REQUIRED) -> Any:
        """What `choices` translates the option's value to."""
        value = self.take(name, default)
        if isinstance(value, str) and value in choices:
            return choices[value]
        return self.refuse(name, value, "one of " + ", ".join(choices))

    def choices(self, name: str, choices: Mapping[str, Any], *, count: int) -> list[Any]:
        """What `choices` translates a list of `count` values to."""
        value = self.take(name)
        if isinstance(value, list) and len(value) == count and all(isinstance(v, str) and v in choices for v in value):
            return [choices[v] for v in value]
        return self.refuse(name, value, f"a list of {count}, each one of {', '.join(choices)}")

    def same(self, name: str, values: list[int]) -> int:
        """The one value that all of `values`, which stood under `name`, must have."""
        return values[0] if len(set(values)) == 1 else self.refuse(name, values, "the same at every level")

    def only(self, values: Mapping[str, Any]) -> None:
        """Take options that can have one value here, which is also what they have where they are left out."""
        for name, wanted in values.items():
            if (value := self.take(name, wanted)) != wanted:
                self.refuse(name, value, f"only {wanted!r}")

    def ignore(self, *names: str) -> None:
        """Take options that change nothing here."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        """All that matters has been taken: what is left must be off."""
        left = {k: v for k, v in self._values.items() if v is not None and v is not False}
        if left:
            options = some(f"{k}={reprlib.repr(v)}" for k, v in left.items())
            raise CheckpointError(f"{self} has options that are not known here: {options}")


def _is_integer(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most
