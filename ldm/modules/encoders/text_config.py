"""The sizes of CLIP's text transformers, by the names that OpenAI and OpenCLIP gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): the GELU that OpenAI trained CLIP with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


@dataclass(frozen=True)
class TextConfig:
    """The size of a text transformer. `hidden`: of the MLP; `embed_dim`: of the space shared with pictures."""

    width: int
    layers: int
    heads: int
    hidden: int
    positions: int = 77
    vocabulary: int = 49408
    activation: str = "quick_gelu"
    eps: float = 1e-5
    embed_dim: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} attention heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not known; choose one of {', '.join(ACTIVATIONS)}")


_TRANSFORMERS_NAMES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "positions",
    "vocab_size": "vocabulary",
    "hidden_act": "activation",
    "layer_norm_eps": "eps",
}
_BASE = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
_LARGE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP = {
    "openai/clip-vit-large-patch14": _LARGE,
    "openai/clip-vit-large-patch14-336": _LARGE,
    "openai/clip-vit-base-patch32": _BASE,
    "openai/clip-vit-base-patch16": _BASE,
}
_OPEN_CLIP_SIZES = ("width", "heads", "layers", "embed_dim")
_OPEN_CLIP_NAMES = (*_OPEN_CLIP_SIZES, "context_length", "vocab_size", "mlp_ratio")
_OPEN_CLIP = {  # in the order of _OPEN_CLIP_SIZES
    "ViT-B-32": (512, 8, 12, 512),
    "ViT-B-16": (512, 8, 12, 512),
    "ViT-L-14": (768, 12, 12, 768),
    "ViT-L-14-336": (768, 12, 12, 768),
    "ViT-H-14": (1024, 16, 24, 1024),
    "ViT-g-14": (1024, 16, 24, 1024),
    "ViT-bigG-14": (1280, 20, 32, 1280),
}


def clip_config(version: str, text_config: Mapping[str, Any] | None = None) -> TextConfig:
    """The size of OpenAI's `version`, overridden by `text_config` under transformers' names.

    text_config may be a whole config.json: what does not change the text transformer is passed over. It must be
    complete (hidden_size and so on) where `version` is not known.
    """
    given = {**_CLIP.get(version, {}), **(text_config or {})}
    if missing := _LARGE.keys() - given.keys():
        raise ValueError(
            f"version={version!r} is not known; choose one of {', '.join(_CLIP)}, or give text_config with"
            f" {', '.join(sorted(missing))}"
        )
    return TextConfig(**{ours: given[theirs] for theirs, ours in _TRANSFORMERS_NAMES.items() if theirs in given})


def open_clip_config(arch: str, version: str, text_config: Mapping[str, Any] | None = None) -> TextConfig:
    """The size of open_clip's `arch`, overridden by `text_config`: open_clip's text_cfg, and its embed_dim.

    The activation is GELU, except in the architectures called "…-quickgelu" and with OpenAI's own weights.
    """
    stem = arch.removesuffix("-quickgelu")
    known = dict(zip(_OPEN_CLIP_SIZES, _OPEN_CLIP[stem], strict=True)) if stem in _OPEN_CLIP else {}
    given = {**known, **(text_config or {})}
    if unknown := given.keys() - set(_OPEN_CLIP_NAMES):
        raise ValueError(f"text_config has {', '.join(sorted(unknown))}; known are {', '.join(_OPEN_CLIP_NAMES)}")
    if missing := set(_OPEN_CLIP_SIZES) - given.keys():
        raise ValueError(
            f"arch={arch!r} is not known; choose one of {', '.join(_OPEN_CLIP)}, or give text_config with"
            f" {', '.join(sorted(missing))}"
        )
    given = {{"context_length": "positions", "vocab_size": "vocabulary"}.get(k, k): v for k, v in given.items()}
    hidden = round(given["width"] * given.pop("mlp_ratio", 4))
    quick = stem != arch or version == "openai"
    return TextConfig(hidden=hidden, activation="quick_gelu" if quick else "gelu", **given)
