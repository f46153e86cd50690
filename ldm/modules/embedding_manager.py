"""Textual inversion (Gal et al. 2022): words that stand for learned vectors, under the names of its repository."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint import CheckpointError, load_embeddings, save_embeddings

_FOR_WIDTH = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "LDM's text-to-image model"}


class EmbeddingManager(nn.Module):
    """Puts learned vectors where placeholders stand in a prompt; `model.embedding_manager = …` makes a model use it.

    embedder: a text encoder of `ldm.modules.encoders` with a tokenizer. placeholder_strings: words that the tokenizer
    knows as one token ("*", "sks"), or new ones ("<cat-toy>"), which from then on are one. The first of them begin at
    the vectors of the `initializer_words`, each of one token; others at random, spread as the vocabulary is.
    num_vectors_per_token: how many vectors stand for a placeholder. embedding_manager_ckpt: a file to `load`.

    `per_image_tokens` and `progressive_words` of the original are not supported, and refused but for False.
    """

    def __init__(
        self,
        embedder: nn.Module,
        placeholder_strings: Sequence[str] | None = None,
        initializer_words: Sequence[str] | None = None,
        per_image_tokens: bool = False,
        num_vectors_per_token: int = 1,
        progressive_words: bool = False,
        *,
        embedding_manager_ckpt: str | Path | None = None,
    ) -> None:
        super().__init__()
        placeholders, initial = list(placeholder_strings or ()), list(initializer_words or ())
        _check(embedder, placeholders, initial, num_vectors_per_token)
        for name, value in {"per_image_tokens": per_image_tokens, "progressive_words": progressive_words}.items():
            if value:
                raise ValueError(f"{name}={value!r} is not supported here; leave it out, or at False")
        self.tokenizer, self.width = embedder.tokenizer, embedder.token_embedding.embedding_dim
        self.string_to_token_dict: dict[str, int] = {}
        self.vectors = nn.ParameterList()  # in that order; a ParameterDict takes no words such as "v1.5" and "keys"
        for word in placeholders:
            self.set_vectors(word, _random(embedder.token_embedding.weight.detach(), num_vectors_per_token))
        if len(self.vectors) < len(placeholders):
            raise ValueError(f"two of the placeholders are one word to the text encoder: {', '.join(placeholders)}")
        # Which of the vectors begins at which token, and what that was.
        self._begun = {k: (self._one_token(word), _copy(self.vectors[k])) for k, word in enumerate(initial)}
        self.begin_again(embedder)
        if embedding_manager_ckpt:
            self.load(embedding_manager_ckpt)

    @torch.no_grad()
    def begin_again(self, embedder: nn.Module) -> None:
        """Vectors that still are where they began, at their initial words once more: to be called after weights were
        loaded into the text encoder, as LatentDiffusion does."""
        table = embedder.token_embedding.weight
        for k, (token, began) in self._begun.items():
            vectors = self.vectors[k]
            real = not (vectors.is_meta or began.is_meta or table.is_meta)
            if real and torch.equal(_copy(vectors), began):
                vectors.copy_(table[token])
                self._begun[k] = token, _copy(vectors)

    @property
    def string_to_param_dict(self) -> dict[str, nn.Parameter]:
        """Each placeholder's vectors, (n, width)."""
        return dict(zip(self.string_to_token_dict, self.vectors, strict=True))

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """What a training moves."""
        return self.vectors.parameters()

    def set_vectors(self, word: str, vectors: Tensor) -> None:
        """From now on `vectors`, (n, width), stand for `word`, in capital letters or small ones."""
        self._check_vectors(word, vectors)
        device = self.vectors[0].device if len(self.vectors) else vectors.device
        parameter = nn.Parameter(vectors.detach().to(device, torch.float32, copy=True))
        token = self._token(word)
        tokens = list(self.string_to_token_dict.values())
        if token in tokens:
            self.vectors[tokens.index(token)] = parameter
        else:
            self.string_to_token_dict[word] = token
            self.vectors.append(parameter)

    def save(self, path: str | Path) -> None:
        """Write the words and their vectors, as `.pt`, `.bin` or `.safetensors`; see `save_embeddings`."""
        save_embeddings(self.string_to_param_dict, path, self.string_to_token_dict)

    def load(self, path: str | Path) -> list[str]:
        """Take a file's words (`load_embeddings`): new ones, or new vectors for those that are here. Returns them."""
        found = self.read(path)
        for word, vectors in found.items():
            self.set_vectors(word, vectors)
        return list(found)

    def read(self, path: str | Path) -> dict[str, Tensor]:
        """A file's words and vectors, if they fit the text encoder; else CheckpointError (a ValueError)."""
        found = load_embeddings(path)
        for word, vectors in found.items():
            self._check_vectors(word, vectors, f"{str(path)!r}: ")
        return found

    def _check_vectors(self, word: str, vectors: Tensor, source: str = "") -> None:
        if not word.strip():
            raise CheckpointError(f"{source}{word!r} cannot stand in a prompt; give the word another name")
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            theirs, ours = _of_kind(vectors.shape[-1]), _of_kind(self.width)
            raise CheckpointError(
                f"{source}the vectors of {word!r} have the shape {tuple(vectors.shape)}{theirs}, and the words of this"
                f" text encoder (n, {self.width}){ours}: an embedding is only for the kind of model it was made with"
            )

    def forward(self, tokenized_text: Tensor, embedded_text: Tensor) -> Tensor:
        """Token numbers (B, N) and their vectors (B, N, width) → vectors (B, N, width), some of them learned.

        Where several stand for a placeholder, what comes behind moves along; what passes N is cut with a warning, but
        for the end mark, which then stands last. `tokenized_text` is written to as the tokens move.
        """
        table = dict(zip(self.string_to_token_dict.values(), self.string_to_param_dict.items(), strict=True))
        rows = []
        for k, (tokens, x) in enumerate(zip(tokenized_text.tolist(), embedded_text, strict=True)):
            if places := [i for i, token in enumerate(tokens) if token in table]:
                tokens, x = self._replaced(tokens, x, places, table)
                tokenized_text[k] = tokenized_text.new_tensor(tokens)
            rows.append(x)
        return torch.stack(rows)

    def _replaced(
        self, tokens: list[int], x: Tensor, places: list[int], table: Mapping[int, tuple[str, Tensor]]
    ) -> tuple[list[int], Tensor]:
        """One prompt's tokens and vectors, with the learned ones in `places`."""
        numbers, pieces, done, n = [], [], 0, len(tokens)
        for i in places:
            _, vectors = table[tokens[i]]
            numbers += tokens[done:i] + [tokens[i]] * len(vectors)
            pieces += [x[done:i], vectors.to(x)]
            done = i + 1
        numbers, vectors = numbers + tokens[done:], torch.cat([*pieces, x[done:]])
        end = self.tokenizer.end
        passed = end in tokens and end not in numbers[:n]  # the end mark would be lost
        kept = n - 1 if passed else n
        if cut := [number for number in numbers[kept:] if number not in (end, self.tokenizer.pad)]:
            words, lost = ", ".join(repr(table[tokens[i]][0]) for i in places), self.tokenizer.decode(cut)
            warnings.warn(f"with the vectors of {words} the prompt is too long: {lost!r} was cut", stacklevel=2)
        if not passed:
            return numbers[:n], vectors[:n]
        place = tokens.index(end)
        return [*numbers[:kept], end], torch.cat([vectors[:kept], x[place : place + 1]])

    def _token(self, word: str) -> int:
        """The number of a placeholder, which is added to the vocabulary where it is not one of its tokens."""
        numbers = self.tokenizer.encode(word)
        known = len(numbers) == 1 and self.tokenizer.decode(numbers) == word.lower()
        return numbers[0] if known else self.tokenizer.add_word(word)

    def _one_token(self, word: str) -> int:
        numbers = self.tokenizer.encode(word)
        if len(numbers) != 1 or numbers[0] in self.tokenizer.special or self.tokenizer.added_words.named(numbers):
            raise ValueError(
                f"the initializer word {word!r} is not one token of the text encoder's vocabulary (it is"
                f" {len(numbers)}); choose a common word"
            )
        return numbers[0]


