"""What turns a conditioning into the network's input, under CompVis' names and constructor arguments.

`device` is taken for the sake of CompVis' configs and has no effect: what is encoded goes to where the weights are.
Nothing is downloaded: weights come with the checkpoint, vocabularies with this package. An `embedding_manager` (textual
inversion) is called with the tokens and their vectors, and returns the vectors to go on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.bert_tokenizer import WordPieceTokenizer
from ldm.modules.encoders.clip import CLIPTextModel, OpenCLIPTextModel
from ldm.modules.encoders.clip_tokenizer import END, CLIPTokenizer
from ldm.modules.encoders.text_config import clip_config, open_clip_config
from ldm.modules.encoders.tokenizer import Tokenizer
from ldm.modules.encoders.words import EmbeddingManager, as_tokens
from ldm.modules.x_transformer import Encoder, TransformerWrapper


class AbstractEncoder(nn.Module):
    """A module that encodes by being called; `encode` is the name that LatentDiffusion looks for."""

    frozen = False

    @property
    def device(self) -> torch.device | None:
        """Where the weights are; None of an encoder that has none."""
        return next((p.device for p in self.parameters()), None)

    def encode(self, *args: Any, **kwargs: Any) -> Tensor:
        return self(*args, **kwargs)

    def freeze(self) -> AbstractEncoder:
        """No gradients, and eval() for good, whatever mode the model around it is put in."""
        self.frozen = True
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> AbstractEncoder:
        return super().train(mode and not self.frozen)


class IdentityEncoder(AbstractEncoder):
    """Hands on what it is given, such as vectors that were encoded beforehand."""

    def forward(self, x: Any) -> Any:
        return x


class ClassEmbedder(AbstractEncoder):
    """Class label → one vector, as a sequence of length 1 for cross-attention."""

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class") -> None:
        super().__init__()
        self.key = key
        self.n_classes = n_classes
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: Mapping[str, Any] | Tensor | Sequence[int] | int, key: str | None = None) -> Tensor:
        """Labels 0 … n_classes − 1, (B,), or a batch that has them under `key`; returns (B, 1, embed_dim)."""
        return self.embedding(self._labels(batch, self.key if key is None else key)[:, None])

    def get_unconditional_conditioning(self, batch_size: int, device: torch.device | str | None = None) -> dict:
        """The last class, which stands for none in models that were trained for guidance, as a batch."""
        return {self.key: torch.full((batch_size,), self.n_classes - 1, device=device)}

    def _labels(self, batch: Mapping[str, Any] | Tensor | Sequence[int] | int, key: str) -> Tensor:
        if isinstance(batch, Mapping):
            if key not in batch:
                raise KeyError(f"the batch has no {key!r}; it has {', '.join(map(repr, batch))}")
            batch = batch[key]
        labels = torch.as_tensor(batch, device=self.embedding.weight.device)
        labels = labels[None] if labels.ndim == 0 else labels
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(
                f"class labels are whole numbers, one for each sample, not {labels.dtype} of {tuple(labels.shape)}"
            )
        labels = labels.long()
        wrong = labels[(labels < 0) | (labels >= self.n_classes)]
        if len(wrong):
            raise ValueError(f"class {wrong[0].item()} is not there; the model knows 0 to {self.n_classes - 1}")
        return labels


class TransformerEmbedder(AbstractEncoder):
    """Token numbers → vectors."""

    def __init__(
        self, n_embed: int, n_layer: int, vocab_size: int, max_seq_len: int = 77, device: str | None = "cuda"
    ) -> None:
        super().__init__()
        self.transformer = TransformerWrapper(
            num_tokens=vocab_size, max_seq_len=max_seq_len, attn_layers=Encoder(dim=n_embed, depth=n_layer)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: (B, N ≤ max_seq_len); returns (B, N, n_embed)."""
        return self.transformer(as_tokens(tokens, None, self.transformer.token_emb), return_embeddings=True)


class BERTTokenizer(AbstractEncoder):
    """Prompts → (B, max_length) token numbers; BERT lent its vocabulary to these models, not its weights.

    With `vq_interface`, `encode` answers as a vector-quantised first stage does: None, None, [None, None, tokens].
    """

    def __init__(self, device: str | None = "cuda", vq_interface: bool = True, max_length: int = 77) -> None:
        super().__init__()
        self.tokenizer = WordPieceTokenizer(max_length)
        self.vq_interface = vq_interface
        self.max_length = max_length

    def forward(self, text: str | Sequence[str]) -> Tensor:
        return self.tokenizer(text)

    @torch.no_grad()
    def encode(self, text: str | Sequence[str]) -> Tensor | tuple[None, None, list]:
        tokens = self(text)
        return (None, None, [None, None, tokens]) if self.vq_interface else tokens

    def decode(self, text: Any) -> Any:
        return text


