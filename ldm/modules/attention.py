"""The transformer inside the U-Net: self-attention over pixels, cross-attention to the conditioning, a gated MLP.

Latent diffusion, Rombach et al. 2022, section 3.3. Attribute names are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import Normalize, checkpoint, repeat_to, zero_module
from ldm.modules.kept import once
from ldm.util import default, exists


def uniq(arr: Iterable[Any]) -> Iterable[Any]:
    """What `arr` holds, each once, in its order."""
    return dict.fromkeys(arr).keys()


def max_neg_value(t: Tensor) -> float:
    """The least number of t's dtype: before a softmax it means never."""
    return torch.finfo(t.dtype).min


def init_(tensor: Tensor) -> Tensor:
    """Fill with numbers uniform in ±1/√d, d the last axis' length; returns it."""
    limit = tensor.shape[-1] ** -0.5
    return nn.init.uniform_(tensor, -limit, limit)


def multi_head_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale · q kᵀ) v per head, with 1/√d as scale unless given.

    `q`: (B, N, heads·d); `k`, `v`: (B, M, heads·d); `mask`: bool, (B, 1 or heads, 1 or N, M), true where a query sees a
    key; returns (B, N, heads·d).
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return attend(q, k, v, mask, scale).transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """`scaled_dot_product_attention`, except where its backward pass is slow.

    On the CPU the low-precision kernel's backward takes up to seven times as long as float32's (measured with few
    keys, as in cross-attention to a caption), so training there widens q, k and v; everything else stays narrow.

    Many keys and values are brought into one piece per head first: the CPU's kernel reads them again for each block of
    queries (4096 tokens of 8 × 40: 404 ms against 446).

    A query that `mask` lets see nothing gets the mean of all values, as in CompVis; torch's own boolean mask gives NaN.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and q.requires_grad:
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), mask, scale).to(q.dtype)
    if q.device.type == "cpu" and k.shape[-2] >= 1024:
        k, v = k.contiguous(), v.contiguous()
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, max_neg_value(q))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class GEGLU(nn.Module):
    """Linear(x) · GELU(Linear(x)) (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """The MLP of a transformer block; `glu` gates the hidden layer."""

    def __init__(self, dim: int, dim_out: int | None = None, mult: int = 4, glu: bool = False, dropout: float = 0.0):
        super().__init__()
        inner = int(dim * mult)
        hidden = GEGLU(dim, inner) if glu else nn.Sequential(nn.Linear(dim, inner), nn.GELU())
        self.net = nn.Sequential(hidden, nn.Dropout(dropout), nn.Linear(inner, dim if dim_out is None else dim_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LinearAttention(nn.Module):
    """Attention over pixels without the matrix of all pairs (Katharopoulos et al. 2020), not added to the input.

    softmax(k) vᵀ, over the pixels, is one small matrix for all queries: the cost grows with the pixels, not their
    square.
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) → (B, dim, H, W)."""
        q, k, v = self.to_qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)  # (B, heads, dim_head, pixels)
        summary = k.softmax(-1) @ v.transpose(-1, -2)
        return self.to_out((summary.transpose(-1, -2) @ q).flatten(1, 2).unflatten(2, x.shape[2:]))


class SpatialSelfAttention(nn.Module):
    """Single-head self-attention over the pixels, added to the input."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.norm = Normalize(in_channels)
        self.q = nn.Conv2d(in_channels, in_channels, 1)
        self.k = nn.Conv2d(in_channels, in_channels, 1)
        self.v = nn.Conv2d(in_channels, in_channels, 1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, in_channels, H, W)."""
        h = self.norm(x)
        q, k, v = (_to_tokens(proj(h))[:, None] for proj in (self.q, self.k, self.v))
        return x + self.proj_out(_to_map(attend(q, k, v)[:, 0], x.shape[2:]))


class CrossAttention(nn.Module):
    """Multi-head attention from `x` to `context`, or to `x` itself without one.

    Repositories that look into attention or slice it put a `forward` of their own on the class or on single layers,
    and read `heads` and `scale`: the blocks call forward(x, context=…), and what is written to `scale` counts.
    """

    def __init__(
        self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = dim_head * heads
        context_dim = default(context_dim, query_dim)
        self.heads, self.dim_head, self.scale = heads, dim_head, dim_head**-0.5
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`x`: (B, N, query_dim); `context`: (B, M, context_dim); returns (B, N, query_dim).

        `mask`: (B, M) or of a shape that flattens to it, bool, true where the context is to be seen.
        """
        context = default(context, x)
        if exists(mask):
            mask = _over_keys(mask, context)
        q = self.to_q(x)
        # a text's are the same at each step
        k, v = once(self, context, (self.to_k, self.to_v), q.dtype, lambda: (self.to_k(context), self.to_v(context)))
        return self.to_out(multi_head_attention(q, k, v, self.heads, mask, self.scale))


def _over_keys(mask: Tensor, context: Tensor) -> Tensor:
    """(B, …) → (B, 1, 1, M), for every head and query."""
    flat = mask.flatten(1)
    if flat.dtype != torch.bool or flat.shape != context.shape[:2]:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; give bool of shape {tuple(context.shape[:2])}, true"
            " where the context is to be seen"
        )
    return flat[:, None, None]


class MemoryEfficientCrossAttention(CrossAttention):
    """`CrossAttention` by the name that it has in Stable Diffusion 2 with xformers: torch's kernel needs none of it."""


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each on a normed input and added back.

    `disable_self_attn` lets the first attention look at the context too (the ×4 upscaler does so). The attention is of
    the class that `ATTENTION_MODES` has under "softmax" when a block is made.
    """

    ATTENTION_MODES = {"softmax": CrossAttention, "softmax-xformers": MemoryEfficientCrossAttention}
    merging: Callable[..., Tensor] | None = None  # round the self-attention: see ldm.modules.token_merging

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        checkpoint: bool = True,
        disable_self_attn: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.disable_self_attn = disable_self_attn
        attention = self.ATTENTION_MODES["softmax"]
        options = {"query_dim": dim, "heads": n_heads, "dim_head": d_head, "dropout": dropout}
        self.attn1 = attention(context_dim=context_dim if disable_self_attn else None, **options)
        self.ff = FeedForward(dim, glu=gated_ff, dropout=dropout)
        self.attn2 = attention(context_dim=context_dim, **options)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return checkpoint(self._forward, (x, context), None, self.checkpoint)

    def _forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if context is not None and self.disable_self_attn:
            x = repeat_to(x, context.shape[0])
        if self.merging is None:
            x = self.attn1(self.norm1(x), context=context if self.disable_self_attn else None) + x
        else:
            x = self.merging(self.attn1, self.norm1(x)) + x
        if context is not None:  # several for each picture: until here they had the same to see
            x = repeat_to(x, context.shape[0])
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, as a residual branch that starts at zero.

    `use_linear` projects with linear layers, as Stable Diffusion 2 does, instead of 1×1 convolutions. A list as
    `context_dim` has one width for each of the `depth` blocks, and then a list of contexts is given, too.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | Sequence[int] | None = None,
        disable_self_attn: bool = False,
        use_linear: bool = False,
        use_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        inner = n_heads * d_head
        self.in_channels = in_channels
        self.use_linear = use_linear
        self.norm = Normalize(in_channels)
        self.proj_in = nn.Linear(in_channels, inner) if use_linear else nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, n_heads, d_head, dropout, width, True, use_checkpoint, disable_self_attn)
            for width in _per_block(context_dim, depth, "context_dim")
        )
        out = nn.Linear(inner, in_channels) if use_linear else nn.Conv2d(inner, in_channels, 1)
        self.proj_out = zero_module(out)

    def forward(self, x: Tensor, context: Tensor | Sequence[Tensor] | None = None) -> Tensor:
        """`x`: (B, C, H, W); `context`: (B, M, context_dim), or one for each block; returns (B, C, H, W).

        A context of n·B is n contexts for each x, one after the other along the batch, and so is what is returned.
        """
        size = x.shape[2:]
        h = self.norm(x)
        if self.use_linear:
            h = self.proj_in(_to_tokens(h))
        else:
            h = _to_tokens(self.proj_in(h))
        contexts = _per_block(context, len(self.transformer_blocks), "context")
        for block, seen in zip(self.transformer_blocks, contexts, strict=True):
            if getattr(block, "merging", None) is not None:  # a repository's own block has none
                block.merging.size = size
            h = block(h, context=seen)
        if self.use_linear:
            h = _to_map(self.proj_out(h), size)
        else:
            h = self.proj_out(_to_map(h, size))
        return h + repeat_to(x, h.shape[0])


def _to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


def _to_map(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, H·W, C) → (B, C, H, W)."""
    return x.transpose(1, 2).unflatten(2, size)


def _per_block(value: Any, depth: int, name: str) -> list[Any]:
    """One for each of `depth` blocks; what is no list, or a list of one, is for all."""
    values = list(value) if isinstance(value, Sequence) else [value]
    values = values * depth if len(values) == 1 else values
    if len(values) != depth:
        raise ValueError(f"{name} has {len(values)} entries for {depth} transformer blocks; give one for each, or one")
    return values
