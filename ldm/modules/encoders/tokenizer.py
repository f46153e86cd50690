"""What the two tokenizers share: from prompts to one row of token numbers each, all of one length."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ldm.modules.encoders.words import AddedWords


class Tokenizer:
    """Prompts → (B, max_length) token numbers: `start`, the prompt's, `end`, then `pad` up to the length.

    A subclass says which numbers a text has (`encode_text`) and what they stand for (`decode_text`). Words may be added
    to its vocabulary (`add_word`), for textual inversion.
    """

    vocabulary_size: int
    special: frozenset[int]  # numbers that stand for no word

    def __init__(self, start: int, end: int, pad: int, max_length: int) -> None:
        if max_length < 2:
            raise ValueError(f"max_length={max_length}: a row begins and ends with a token of its own; give at least 2")
        self.start, self.end, self.pad, self.max_length = start, end, pad, max_length
        self.added_words = AddedWords(self.vocabulary_size)

    def encode_text(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode_text(self, ids: Iterable[int]) -> str:
        raise NotImplementedError

    def add_word(self, word: str) -> int:
        """From now on `word` is one token, of the number that is returned."""
        return self.added_words.add(word)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, all of them, without the marks that begin and end a row."""
        ids: list[int] = []
        for part, number in self.added_words.split(text):
            ids += self.encode_text(part) if number is None else [number]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for, words parted by one space; marks are left out."""
        word_of = {number: word for word, number in self.added_words.numbers.items()}
        pieces: list[str] = []
        for added, run in groupby(map(int, ids), key=word_of.get):
            numbers = list(run)
            pieces += [added] * len(numbers) if added else [self.decode_text(numbers)]
        return " ".join(pieces)

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """One prompt or several → (B, max_length), int64, on the CPU. What does not fit is cut with a warning."""
        rows = [self._row(text) for text in _as_list(texts)]
        return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(-1, self.max_length)

    def _row(self, text: str) -> list[int]:
        ids, room = self.encode(text), self.max_length - 2
        if cut := ids[room:]:
            warnings.warn(
                f"the prompt {_brief(text)!r} has {len(ids)} tokens and {room} are read:"
                f" {_brief(self.decode(cut))!r} was cut",
                stacklevel=4,
            )
        row = [self.start, *ids[:room], self.end]
        return row + [self.pad] * (self.max_length - len(row))


def _as_list(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, Mapping)) or not isinstance(texts, Iterable):
        raise TypeError(f"a prompt is a string, or several a list of strings; {_brief(repr(texts))} is neither")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"prompt {i} of {len(texts)} is {_brief(repr(text))}; every prompt must be a string")
    return texts


def _brief(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def normalize(form: str, text: str) -> str:
    """`unicodedata.normalize` in linear time: it sorts runs of combining marks by insertion, for minutes if they
    are long. Here they come to it in order."""
    if len(text) > 1000:
        decomposed = "".join(unicodedata.normalize("NFD", char) for char in text)
        runs = groupby(decomposed, key=lambda char: unicodedata.combining(char) > 0)
        text = "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)
    return unicodedata.normalize(form, text)
