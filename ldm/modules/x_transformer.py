"""The text transformer of the first latent-diffusion models, as far as their checkpoints use it (after x-transformers).

Attribute names are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

from torch import Tensor, nn

from ldm.modules.attention import FeedForward, multi_head_attention
from ldm.modules.encoders.words import EmbeddingManager, embed


class AbsolutePositionalEmbedding(nn.Module):
    """A learnt vector for each position."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (B, N, …); returns (N, dim)."""
        if x.shape[1] > self.emb.num_embeddings:
            raise ValueError(f"{x.shape[1]} tokens are more than max_seq_len={self.emb.num_embeddings}; cut them")
        return self.emb.weight[: x.shape[1]]


class Attention(nn.Module):
    """Multi-head self-attention: every token sees every other, and without a mask the padding, too."""

    def __init__(self, dim: int, dim_head: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_k = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_v = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x`: (B, N, dim); `mask`: (B, N), bool, true where there is a token; returns (B, N, dim)."""
        if mask is not None:
            mask = mask[:, None, :, None] & mask[:, None, None]
        return self.to_out(multi_head_attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads, mask))


class Encoder(nn.Module):
    """`depth` times attention and an MLP, each on a normed input and added back.

    Of x-transformers' options those that keep this shape; any other is a TypeError.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int = 8,
        *,
        attn_dim_head: int = 64,
        ff_mult: int = 4,
        ff_glu: bool = False,
        ff_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList()
        for _ in range(depth):
            mlp = FeedForward(dim, mult=ff_mult, glu=ff_glu, dropout=ff_dropout)
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), Attention(dim, attn_dim_head, heads)]))
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), mlp]))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x`: (B, N, dim); `mask`: (B, N), bool, true where there is a token; returns (B, N, dim)."""
        for norm, layer in self.layers:
            h = norm(x)
            x = (layer(h, mask) if isinstance(layer, Attention) else layer(h)) + x
        return x


class TransformerWrapper(nn.Module):
    """Token numbers → vectors, or with `return_embeddings=False` each token's logits over the vocabulary."""

    def __init__(self, *, num_tokens: int, max_seq_len: int, attn_layers: Encoder, emb_dropout: float = 0.0) -> None:
        super().__init__()
        dim = attn_layers.dim
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = AbsolutePositionalEmbedding(dim, max_seq_len)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.attn_layers = attn_layers
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_tokens)
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def forward(
        self,
        x: Tensor,
        return_embeddings: bool = False,
        mask: Tensor | None = None,
        embedding_manager: EmbeddingManager | None = None,
    ) -> Tensor:
        """`x`: (B, N) token numbers; returns (B, N, dim) or (B, N, num_tokens).

        `mask`: (B, N), bool, true where there is a token. An `embedding_manager` gets the tokens and their vectors, and
        returns the vectors to go on with.
        """
        x = self.emb_dropout(embed(x, self.token_emb, embedding_manager) + self.pos_emb(x))
        h = self.norm(self.attn_layers(x, mask))
        return h if return_embeddings else self.to_logits(h)
