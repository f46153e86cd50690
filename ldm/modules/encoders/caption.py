"""A small caption encoder: words → vectors for cross-attention. The bundled model's `cond_stage_model`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import torch
from torch import nn

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
        self.index = {word: k for k, word in enumerate(vocabulary, start=2)}
        if len(self.index) != len(vocabulary):
            raise ValueError("vocabulary: a word is listed twice")
        self.max_length = max_length
        self.token_embedding = nn.Embedding(len(vocabulary) + 2, width)
        self.position_embedding = nn.Parameter(torch.randn(max_length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        nn.init.normal_(self.token_embedding.weight, std=0.5)

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions → (B, max_length) token numbers on the model's device."""
        tokens = torch.zeros(len(captions), self.max_length, dtype=torch.long)
        for row, caption in zip(tokens, captions, strict=True):
            words = _WORD.findall(caption.lower())
            if unknown := [word for word in words if word not in self.index]:
                warnings.warn(f"{caption!r}: the caption encoder does not know {', '.join(unknown)}", stacklevel=3)
            if cut := words[self.max_length :]:
                warnings.warn(
                    f"{caption!r} has {len(words)} words, {self.max_length} are read: {' '.join(cut)!r} was cut",
                    stacklevel=3,
                )
            kept = [self.index.get(word, 1) for word in words[: self.max_length]]
            row[: len(kept)] = torch.tensor(kept, dtype=torch.long)
        return tokens.to(self.position_embedding.device)

    def forward(self, captions: Sequence[str] | torch.Tensor) -> torch.Tensor:
        """Captions, or their tokens (B, max_length), → (B, max_length, width)."""
        tokens = captions if isinstance(captions, torch.Tensor) else self.tokenize(captions)
        return self.transformer(self.token_embedding(tokens) + self.position_embedding)

    def encode(self, captions: Sequence[str] | torch.Tensor) -> torch.Tensor:
        """`forward` under the name that LatentDiffusion looks for."""
        return self(captions)
