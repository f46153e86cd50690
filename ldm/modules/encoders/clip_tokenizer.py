"""CLIP's tokenizer (Radford et al. 2021): byte-level byte-pair encoding, lower case, 49408 tokens.

The numbers are those of transformers' (fast) CLIPTokenizer, which diffusers gives Stable Diffusion.
"""

from __future__ import annotations

import gzip
import heapq
import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import NamedTuple

from ldm.modules.encoders.tokenizer import Tokenizer, normalize

_FILE = Path(__file__).resolve().parents[2] / "assets" / "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 48894  # the file has more; CLIP took as many as make 49408 tokens of them, 2 · 256 bytes and 2 marks
START, END = 49406, 49407
_MARKS = {"<|startoftext|>": START, "<|endoftext|>": END}

_MARK = r"<\|startoftext\|>|<\|endoftext\|>"
_SPACE = re.compile(r"[^\S\x1c-\x1f]+")  # Python counts four control characters as space that Unicode does not
# A mark that was in capitals; the end of a contraction; letters, and numbers such as ½, which `_words` tells apart; a
# digit; anything else.
_WORD = re.compile(rf"{_MARK}|'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w ]|_)+")
_CACHED_LENGTH = 64


class CLIPTokenizer(Tokenizer):
    """Prompts → (B, max_length): start of text, the prompt's tokens, end of text, padding.

    pad: 49407, the end of text, for OpenAI's CLIP and so Stable Diffusion 1; 0 for OpenCLIP and Stable Diffusion 2.
    "<|startoftext|>" and "<|endoftext|>" in a prompt stand for these tokens.
    """

    vocabulary_size = 49408
    special = frozenset(_MARKS.values())

    def __init__(self, max_length: int = 77, pad: int = END) -> None:
        super().__init__(START, END, pad, max_length)

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text without added words; see `encode`."""
        ids: list[int] = []
        for part in re.split(f"({_MARK})", text):
            if part in _MARKS:
                ids.append(_MARKS[part])
            else:
                for word in _words(part):
                    ids += _cached_tokens(word) if len(word) <= _CACHED_LENGTH else _tokens(word)
        return ids

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for, words parted by one space; marks are left out."""
        pieces = _vocabulary().pieces
        data = b"".join(pieces[int(i)] for i in ids if i not in (START, END))
        return data.decode("utf-8", errors="replace").strip()


def _words(text: str) -> Iterator[str]:
    """Cleaned words. Characters are lowered one by one, so that a final Σ is σ, as in every other place."""
    text = _SPACE.sub(" ", normalize("NFC", text))
    for run in _WORD.findall("".join(map(str.lower, text))):
        if run in _MARKS:  # only text, but text that does not merge with what stands next to it
            yield from ("<|", run[2:-2], "|>")
        elif run.isalpha() or not run[0].isalnum():
            yield run
        else:
            for letters, chars in groupby(run, str.isalpha):
                word = "".join(chars)
                yield from [word] if letters else word


class _Vocabulary(NamedTuple):
    byte_ids: dict[int, int]  # byte → its token
    merges: dict[tuple[int, int], int]  # two tokens → the one that they make; the lower, the earlier it was learnt
    pieces: list[bytes]  # token → its bytes; a space ends a word


@cache
def _vocabulary() -> _Vocabulary:
    # The file spells bytes as printable characters: themselves, or where not printable, those from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}
    tokens = [*byte_of, *(char + "</w>" for char in byte_of)]
    number = {token: i for i, token in enumerate(tokens)}
    merges = {}
    with gzip.open(_FILE, "rt", encoding="utf-8") as file:
        next(file)  # the file's version
        for line in islice(file, _MERGES):
            first, second = line.split()
            merges[number[first], number[second]] = number[first + second] = len(tokens)
            tokens.append(first + second)
    pieces = [_bytes(token, byte_of) for token in tokens]
    return _Vocabulary({byte: i for i, byte in enumerate(byte_of.values())}, merges, pieces)


def _bytes(token: str, byte_of: dict[str, int]) -> bytes:
    stem = token.removesuffix("</w>")
    return bytes(byte_of[char] for char in stem) + (b" " if stem != token else b"")


def _tokens(word: str) -> list[int]:
    """Byte-pair encoding (Sennrich et al. 2016): join the neighbours whose pair was learnt first, leftmost first.

    A heap of the pairs and a linked list of the tokens, so that it takes O(n log n) for n bytes. A token is only ever
    made of tokens learnt before it, so its number tells its pair's turn.
    """
    byte_ids, merges, _ = _vocabulary()
    ids = [byte_ids[byte] for byte in word.encode("utf-8", errors="replace")]
    ids[-1] += 256  # the byte at the end of a word
    n = len(ids)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    heap = [(merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merges]
    heapq.heapify(heap)
    while heap:
        made, i = heapq.heappop(heap)
        j = after[i]
        if j == n or merges.get((ids[i], ids[j])) != made:
            continue  # one of the two was joined to another meanwhile
        ids[i], ids[j] = made, -1
        after[i] = k = after[j]
        if k < n:
            before[k] = i
        for a, b in ((before[i], i), (i, k)):
            if a >= 0 and b < n and (pair := (ids[a], ids[b])) in merges:
                heapq.heappush(heap, (merges[pair], a))
    return [i for i in ids if i >= 0]


_cached_tokens = lru_cache(maxsize=1 << 14)(_tokens)
