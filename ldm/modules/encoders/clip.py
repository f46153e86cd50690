"""CLIP's text transformer (Radford et al. 2021), once with transformers' key names and once with OpenCLIP's.

Pre-norm, causal, learnt positions. The two differ in names, in how the attention's projections are stored and, mostly,
in the activation. Attribute names are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.clip_tokenizer import END
from ldm.modules.encoders.text_config import ACTIVATIONS, TextConfig
from ldm.modules.encoders.words import EmbeddingManager, embed


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
    return nn.Sequential(OrderedDict([(first, into), ("activation", ACTIVATIONS[c.activation]()), (second, out)]))


def _run(
    tokens: Tensor,
    words: nn.Embedding,
    positions: Tensor,
    blocks: Iterable[nn.Module],
    embedding_manager: EmbeddingManager | None,
) -> Tensor:
    """Embed `tokens` (B, N), N at most len(positions), and pass them through `blocks`: (B, N, width)."""
    n = tokens.shape[-1]
    if n > len(positions):
        raise ValueError(f"{n} tokens are more than the {len(positions)} that the text transformer has positions for")
    x = embed(tokens, words, embedding_manager) + positions[:n]
    for block in blocks:
        x = block(x)
    return x


class CLIPTextModel(nn.Module):
    """The text transformer under transformers' key names: Stable Diffusion 1's `cond_stage_model.transformer`.

    An `embedding_manager` gets the tokens and their vectors, and returns the vectors to go on with (`words.embed`).
    """

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

    def forward(self, tokens: Tensor, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """`tokens`: (B, N); returns the last layer's output, normed: (B, N, width)."""
        return self.text_model.final_layer_norm(self.hidden(tokens, -1, embedding_manager))

    def hidden(self, tokens: Tensor, index: int, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """The output of layer `index`, not normed; 0 is the embedding, −1 the last layer."""
        layers = self.text_model.encoder.layers
        if not -len(layers) <= index + 1 <= len(layers) + 1:
            raise ValueError(f"layer {index} of {len(layers)}: give {-len(layers) - 1} to {len(layers)}")
        embeddings = self.text_model.embeddings
        blocks = layers[: range(len(layers) + 1)[index]]
        positions = embeddings.position_embedding.weight
        return _run(tokens, embeddings.token_embedding, positions, blocks, embedding_manager)

    def pooled(self, tokens: Tensor, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """The normed output at the first end of text, which has seen all of the prompt: (B, width)."""
        last = self(tokens, embedding_manager)  # first: the manager may move the end
        end = (tokens == min(END, self.config.vocabulary - 1)).int().argmax(-1)
        return last[torch.arange(len(tokens), device=tokens.device), end]

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

    `text_projection`, `logit_scale` and `attn_mask` are in the checkpoints and play no part here. `embedding_manager`
    as for CLIPTextModel.
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

    def forward(self, tokens: Tensor, skip: int = 0, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """`tokens`: (B, N); returns the output of all layers but the last `skip`, normed: (B, N, width)."""
        blocks = self.transformer.resblocks[: len(self.transformer.resblocks) - skip]
        return self.ln_final(_run(tokens, self.token_embedding, self.positional_embedding, blocks, embedding_manager))


def unused_in_open_clip(name: str, shape: tuple[int, ...]) -> Tensor:
    """For a weight of `OpenCLIPTextModel` that a file lacks and nothing uses; a block of zeros passes on its input."""
    if name == "attn_mask":
        return torch.full(shape, -math.inf).triu(1)
    if name == "logit_scale":
        return torch.tensor(math.log(1 / 0.07))
    return torch.eye(*shape) if name == "text_projection" else torch.zeros(shape)
