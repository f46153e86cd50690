"""Files of prompts as text, changed and hostile: rows that a job can be made of, or a ValueError."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _cli

from fuzzing.cases import Case
from fuzzing.mutate import WORDS, changed
from ldm.bulk.rows import MAX_PROMPT, MAX_SCALE, MAX_SEED, MAX_SIDE, MAX_STEPS, BadRow, Row, read_rows

_REFUSALS = (ValueError, IsADirectoryError, FileNotFoundError)
_PROMPTS = ["a cat", "", " ", "ünïcödé 猫 🐈", "../../etc/passwd", "a,b", 'say "a"', "a\\nb", "\0", "\x1b[2J",
            "a" * 20_000, "{}", "null", "=cmd|'/c calc'!A0", "%s%n", "\u202e", "\ufeff", "\u2028a"]  # fmt: skip
_VALUES = [None, True, 0, 1, -1, 2**31, 2**63, 10**400, 1.5, 1e400, float("nan"), -0.0, "1", "1e3", "nan", "0x10", "",
           [], {}, [[1]], {"a": None}, "\ud800", "9" * 100, "1_000", "١٢"]  # fmt: skip
_COLUMNS = [
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "scale",
    "width",
    "height",
    "own",
    "row",
    "file",
    "\ud800",
    "",
]


def _record(chance: random.Random) -> dict[str, Any]:
    names = chance.sample(_COLUMNS, chance.randint(0, 6))
    return {"prompt": chance.choice(_PROMPTS), **{name: chance.choice([*_VALUES, *_PROMPTS]) for name in names}}


def _txt(chance: random.Random) -> str:
    return chance.choice(["\n", "\r\n", "\r", "\v", "\x85"]).join(chance.choices(_PROMPTS, k=chance.randint(0, 6)))


def _jsonl(chance: random.Random) -> str:
    lines = []
    for _ in range(chance.randint(0, 6)):
        depth = chance.choice([50, 200, 480, 900, 960, 980, 985, 990, 995, 2000, 100_000])
        lines.append(chance.choice([
            json.dumps(_record(chance)), json.dumps(chance.choice([*_PROMPTS, *_VALUES])), "[" * depth + "]" * depth,
            '{"prompt": "a", "own": ' + "[" * depth + "]" * depth + "}", '{"a":' * depth + "1" + "}" * depth,
            '{"prompt": ' + "9" * chance.choice([300, 4000, 5000]) + "}",
            '{"prompt": "a", "prompt": 1}', "{'prompt': 1}",
        ]))  # fmt: skip
    return "\n".join(lines)


def _csv(chance: random.Random) -> str:
    header = chance.choice(
        [["prompt"], ["prompt", *chance.sample(_COLUMNS[1:], 4)], ["prompt", "prompt"], [], ["a", "b"]]
    )
    lines = [",".join(header)]
    for _ in range(chance.randint(0, 6)):
        cells = [str(chance.choice([*_PROMPTS, *_VALUES])) for _ in range(chance.choice([len(header), 1, 9]))]
        quoted = [f'"{cell}"' if chance.random() < 0.5 else cell for cell in cells]
        lines.append(",".join(quoted))
    return "\n".join(lines)


def _huge(chance: random.Random) -> str:
    """A line, a cell or a header that is longer than the limits, or has very many cells."""
    n = chance.choice([9_999, 10_001, 999_999, 1_000_000, 1_000_001, 2_500_000])
    return chance.choice([
        lambda: "prompt\n" + "a" * n + "\nb", lambda: 'prompt\n"' + "aaaaaaa\n" * (n // 8), lambda: "prompt" + "," * n,
        lambda: '"prompt\n' + "a" * 600_000 + "\n" + "b" * 600_000 + '"\nc',
        lambda: "prompt," + ",".join(map(str, range(n // 7))), lambda: "prompt\n" + "," * n + "\nb",
        lambda: '{"prompt": "' + "a" * n + '"}', lambda: '{"prompt": "a", "own": [' + "[]," * (n // 3) + "[]]}",
        lambda: "\n" * n, lambda: '"' * n, lambda: "prompt\n" + '"' * n, lambda: '{"prompt": "\\ud83d' + "a" * n + '"}',
        lambda: "[" + "1," * (n // 2) + "1]", lambda: " " * n, lambda: '{"prompt": "a", "' + "b" * n + '": 1}',
    ])()  # fmt: skip


_MAKERS = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}


def case(chance: random.Random, folder: Path) -> Case:
    suffix = chance.choice(list(_MAKERS))
    path = folder / f"a{chance.choice([suffix, suffix, suffix.upper()])}"
    text = _huge(chance) if chance.random() < 0.1 else _MAKERS[suffix](chance)
    content = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.4:
        content = changed(content, chance, WORDS)
    if chance.random() < 0.05:
        content = text.encode(chance.choice(["utf-16", "utf-8-sig", "utf-32"]), "surrogatepass")
    path.write_bytes(content)
    if suffix == ".txt" and chance.random() < 0.3:  # as the scripts that draw few read it
        return Case(path, lambda: _cli.read_prompts(str(path)), _REFUSALS, str(path), _no_prompts)
    return of(path)


def _no_prompts(prompts: list[str]) -> str | None:
    return None if prompts and all(prompts) else "there are prompts that are empty, or none"


def of(path: Path) -> Case:
    return Case(path, lambda: read_rows(path, 42), _REFUSALS, str(path), wrong)


def wrong(rows: Sequence[Row | BadRow]) -> str | None:
    """What a job could not be made of: rows beyond the limits, or that a manifest cannot hold."""
    for index, row in enumerate(rows):
        if row.index != index:
            return f"row {index} says that it is {row.index}"
        if isinstance(row, BadRow):
            if not row.reason or len(row.reason) > 1000:
                return f"row {index} is refused with {len(row.reason)} characters"
        elif said := _beyond(row):
            return f"row {index}: {said}"
    return None


def _beyond(row: Row) -> str | None:
    numbers = [(row.seed, 0, MAX_SEED), (row.steps, 1, MAX_STEPS), (row.width, 1, MAX_SIDE), (row.height, 1, MAX_SIDE)]
    if not all(n is None or type(n) is int and low <= n <= high for n, low, high in numbers):
        return f"its numbers are {numbers}"[:300]
    if row.scale is not None and not (type(row.scale) is float and abs(row.scale) <= MAX_SCALE):
        return f"its scale is {row.scale!r}"
    if not all(isinstance(text, str) and len(text) <= MAX_PROMPT for text in (row.prompt, row.negative_prompt or "")):
        return "its prompt is too long, or no text"
    told = {**row.extra, "prompt": row.prompt, "negative_prompt": row.negative_prompt}
    json.dumps(told, ensure_ascii=False, allow_nan=False).encode()  # as the manifest is written
    return None


def warm(folder: Path) -> None:
    for name, text in (("a.txt", "a cat"), ("a.csv", "prompt,seed\na,1\n"), ("a.jsonl", '{"prompt": "a"}\n[\n"b"')):
        (folder / name).write_text(text)
        read_rows(folder / name, 42)
    (folder / "b.txt").write_bytes(b"\xff")
    try:
        read_rows(folder / "b.txt", 42)
    except ValueError:
        pass
