"""Keep a known region while the rest is sampled (CompVis' inpainting). Mask 1 = keep, 0 = sample, between = mix, or
keep at first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .values import to_host


def keep_known(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`known` where the mask is 1, `x` where it is 0. `x`: (B, …); the others broadcast to it.

    Before a step `known` is x0 noised to x's level, so that the step sees one picture; after the last it is x0.
    """
    return mask * known + (1 - mask) * x


def kept_at(mask: Tensor, i: int, n: int) -> Tensor:
    """The mask at step i of n (0: the noisiest), 0 and 1 alone: what is m between them is kept in the first m·n steps.

    Levin & Fried 2023, "Differential Diffusion": what is coarse is settled first, while more around it is known.
    At i = n, after the last step, 1 alone is kept.
    """
    return ((mask * n > i) | (mask == 1)).to(mask)


def check_mask(mask: Tensor, x0: Tensor | None, shape: tuple[int, ...]) -> None:
    """ValueError unless the mask, in [0, 1], broadcasts to `shape`, and x0 is latents of it, or one for all samples."""
    if x0 is None:
        raise ValueError("mask is given without x0: pass the latents to keep as x0 (mask 1 keeps them)")
    if tuple(x0.shape) not in (shape, (1, *shape[1:]), shape[1:]):
        raise ValueError(f"x0 has shape {tuple(x0.shape)}: the latents to keep must be {shape}, or {shape[1:]} for all")
    if not broadcasts(mask.shape, shape):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, which does not broadcast to the latents' {shape}: "
            f"resize it to {(shape[0], 1, *shape[2:])}"
        )
    low, high = to_host(torch.stack(mask.float().aminmax())).tolist()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"mask holds values from {low:g} to {high:g}: 1 keeps x0, 0 samples; scale it to [0, 1]")


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of `shape` broadcasts to `to`, and does not widen it."""
    try:
        return torch.broadcast_shapes(shape, to) == torch.Size(to)
    except RuntimeError:
        return False
