"""PNG files with texts that are no settings: `read_settings` gives a dict, or a ValueError that names the file."""

from __future__ import annotations

import io
import json
import random
import zlib
from functools import cache
from pathlib import Path

from fuzzing.cases import Case
from fuzzing.mutate import WORDS, changed
from fuzzing.pictures import _bomb, header, png
from ldm.image import SETTINGS_CHUNK, png_bytes, read_settings

_SETTINGS = {"prompt": "a cat, 'with' \"quotes\"", "negative_prompt": "blur", "seed": 7, "steps": 50, "width": 64,
             "height": 64, "scale": 7.5, "sampler": "DDIM"}  # fmt: skip
_TEXTS = [
    b"", b"null", b"[]", b"1", b'"a"', b"NaN", b"{", b"9" * 5000, b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe", b"\0",
    b"a\nSteps: " + b"9" * 5000, b"a\nSteps: 5, Size: " + b"9" * 5000 + b"x1", b"a\nSteps: 5, Size: 1x1x1",
    b"a\nSteps: 5, " + b"a " * 20_000, b"a\nSteps: 5, a: \"" + b"\\" * 30_000, b"a\nSteps: 5, a: " + b'"' * 30_000,
    b"a\nSteps: " + b"[" * 50_000, b"\nNegative prompt:" * 5000, b"\n" * 50_000, b"a\nSteps: 5, " + b"a-/ " * 10_000,
    b"a\nSteps: 1, Size: \xd9\xa1x2", b"Steps: 5, " + b"a: 1," * 10_000,
]  # fmt: skip


@cache
def _good() -> bytes:
    from PIL import Image

    return png_bytes(Image.new("RGB", (8, 8)), _SETTINGS)


def _texts(chance: random.Random) -> bytes:
    """A picture whose text chunks are hostile, before or behind its pixels."""
    text = chance.choice([*_TEXTS, json.dumps(_SETTINGS).encode()])
    text = changed(text, chance, WORDS) if chance.random() < 0.4 else text
    name = chance.choice([SETTINGS_CHUNK, "parameters"]).encode()
    kind, content = chance.choice([
        (b"tEXt", name + b"\0" + text),
        (b"zTXt", name + b"\0\0" + zlib.compress(text)),
        (b"iTXt", name + b"\0\0\0\0\0" + text),
        (b"iTXt", name + b"\0\1\0\0\0" + zlib.compress(text)),
        (b"zTXt", name + b"\0\0" + _bomb(chance.choice([1, 50, 400]))),
        (b"iTXt", name + b"\0\1\0\0\0" + _bomb(chance.choice([1, 50, 400]))),
        (b"zTXt", name + b"\0\7" + text),
    ])  # fmt: skip
    parts = [(kind, content)] * chance.choice([1, 1, 1, 2, 100])
    pixels = (b"IDAT", zlib.compress(bytes(52)))
    return png(header(4, 4), *([*parts, pixels] if chance.random() < 0.5 else [pixels, *parts]), (b"IEND", b""))


def case(chance: random.Random, folder: Path) -> Case:
    path = folder / "a.png"
    sizes = png(header(*chance.choice([(20_000, 20_000), (9000, 9000), (0, 1), (2**31 - 1, 1)])), (b"IDAT", _bomb(50)))
    made = chance.choice([lambda: _texts(chance), lambda: changed(_good(), chance), lambda: sizes])()
    path.write_bytes(made)
    return Case(path, lambda: read_settings(path), (ValueError,), repr(str(path)), _wrong)


def _wrong(found) -> str | None:
    return None if isinstance(found, dict) else f"it is {type(found).__name__}, not a dict"


def warm(folder: Path) -> None:
    from PIL import Image

    (folder / "a.png").write_bytes(_good())
    assert read_settings(folder / "a.png") == _SETTINGS
    for form in ("GIF", "JPEG", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, form)
        (folder / "a").write_bytes(file.getvalue())
        read_settings(folder / "a")
