"""The classifier of noisy pictures by which a sampler is guided (Dhariwal and Nichol 2021, section 4): half a U-Net.

Attribute names, and the order of layers inside each `nn.Sequential`, are frozen by the released checkpoints' keys.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import QKVAttention
from ldm.modules.diffusionmodules.half_unet import HalfUNet
from ldm.modules.diffusionmodules.util import conv_nd, normalization, zero_module

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
_HIDDEN = 2048  # units of the spatial pools' MLP


class AttentionPool2d(nn.Module):
    """A map → one vector: the mean, as a token before the pixels, attends to all (as in CLIP, Radford et al. 2021).

    For maps of `spacial_dim`² pixels (CompVis' spelling) and `embed_dim` channels; `output_dim` numbers come out.
    """

    def __init__(
        self, spacial_dim: int, embed_dim: int, num_heads_channels: int, output_dim: int | None = None
    ) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(embed_dim, spacial_dim**2 + 1) / embed_dim**0.5)
        self.qkv_proj = conv_nd(1, embed_dim, 3 * embed_dim, 1)
        self.c_proj = conv_nd(1, embed_dim, output_dim or embed_dim, 1)
        self.num_heads = embed_dim // num_heads_channels
        self.attention = QKVAttention(self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, embed_dim, spacial_dim, spacial_dim) → (B, output_dim)."""
        x = x.flatten(2)
        if x.shape[2] + 1 != self.positional_embedding.shape[1]:
            pixels = self.positional_embedding.shape[1] - 1
            raise ValueError(f"the attention pool was made for {pixels} pixels, got {x.shape[2]}: give that size")
        x = torch.cat([x.mean(2, keepdim=True), x], dim=2) + self.positional_embedding
        return self.c_proj(self.attention(self.qkv_proj(x)))[:, :, 0]


class EncoderUNetModel(HalfUNet):
    """Pictures or latents with noise, and their timesteps → logits (B, out_channels).

    Parameters are `UNetModel`'s, and `pool`, how a map becomes a vector: "adaptive" takes the mean; "attention" an
    `AttentionPool2d`, for inputs of `image_size` only and heads of `num_head_channels`; "spatial" and "spatial_v2" put
    an MLP on the means of every block's output. Without effect: `num_heads_upsample` and, as for `UNetModel`,
    `use_fp16`; any other keyword, which the original swallowed, gets a warning.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
        **ignored: Any,
    ) -> None:
        super().__init__(
            image_size,
            in_channels,
            model_channels,
            out_channels,
            num_res_blocks,
            attention_resolutions,
            dropout=dropout,
            channel_mult=channel_mult,
            conv_resample=conv_resample,
            dims=dims,
            use_checkpoint=use_checkpoint,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
        )
        if ignored:
            warnings.warn(f"{', '.join(ignored)}: without effect on an EncoderUNetModel", stacklevel=2)
        self.pool = pool
        self.out = self._head(pool)

    def _head(self, pool: str) -> nn.Sequential:
        width, classes = self._widths[-1], self.out_channels
        features = sum(self._widths) + width
        if pool == "adaptive":
            score = zero_module(conv_nd(self.dims, width, classes, 1))
            mean = getattr(nn, f"AdaptiveAvgPool{self.dims}d")(1)
            return nn.Sequential(normalization(width), nn.SiLU(), mean, score, nn.Flatten())
        if pool == "attention":
            if self.num_head_channels == -1:
                raise ValueError('pool="attention" needs num_head_channels, the width of its heads')
            size = self.image_size // 2 ** (len(self.channel_mult) - 1)
            attention = AttentionPool2d(size, width, self.num_head_channels, classes)
            return nn.Sequential(normalization(width), nn.SiLU(), attention)
        if pool == "spatial":
            return nn.Sequential(nn.Linear(features, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes))
        if pool == "spatial_v2":
            norm = normalization(_HIDDEN)
            return nn.Sequential(nn.Linear(features, _HIDDEN), norm, nn.SiLU(), nn.Linear(_HIDDEN, classes))
        raise ValueError(f"pool={pool!r} is not known; choose one of {', '.join(POOLS)}")

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """`x`: (B, in_channels, H, W), H and W as `UNetModel` takes them; `timesteps`: (B,) or (1,)."""
        self._check_input(x, timesteps)
        emb = self._embed(timesteps)
        h = x.to(self.dtype)
        means = []
        for block in (*self.input_blocks, self.middle_block):
            h = block(h, emb)
            means.append(h.flatten(2).mean(2))
        h = torch.cat(means, dim=1) if self.pool.startswith("spatial") else h
        return self.out(h).to(x.dtype)
