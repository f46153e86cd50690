"""A small caption encoder: words → vectors for cross-attention. The bundled model's `cond_stage_model`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ldm.modules.encoders.words import AddedWords, EmbeddingManager, embed

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z0-9]+")


class CaptionEncoder(nn.Module):
    """A pre-norm transformer (Vaswani et al. 2017) over the words of a closed vocabulary.

    vocabulary: the words it knows, lower case; token 0 is the padding, 1 any other word, 2… these words in order.
    Captions longer than `max_length` words are cut, and unknown words replaced, each with a warning that shows them.
    The empty caption is all padding: the unconditional one of classifier-free guidance.
    """

    def __init__(
        self, vocabulary: Sequence[str], width: int = 128, layers: int = 2, heads: int = 4, max_length: int = 28
    ):
        super().__init__()
        self.tokenizer = ClosedVocabulary(vocabulary)
        self.max_length = max_length
        self.token_embedding = nn.Embedding(len(vocabulary) + 2, width)
        self.position_embedding = nn.Parameter(torch.randn(max_length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        nn.init.normal_(self.token_embedding.weight, std=0.5)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Captions → (B, max_length) token numbers on the model's device."""
        tokens = torch.zeros(len(captions), self.max_length, dtype=torch.long)
        for row, caption in zip(tokens, captions, strict=True):
            words = self.tokenizer.words(caption)
            if unknown := [word for word, number in words if number == UNKNOWN]:
                unknown = ", ".join(dict.fromkeys(unknown))
                warnings.warn(f"{caption!r}: the caption encoder does not know {unknown}", stacklevel=3)
            if cut := " ".join(word for word, _ in words[self.max_length :]):
                warnings.warn(
                    f"{caption!r} has {len(words)} words, {self.max_length} are read: {cut!r} was cut", stacklevel=3
                )
            kept = [number for _, number in words[: self.max_length]]
            row[: len(kept)] = torch.tensor(kept, dtype=torch.long)
        return tokens.to(self.position_embedding.device)

    def forward(self, captions: Sequence[str] | Tensor, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """Captions, or their tokens (B, max_length), → (B, max_length, width).

        An `embedding_manager` gets the tokens and their vectors, and returns the vectors to go on with."""
        if isinstance(captions, Tensor):
            tokens = captions if embedding_manager is None else captions.clone()  # a manager's own to write into
        else:
            tokens = self.tokenize(captions)
            self.tokenizer.added_words.require(tokens, embedding_manager)
        return self.transformer(embed(tokens, self.token_embedding, embedding_manager) + self.position_embedding)

    def encode(self, captions: Sequence[str] | Tensor, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """`forward` under the name that LatentDiffusion looks for."""
        return self(captions, embedding_manager)


class ClosedVocabulary:
    """Words and their numbers; words may be added (`add_word`), for textual inversion. A row has no end mark."""

    pad, end, special = PAD, None, frozenset((PAD, UNKNOWN))

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.index = {word: k for k, word in enumerate(vocabulary, start=UNKNOWN + 1)}
        if len(self.index) != len(vocabulary):
            raise ValueError("vocabulary: a word is listed twice")
        self.added_words = AddedWords(UNKNOWN + 1 + len(vocabulary))

    def words(self, text: str) -> list[tuple[str, int]]:
        """The words of `text` with their numbers."""
        found: list[tuple[str, int]] = []
        for part, number in self.added_words.split(text):
            if number is None:
                found += [(word, self.index.get(word, UNKNOWN)) for word in _WORD.findall(part.lower())]
            else:
                found.append((part, number))
        return found

    def encode(self, text: str) -> list[int]:
        return [number for _, number in self.words(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for; an unknown word is "?"."""
        word_of = {number: word for word, number in {**self.index, **self.added_words.numbers}.items()}
        return " ".join(word_of.get(int(i), "?") for i in ids if i != PAD)

    def add_word(self, word: str) -> int:
        """From now on `word` is one token, of the number that is returned."""
        return self.added_words.add(word)
