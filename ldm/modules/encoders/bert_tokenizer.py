"""BERT's tokenizer (Devlin et al. 2019): WordPiece with the vocabulary of bert-base-uncased, 30522 tokens."""

from __future__ import annotations

import gzip
import re
import string
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from pathlib import Path

from ldm.modules.encoders.tokenizer import Tokenizer, normalize

_FILE = Path(__file__).resolve().parents[2] / "assets" / "bert_base_uncased_vocab.txt.gz"
PAD, UNKNOWN, START, END = 0, 100, 101, 102
_MARKS = {"[PAD]": PAD, "[UNK]": UNKNOWN, "[CLS]": START, "[SEP]": END, "[MASK]": 103}
_MARK = re.compile(f"({'|'.join(map(re.escape, _MARKS))})")
_LONGEST_WORD = 100
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class WordPieceTokenizer(Tokenizer):
    """Prompts → (B, max_length): [CLS], the prompt's tokens, [SEP], [PAD] up to the length.

    Words of more than 100 characters, and those that the vocabulary cannot spell, are [UNK]. "[SEP]" and the other
    marks stand for themselves in a prompt.
    """

    vocabulary_size = 30522
    special = frozenset(_MARKS.values())

    def __init__(self, max_length: int = 77) -> None:
        super().__init__(START, END, PAD, max_length)

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text without added words; see `encode`. None of them is put at its beginning or end."""
        ids: list[int] = []
        for part in _MARK.split(text):
            if part in _MARKS:
                ids.append(_MARKS[part])
            else:
                for word in _words(part):
                    ids += _tokens(word) if len(word) <= _LONGEST_WORD else [UNKNOWN]
        return ids

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for, words parted by one space; marks but [UNK] are left out."""
        words = list(_vocabulary())
        kept = (int(i) for i in ids if i == UNKNOWN or i not in _MARKS.values())
        return " ".join(words[i] for i in kept).replace(" ##", "").removeprefix("##")


def _words(text: str) -> list[str]:
    """Words in lower case without accents; an ideograph, or a punctuation mark, is a word of its own."""
    plain = normalize("NFD", text.translate(_CLEAN)).translate(_LOWER)
    return plain.split()


class _Each(dict):
    """A table for `str.translate` that asks a function once per character."""

    def __init__(self, function: Callable[[str], str]) -> None:
        super().__init__()
        self.function = function

    def __missing__(self, code: int) -> str:
        self[code] = self.function(chr(code))
        return self[code]


def _clean(char: str) -> str:
    if char in "\t\n\r" or unicodedata.category(char)[0] == "Z":
        return " "
    if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return f" {char} " if any(low <= ord(char) <= high for low, high in _IDEOGRAPHS) else char


def _lower(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Mn":
        return ""
    return f" {char} " if category[0] == "P" or char in string.punctuation else char.lower()


_CLEAN, _LOWER = _Each(_clean), _Each(_lower)


@cache
def _vocabulary() -> dict[str, int]:
    with gzip.open(_FILE, "rt", encoding="utf-8", newline="\n") as file:
        return {line.rstrip("\n"): i for i, line in enumerate(file)}


@lru_cache(maxsize=1 << 14)
def _tokens(word: str) -> list[int]:
    """WordPiece (Wu et al. 2016): the longest piece that the vocabulary has, again and again; all of it or [UNK]."""
    vocabulary, ids, start = _vocabulary(), [], 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in vocabulary), None)
        if end is None:
            return [UNKNOWN]
        ids.append(vocabulary[mark + word[start:end]])
        start = end
    return ids
