"""YAML from strangers: what a few bytes could blow up to is counted before it is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST = 1_000_000  # letters and values of a config, with all that it repeats; the released ones have some thousands
DEEPEST = 100  # levels
_LONGEST_NUMBER = 300  # letters
_NUMBER = re.compile(r"[-+.]?[0-9]")
_REFERENCE = re.compile(r"\$\{\s*(\.*)([\w.\[\]-]*)\s*\}")  # OmegaConf's, plain ones: ${a.b}, ${a[0]}, ${..a}


def read_yaml(path: Path):
    """The file as a node of OmegaConf. ValueError, which names it, where it is no YAML that could be a config."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with path.open("rb") as file:
            wrong = _bomb(yaml.parse(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        if not wrong:
            return OmegaConf.load(path)
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        remedy = "save it as UTF-8, or, if it holds the weights, give it with --ckpt"
        raise ValueError(f"config {str(path)!r} is not YAML text; {remedy}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"config {str(path)!r} is not YAML: {error}") from error
    except OSError as error:  # also OmegaConf's own, for a file of one number
        if error.errno is not None:
            raise
        raise ValueError(f"config {str(path)!r} is no mapping of sections") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # PyYAML's, for "!!int a" or 2001-13-45
        raise ValueError(f"config {str(path)!r} has a value that is not what it is called ({error})") from error
    raise ValueError(f"config {str(path)!r} {wrong}; no model's config does that")


def _bomb(events) -> str | None:
    """What is wrong with a stream of YAML's events: how deep it is, and how much once its aliases are written out."""
    import yaml

    sizes, opened, known = [0], [], {}
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            opened.append(event.anchor)
            if len(opened) > DEEPEST:
                return f"is nested too deeply, more than {DEEPEST} levels"
            continue
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop(), sizes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if anchor in opened:
                return f"has a part *{anchor} that holds itself"
            size = known.get(anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value)
            if size > _LONGEST_NUMBER and _is_number(event):
                return f"has a number of {len(event.value):,} digits"
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            known[anchor] = size
        sizes[-1] += size
        if sizes[-1] > MOST:
            return f"has more than {MOST:,} letters and values, with all that it repeats"
    return None


def _is_number(event) -> bool:
    tag = event.tag or ""
    return tag.endswith((":int", ":float")) or not tag and not event.style and bool(_NUMBER.match(event.value))


def check_references(config: Mapping[str, Any], name: str) -> None:
    """ValueError where OmegaConf's references, `${a.b}`, would make far more of a config than it is.

    `config`: as it is before they are resolved, with no other `${…}` in it. Those in a ring are left to OmegaConf.
    """
    if _Sizes(config).of(config, ()) > MOST:
        raise ValueError(f"{name} has references that make more than {MOST:,} letters and values of it; write it out")


class _Sizes:
    """How many letters and values there are once references have been followed."""

    def __init__(self, config: Mapping[str, Any]):
        self._config = config
        self._known: dict[tuple, int] = {}

    def of(self, value: Any, where: tuple) -> int:
        """`where`: the keys that lead to the value."""
        if isinstance(value, Mapping):
            return 1 + sum(len(str(key)) + self.of(part, (*where, key)) for key, part in value.items())
        if isinstance(value, list):
            return 1 + sum(self.of(part, (*where, k)) for k, part in enumerate(value))
        if not isinstance(value, str):
            return 1
        return 1 + len(value) + sum(self._at(*found.groups(), where) for found in _REFERENCE.finditer(value))

    def _at(self, dots: str, names: str, where: tuple) -> int:
        """What a reference names: from the top, or, with dots, from so many levels above what has it."""
        value, path = self._config, ()
        for key in (*(where[: -len(dots)] if dots else ()), *re.findall(r"[\w-]+", names)):
            if isinstance(value, list) and str(key).isdecimal() and int(key) < len(value):
                key = int(key)
            elif not isinstance(value, Mapping):
                break  # it goes on behind another reference: all of that counts
            elif key not in value:
                return 0
            value, path = value[key], (*path, key)
        if path not in self._known:
            self._known[path] = 0  # for a ring
            self._known[path] = self.of(value, path)
        return self._known[path]
