"""Between two latents: spherical interpolation, which keeps what lies between as noisy as its ends."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """From `a` (weight 0) to `b` (weight 1) along the great circle (Shoemake 1985; Song et al. 2021, appendix D.5).

    `a`, `b`: latents (B, …), each sample one vector; `weight`: a number, or one for each sample, (B,). B may be 1 on
    either side: slerp(a, b, torch.linspace(0, 1, 11)) of single latents is 11. The angle is that between the two
    directions; for ends of equal norm, which latents of noise nearly have, that norm is kept (a straight line loses up
    to 30 % of it, and a picture its detail).

    Parallel ends fall back to the straight line, which the circle is there. Opposite ends do too: no circle is marked
    out among all that join them, and the line passes through zero. ValueError for shapes that do not agree.
    """
    if a.shape[1:] != b.shape[1:] or a.ndim < 2 or a.ndim != b.ndim:
        raise ValueError(f"slerp of shapes {tuple(a.shape)} and {tuple(b.shape)}: give latents (B, …) of equal shapes")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)  # angles need its digits
    u, v = (x.to(dtype).flatten(1) for x in (a, b))
    w = torch.as_tensor(weight, dtype=dtype, device=u.device).reshape(-1, 1)
    if len({len(u), len(v), len(w)} - {1}) > 1:
        raise ValueError(f"slerp of {len(u)} and {len(v)} latents with {len(w)} weights: give as many, or one")

    tiny = torch.finfo(dtype).tiny
    p, q = (x / x.norm(dim=1, keepdim=True).clamp(min=tiny) for x in (u, v))
    angle = 2 * torch.atan2((p - q).norm(dim=1, keepdim=True), (p + q).norm(dim=1, keepdim=True))  # acos rounds near 0
    sine = torch.sin(angle)
    straight = sine < torch.finfo(dtype).eps ** 0.5  # here the two differ by less than rounding
    sine = torch.where(straight, 1, sine)
    from_a = torch.where(straight, 1 - w, torch.sin((1 - w) * angle) / sine)
    from_b = torch.where(straight, w, torch.sin(w * angle) / sine)
    mixed = from_a * u + from_b * v
    given = torch.promote_types(a.dtype, b.dtype)
    return mixed.reshape(len(mixed), *a.shape[1:]).to(given if given.is_floating_point else dtype)
