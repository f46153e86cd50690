"""Textual-inversion files: a word, and the vectors that stand for it in a prompt (Gal et al. 2022).

They come in three layouts: {"string_to_token", "string_to_param"} of the original, which the web UI writes too, with
the word's name beside it; {word: vectors} of diffusers; and {"emb_params": vectors}, whose word is the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.errors import CheckpointError, some
from ldm.checkpoint.files import describe, load_content
from ldm.checkpoint.pickle_names import Parameters, StoredTensor
from ldm.checkpoint.save import appearing_whole, save_checkpoint
from ldm.checkpoint.torch_files import kind

_SUFFIXES = (".pt", ".bin", ".safetensors")


def load_embeddings(path: str | Path) -> dict[str, Tensor]:
    """The words of a textual-inversion file, each with its vectors (n, width) in float32.

    Nothing in the file is run. CheckpointError where it holds no embedding, or cannot be read safely.
    """
    path = Path(path)
    content, build = load_content(path)
    words = _words(content, path.stem) if isinstance(content, dict) else {}
    if not words or not all(_is_vectors(name, value) for name, value in words.items()):
        raise CheckpointError(f"{str(path)!r} holds no textual-inversion embedding: {_what(content)}")
    found = {}
    for word, value in words.items():
        vectors = (build(value) if isinstance(value, StoredTensor) else value).float()
        if not vectors.isfinite().all():
            raise CheckpointError(f"{str(path)!r}: the vectors of {word!r} are not finite; get the file again")
        found[word] = vectors.reshape(-1, vectors.shape[-1])
    return found


def save_embeddings(vectors: Mapping[str, Tensor], path: str | Path, tokens: Mapping[str, int] | None = None) -> None:
    """Write {word: vectors (n, width)}: in the original's layout to a `.pt` file, where `tokens` are the words' numbers
    in the vocabulary, in diffusers' to `.bin` and `.safetensors`. An existing file is replaced once the new is whole.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{str(path)!r}: embeddings are saved as {', '.join(_SUFFIXES)}, not {path.suffix!r}")
    if not vectors:
        raise ValueError("there are no words to save")
    plain = {word: value.detach().float().cpu().clone() for word, value in vectors.items()}
    if path.suffix == ".safetensors":
        save_checkpoint(plain, path, overwrite=True)
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{str(path)!r} cannot be saved: make the folder {str(path.parent)!r} first")
    numbers = {word: torch.tensor(number) for word, number in (tokens or {}).items()}
    original = {"string_to_token": numbers, "string_to_param": plain}
    with appearing_whole(path) as file:
        torch.save(plain if path.suffix == ".bin" else original, file)


def _words(content: dict[str, Any], stem: str) -> Mapping[str, Any]:
    """{word: what should be its vectors}."""
    if "emb_params" in content:
        return {stem: content["emb_params"]}
    if "string_to_param" not in content:
        return content
    words = content["string_to_param"]
    words = words.found if isinstance(words, Parameters) else words
    name = content.get("name")
    if not isinstance(words, dict):
        return {}
    return {name: next(iter(words.values()))} if isinstance(name, str) and name and len(words) == 1 else words


def _is_vectors(name: Any, value: Any) -> bool:
    """Vectors by a name that may be a word; a layer's weight is none, though it may have such a shape."""
    if not isinstance(name, str) or not isinstance(value, (StoredTensor, Tensor)):
        return False
    layer = re.search(r"\.(weight|bias|alpha)$|^(weight|bias|alpha|clip_[lg])$", name)
    return not layer and value.dtype.is_floating_point and len(value.shape) in (1, 2) and 0 not in value.shape


def _what(content: Any) -> str:
    """What there is instead."""
    if not isinstance(content, dict):
        return f"it is {kind(content)}"
    if {"clip_l", "clip_g"} & content.keys():
        return "it is one for SDXL, whose two text encoders are not here"
    content = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    told = describe(name for name in content if isinstance(name, str))
    if told and "textual" not in told:
        return f"it looks like {told}"
    return f"it has {some(f'{name}: {kind(value)}' for name, value in content.items())}" if content else "it is empty"
