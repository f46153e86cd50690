"""Bytes that are almost right: seeded changes to those of a good file."""

from __future__ import annotations

import random
import struct

TELLING = [struct.pack("<q", n) for n in (-1, 0, 1, 2**31, 2**63 - 1)] + [b"R", b"b", b"c", b"\x93", b"Q", b"(", b"."]
WORDS = [b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"9" * 5000, b"NaN", b"1e999", b"null", b'"', b"[", b"{", b"\r", b","]


def changed(content: bytes, chance: random.Random, telling: list[bytes] = TELLING, most: int = 4) -> bytes:
    """One to `most` changes: a bit, a byte, a telling number or opcode, a cut, or a piece elsewhere again."""
    content = bytearray(content)
    for _ in range(chance.randint(1, most)):
        place, end = (chance.randrange(len(content) + 1) for _ in range(2)) if content else (0, 0)
        match chance.randrange(6):
            case 0 if place < len(content):
                content[place] ^= 1 << chance.randrange(8)
            case 1 if place < len(content):
                content[place] = chance.randrange(256)
            case 2:
                new = chance.choice(telling)
                content[place : place + len(new)] = new
            case 3:
                content[place:place] = chance.choice(telling)
            case 4:
                del content[place : place + chance.choice([1, 2, 8, len(content)])]
            case 5:
                content[place:place] = content[end : end + chance.randrange(1, 40)]
    return bytes(content)
