"""Words beyond a vocabulary: how a tokenizer keeps them in one piece, and where the vectors for them come in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ldm.modules.encoders.tokenizer import Tokenizer

EmbeddingManager = Callable[[Tensor, Tensor], Tensor]


class AddedWords:
    """Words with token numbers from `first` on, above those of the vocabulary; capital letters are as small ones.

    A word that begins (ends) with a letter or digit is found only where no other stands before (behind) it.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.numbers: dict[str, int] = {}
        self._pattern: re.Pattern[str] | None = None

    def add(self, word: str) -> int:
        """The number of `word`, from now on."""
        number = self.numbers.setdefault(word.lower(), self.first + len(self.numbers))
        longest_first = sorted(self.numbers, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(_alone, longest_first))})", re.IGNORECASE)
        return number

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The parts of `text`, with the number of each that is such a word."""
        for part in [text] if self._pattern is None else self._pattern.split(text):
            if part:
                yield part, self.numbers.get(part.lower())

    def named(self, tokens: Iterable[int]) -> list[str]:
        """Those words whose numbers are among `tokens`."""
        tokens = set(tokens)
        return [word for word, number in self.numbers.items() if number in tokens]

    def require(self, tokens: Tensor, embedding_manager: EmbeddingManager | None) -> None:
        """ValueError where `tokens` has such words and nothing that knows their vectors."""
        if embedding_manager is None and self.numbers and (used := self.named(tokens.unique().tolist())):
            raise ValueError(
                f"{', '.join(map(repr, used))}: the text encoder has no vector for it; pass the embedding_manager that"
                " has, as model.get_learned_conditioning does"
            )


def _alone(word: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    behind = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + behind


def embed(tokens: Tensor, words: nn.Embedding, embedding_manager: EmbeddingManager | None = None) -> Tensor:
    """Token numbers (B, N) → vectors (B, N, width), some of them of `embedding_manager(tokens, vectors)`.

    The manager may write where the tokens went to into `tokens`, as that of the textual-inversion repository does.
    """
    if embedding_manager is None:
        return words(tokens)
    known = torch.clamp(tokens, max=words.num_embeddings - 1)  # an added word has no vector there
    return embedding_manager(tokens, words(known))


def as_tokens(
    text: str | Sequence[str] | Tensor,
    tokenizer: Tokenizer | None,
    words: nn.Embedding,
    embedding_manager: EmbeddingManager | None = None,
) -> Tensor:
    """Prompts or tokens → tokens on the device of the embedding that reads them; a manager's own to write into."""
    if not isinstance(text, Tensor):
        if tokenizer is None:
            raise TypeError(f"this encoder has no tokenizer; give token numbers as a tensor, not {type(text).__name__}")
        if words.num_embeddings < tokenizer.vocabulary_size:
            raise ValueError(
                f"the text encoder knows {words.num_embeddings} tokens and its tokenizer {tokenizer.vocabulary_size};"
                " give token numbers as a tensor"
            )
        text = tokenizer(text)
        tokenizer.added_words.require(text, embedding_manager)
    return text.to(words.weight.device, copy=embedding_manager is not None)