class BERTEmbedder(AbstractEncoder):
    """Prompts → (B, max_seq_len, n_embed) by a transformer that was trained with the diffusion model.

    Without `use_tokenizer` it reads token numbers only.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        device: str | None = "cuda",
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.use_tknz_fn = use_tokenizer
        if use_tokenizer:
            self.tknz_fn = BERTTokenizer(vq_interface=False, max_length=max_seq_len)
        self.transformer = TransformerWrapper(
            num_tokens=vocab_size,
            max_seq_len=max_seq_len,
            attn_layers=Encoder(dim=n_embed, depth=n_layer),
            emb_dropout=embedding_dropout,
        )

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.tknz_fn.tokenizer if self.use_tknz_fn else None

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.transformer.token_emb

    def forward(self, text: str | Sequence[str] | Tensor, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """Prompts, or their tokens (B, N ≤ max_seq_len); returns (B, N, n_embed)."""
        tokens = as_tokens(text, self.tokenizer, self.token_embedding, embedding_manager)
        return self.transformer(tokens, return_embeddings=True, embedding_manager=embedding_manager)


class SpatialRescaler(AbstractEncoder):
    """A map or picture → the latent's size: `n_stages` times scaled by `multiplier`, then a 1×1 convolution to
    `out_channels` if these are given."""

    METHODS = ("nearest", "linear", "bilinear", "trilinear", "bicubic", "area")

    def __init__(
        self,
        n_stages: int = 1,
        method: str = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if method not in self.METHODS:
            raise ValueError(f"method={method!r} is not known; choose one of {', '.join(self.METHODS)}")
        if n_stages < 0:
            raise ValueError(f"n_stages={n_stages} is negative; give the number of times to scale")
        self.n_stages, self.method, self.multiplier = n_stages, method, multiplier
        self.channel_mapper = None if out_channels is None else nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, multiplierⁿ H, multiplierⁿ W)."""
        for _ in range(self.n_stages):
            x = F.interpolate(x, scale_factor=self.multiplier, mode=self.method)
        return x if self.channel_mapper is None else self.channel_mapper(x.to(self.channel_mapper.weight.dtype))


class FrozenCLIPEmbedder(AbstractEncoder):
    """Prompts → (B, max_length, width) by OpenAI's CLIP; Stable Diffusion 1's text encoder.

    layer: "last", normed; "pooled", the vector of the whole prompt as a sequence of length 1; "hidden", the output of
    layer `layer_idx` (0 the embedding, −1 the last), not normed.
    text_config: sizes that differ from those of `version`, under the names of transformers' config.json.
    """

    LAYERS = ("last", "pooled", "hidden")

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | None = "cuda",
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        layer_idx: int | None = None,
        text_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _require_layer(layer, self.LAYERS)
        config = clip_config(version, text_config)
        if layer == "hidden" and (layer_idx is None or not -config.layers - 1 <= layer_idx <= config.layers):
            raise ValueError(f'layer="hidden" needs layer_idx from {-config.layers - 1} to {config.layers}')
        self.tokenizer = CLIPTokenizer(_fitting(max_length, config.positions), pad=END)
        self.transformer = CLIPTextModel(config)
        self.max_length, self.layer, self.layer_idx = max_length, layer, layer_idx
        if freeze:
            self.freeze()

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.transformer.token_embedding

    def forward(self, text: str | Sequence[str] | Tensor, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """Prompts, or their tokens (B, N)."""
        tokens = as_tokens(text, self.tokenizer, self.token_embedding, embedding_manager)
        if self.layer == "pooled":
            return self.transformer.pooled(tokens, embedding_manager)[:, None]
        if self.layer == "hidden":
            return self.transformer.hidden(tokens, self.layer_idx, embedding_manager)
        return self.transformer(tokens, embedding_manager)


class FrozenOpenCLIPEmbedder(AbstractEncoder):
    """Prompts → (B, max_length, width) by an OpenCLIP text transformer; Stable Diffusion 2's text encoder.

    layer: "last", or "penultimate", where the last block is left out; both normed.
    text_config: what differs from `arch`, under the names of open_clip's text_cfg, and embed_dim.
    """

    LAYERS = ("last", "penultimate")

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str = "laion2b_s32b_b79k",
        device: str | None = "cuda",
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        text_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _require_layer(layer, self.LAYERS)
        config = open_clip_config(arch, version, text_config)
        self.tokenizer = CLIPTokenizer(_fitting(max_length, config.positions), pad=0)
        self.model = OpenCLIPTextModel(config)
        self.max_length, self.layer = max_length, layer
        if freeze:
            self.freeze()

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.model.token_embedding

    def forward(self, text: str | Sequence[str] | Tensor, embedding_manager: EmbeddingManager | None = None) -> Tensor:
        """Prompts, or their tokens (B, N)."""
        tokens = as_tokens(text, self.tokenizer, self.token_embedding, embedding_manager)
        return self.model(tokens, 1 if self.layer == "penultimate" else 0, embedding_manager)


def _require_layer(layer: str, choices: Sequence[str]) -> None:
    if layer not in choices:
        raise ValueError(f"layer={layer!r} is not known; choose one of {', '.join(choices)}")


def _fitting(max_length: int, positions: int) -> int:
    if max_length > positions:
        raise ValueError(f"max_length={max_length}: the text transformer has positions for {positions} tokens only")
    return max_length
