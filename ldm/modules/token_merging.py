"""Token merging: an approximation. After "Token Merging for Fast Stable Diffusion", Bolya and Hoffman 2023
(arXiv 2303.17604), and the bipartite soft matching of Bolya et al. 2022 (arXiv 2210.09461).

    with merge_tokens(model, 0.5):
        sampler.sample(…)

Self-attention costs the square of its tokens, which at the highest resolution are many and much alike. So there the
most similar are merged before it, and each gets the answer of what it was merged into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel

MOST = 0.75  # of the tokens: in each 2×2 block one remains


@contextlib.contextmanager
def merge_tokens(model: nn.Module, ratio: float) -> Iterator[None]:
    """Inside, the self-attention of every U-Net in `model` sees, at its highest resolution, fewer tokens by the share
    `ratio`; 0 is exact.

    ValueError unless 0 ≤ ratio ≤ 0.75, and where it would have no effect: the network has no transformer with
    self-attention at that resolution (`attention_resolutions` without 1, or no `use_spatial_transformer`).
    """
    if not 0 <= ratio <= MOST:
        raise ValueError(f"ratio={ratio}: give a share of the tokens from 0, which is exact, to {MOST}")
    blocks = [block for network in model.modules() if isinstance(network, UNetModel) for block in _outermost(network)]
    if not blocks:
        raise ValueError(
            f"merging tokens (ratio={ratio}) has no effect: {type(model).__name__} has no U-Net whose transformers"
            " attend to themselves at the highest resolution; leave it out"
        )
    before = [block.merging for block in blocks]
    for block in blocks:
        block.merging = TokenMerging(ratio)
    try:
        yield
    finally:
        for block, merging in zip(blocks, before, strict=True):
            block.merging = merging


def _outermost(network: UNetModel) -> list[BasicTransformerBlock]:
    """The transformer blocks at the latents' own resolution that attend to themselves."""
    count = network.num_res_blocks[0] + 1
    level = nn.ModuleList([*network.input_blocks[:count], *network.output_blocks[-count:]])
    blocks = (module for module in level.modules() if isinstance(module, BasicTransformerBlock))
    return [block for block in blocks if not block.disable_self_attn]


class TokenMerging:
    """Goes round an attention: `BasicTransformerBlock.merging`. `size` (H, W) is that of the map they are from."""

    def __init__(self, ratio: float, size: tuple[int, int] = (0, 0)) -> None:
        self.ratio, self.size = ratio, size

    def __call__(self, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`attention(x)`, or nearly; x: (B, H·W, C)."""
        count = int(self.ratio * x.shape[1])
        places = match(x, self.size, count) if count and min(self.size) > 1 else None
        return attention(x) if places is None else unmerge(attention(merge(x, places, count)), places)


def match(x: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """Where each token of `x` (B, H·W, C) goes, (B, H·W), if `count` are merged: from 0 to H·W − count.

    One token of each 2×2 block, the first, is a destination. Of the others, the `count` that are most like one of them,
    by the cosine, are merged into that one. They are at least three quarters, so that `count` up to that will do.
    """
    sources, targets = _split(*size, x.device)
    alone = len(sources) - count
    unit = F.normalize(x, dim=-1)
    likeness, nearest = (unit[:, sources] @ unit[:, targets].transpose(1, 2)).max(-1)
    stay = likeness.topk(alone, largest=False).indices
    of_sources = (nearest + alone).scatter_(1, stay, torch.arange(alone, device=x.device).expand(len(x), -1))
    places = x.new_empty(x.shape[:2], dtype=torch.long)
    places[:, sources] = of_sources
    places[:, targets] = torch.arange(alone, alone + len(targets), device=x.device)
    return places


def merge(x: Tensor, places: Tensor, count: int) -> Tensor:
    """The mean of the tokens at each place: (B, N, C) → (B, N − count, C)."""
    merged = x.new_zeros(x.shape[0], x.shape[1] - count, x.shape[2])
    return merged.scatter_reduce_(1, _wide(places, x), x, "mean", include_self=False)


def unmerge(y: Tensor, places: Tensor) -> Tensor:
    """To each token what is at its place: (B, N − count, C) → (B, N, C)."""
    return y.gather(1, _wide(places, y))


def _wide(places: Tensor, x: Tensor) -> Tensor:
    return places[:, :, None].expand(-1, -1, x.shape[2])


def _split(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens that may be merged, and the first of each whole 2×2 block, into which they are."""
    token = torch.arange(height * width, device=device).view(height, width)
    rows, columns = height // 2 * 2, width // 2 * 2
    beside, below = token[:rows:2, 1:columns:2], token[1:rows:2, :columns]
    sources = (beside, below, token[:rows, columns:], token[rows:])  # the last two where a size is odd
    return torch.cat([part.flatten() for part in sources]), token[:rows:2, :columns:2].flatten()