def add_embeddings(model: nn.Module, paths: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> list[str]:
    """Attach textual-inversion files to a loaded model; returns the words that prompts may use from now on, in order.

    `paths` may be a single file. A mapping says which word each file is for: {"<cat-toy>": "learned_embeds.bin"}.
    ValueError (CheckpointError) or FileNotFoundError, and nothing is attached, where a file is unreadable, holds no
    embedding, or is for another kind of text encoder, and where two are for one word.
    """
    manager = getattr(model, "embedding_manager", None)
    manager = EmbeddingManager(model.cond_stage_model) if manager is None else manager
    paths = [paths] if isinstance(paths, str | Path) else paths
    found: list[tuple[str, str, Tensor]] = []
    for wanted, path in paths.items() if isinstance(paths, Mapping) else [(None, path) for path in paths]:
        words = manager.read(path)
        if wanted is not None and len(words) != 1:
            raise ValueError(f"{str(path)!r} holds {len(words)} words, {', '.join(words)}: it cannot be for {wanted!r}")
        for word, vectors in words.items() if wanted is None else [(wanted, *words.values())]:
            if other := next((file for file, name, _ in found if name.lower() == word.lower()), None):
                raise ValueError(f"{other!r} and {str(path)!r} are both for {word!r}: say which word each is for")
            found.append((str(path), word, vectors))
    for _, word, vectors in found:
        manager.set_vectors(word, vectors)
    model.embedding_manager = manager.to(model.cond_stage_model.token_embedding.weight.device)
    return [word for _, word, _ in found]


def _check(embedder: nn.Module | None, placeholders: Sequence[str], initial: Sequence[str], n: int) -> None:
    if getattr(embedder, "tokenizer", None) is None or not hasattr(embedder, "token_embedding"):
        who = "an unconditional model" if embedder is None else type(embedder).__name__
        raise ValueError(f"{who} reads no words: textual inversion needs a text encoder with a tokenizer")
    if len(initial) > len(placeholders):
        raise ValueError(f"{len(initial)} initializer words for {len(placeholders)} placeholders: give one for each")
    if n < 1:
        raise ValueError(f"num_vectors_per_token={n}: give at least 1")


def _random(table: Tensor, n: int) -> Tensor:
    """Vectors such as those of the table: (n, width)."""
    table = table.float()
    return table.mean(0) + table.std(0) * torch.randn(n, table.shape[1], device=table.device)


def _of_kind(width: int) -> str:
    return f" ({_FOR_WIDTH[width]})" if width in _FOR_WIDTH else ""


def _copy(vectors: Tensor) -> Tensor:
    return vectors.detach().clone() if vectors.is_meta else vectors.detach().cpu().clone()
