"""CLIP's text transformer (Radford et al. 2021), once with transformers' key names and once with OpenCLIP's.

Pre-norm, causal, learnt positions. The two differ in names, in how the attention's projections are stored and, mostly,
in the activation. Attribute names are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.clip_tokenizer import END


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): the GELU that OpenAI trained CLIP with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


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
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not known; choose one of {', '.join(_ACTIVATIONS)}")


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


class _CausalAttention(nn.Module):
    """Multi-head self-attention to the token itself and those before it. A subclass says how q, k, v are stored."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.out_proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> Iterable[Tensor]:
        """q, k and v, all of x's shape."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.project(x))
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class _SeparateAttention(_CausalAttention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> Iterable[Tensor]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class _PackedAttention(_CausalAttention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))

    def project(self, x: Tensor) -> Iterable[Tensor]:
        return F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)


class _Layer(nn.Module):
    """transformers' block."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.self_attn = _SeparateAttention(c.width, c.heads)
        self.layer_norm1 = nn.LayerNorm(c.width, eps=c.eps)
        self.mlp = _mlp(c, "fc1", "fc2")
        self.layer_norm2 = nn.LayerNorm(c.width, eps=c.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _ResBlock(nn.Module):
    """OpenCLIP's block."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.width, eps=c.eps)
        self.attn = _PackedAttention(c.width, c.heads)
        self.ln_2 = nn.LayerNorm(c.width, eps=c.eps)
        self.mlp = _mlp(c, "c_fc", "c_proj")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def _mlp(c: TextConfig, first: str, second: str) -> nn.Sequential:
    into, out = nn.Linear(c.width, c.hidden), nn.Linear(c.hidden, c.width)
    return nn.Sequential(OrderedDict([(first, into), ("activation", _ACTIVATIONS[c.activation]()), (second, out)]))


def _run(tokens: Tensor, words: nn.Embedding, positions: Tensor, blocks: Iterable[nn.Module]) -> Tensor:
    """Embed `tokens` (B, N), N at most len(positions), and pass them through `blocks`: (B, N, width)."""
    n = tokens.shape[-1]
    if n > len(positions):
        raise ValueError(f"{n} tokens are more than the {len(positions)} that the text transformer has positions for")
    x = words(tokens) + positions[:n]
    for block in blocks:
        x = block(x)
    return x


class CLIPTextModel(nn.Module):
    """The text transformer under transformers' key names: Stable Diffusion 1's `cond_stage_model.transformer`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = c = config
        self.text_model = text = nn.Module()
        text.embeddings = nn.Module()
        text.embeddings.token_embedding = nn.Embedding(c.vocabulary, c.width)
        text.embeddings.position_embedding = nn.Embedding(c.positions, c.width)
        text.encoder = nn.Module()
        text.encoder.layers = nn.ModuleList(_Layer(c) for _ in range(c.layers))
        text.final_layer_norm = nn.LayerNorm(c.width, eps=c.eps)
        nn.init.normal_(text.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(text.embeddings.position_embedding.weight, std=0.02)

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.text_model.embeddings.token_embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: (B, N); returns the last layer's output, normed: (B, N, width)."""
        return self.text_model.final_layer_norm(self.hidden(tokens, -1))

    def hidden(self, tokens: Tensor, index: int) -> Tensor:
        """The output of layer `index`, not normed; 0 is the embedding, −1 the last layer."""
        layers = self.text_model.encoder.layers
        if not -len(layers) <= index + 1 <= len(layers) + 1:
            raise ValueError(f"layer {index} of {len(layers)}: give {-len(layers) - 1} to {len(layers)}")
        embeddings = self.text_model.embeddings
        blocks = layers[: range(len(layers) + 1)[index]]
        return _run(tokens, embeddings.token_embedding, embeddings.position_embedding.weight, blocks)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The normed output at the first end of text, which has seen all of the prompt: (B, width)."""
        end = (tokens == min(END, self.config.vocabulary - 1)).int().argmax(-1)
        return self(tokens)[torch.arange(len(tokens), device=tokens.device), end]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        renamed = rename_text_keys(state_dict, prefix)
        state_dict.clear()
        state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *args)


def rename_text_keys(weights: Mapping[str, Tensor], prefix: str = "cond_stage_model.transformer.") -> dict[str, Tensor]:
    """`weights` with the keys that `CLIPTextModel` has below `prefix`; all others stay as they are.

    transformers 5 writes no "text_model." before them, and old versions save `position_ids`, a constant.
    """
    renamed = {}
    for key, value in weights.items():
        if key.startswith(prefix):
            name = key[len(prefix) :].removeprefix("text_model.")
            if name == "embeddings.position_ids":
                continue
            if name.split(".")[0] in ("embeddings", "encoder", "final_layer_norm"):
                key = f"{prefix}text_model.{name}"
        renamed[key] = value
    return renamed


class OpenCLIPTextModel(nn.Module):
    """The text transformer under OpenCLIP's key names: Stable Diffusion 2's `cond_stage_model.model`.

    `text_projection`, `logit_scale` and `attn_mask` are in the checkpoints and play no part here.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = c = config
        self.token_embedding = nn.Embedding(c.vocabulary, c.width)
        self.positional_embedding = nn.Parameter(torch.randn(c.positions, c.width) * 0.01)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(_ResBlock(c) for _ in range(c.layers))
        self.ln_final = nn.LayerNorm(c.width, eps=c.eps)
        self.text_projection = nn.Parameter(torch.randn(c.width, c.embed_dim) * c.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("attn_mask", torch.full((c.positions, c.positions), -math.inf).triu(1))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, skip: int = 0) -> Tensor:
        """`tokens`: (B, N); returns the output of all layers but the last `skip`, normed: (B, N, width)."""
        blocks = self.transformer.resblocks
        x = _run(tokens, self.token_embedding, self.positional_embedding, blocks[: len(blocks) - skip])
        return self.ln_final(x)


def unused_in_open_clip(name: str, shape: tuple[int, ...]) -> Tensor:
    """For a weight of `OpenCLIPTextModel` that a file lacks and nothing uses; a block of zeros passes on its input."""
    if name == "attn_mask":
        return torch.full(shape, -math.inf).triu(1)
    if name == "logit_scale":
        return torch.tensor(math.log(1 / 0.07))
    return torch.eye(*shape) if name == "text_projection" else torch.zeros(shape)
