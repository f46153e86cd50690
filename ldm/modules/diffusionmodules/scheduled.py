"""What every module with a noise schedule does: the buffers under CompVis' names, and noise by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.sampling.schedule import NoiseSchedule, q_sample


class ScheduledModule(nn.Module):
    """A module whose noise schedule is made from its config, real and in float32 under all circumstances.

    Real also under `torch.device("meta")`, because not every checkpoint holds the schedule: it is made by numpy, which
    that context does not reach. In float32 whatever `.half()` or `.to(dtype)` do to the networks, or a file's dtype is:
    in half precision ᾱ has two or three digits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._in_float32: tuple[str, ...] = ()

    def _register_schedule(self, betas: Sequence[float]) -> None:
        """`betas`: (T,). Makes the buffers `betas`, `alphas_cumprod` (ᾱ) and those that follow from them."""
        buffers = NoiseSchedule.from_betas(betas).buffers()
        self.num_timesteps = len(buffers["betas"])
        self._schedule = tuple(buffers)
        for name, values in buffers.items():
            self._register_float32(name, values)

    def _register_float32(self, name: str, values: Any, persistent: bool = True) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.float32)), persistent=persistent)
        self._in_float32 = tuple(dict.fromkeys((*self._in_float32, name)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScheduledModule:
        """Moves and casts the networks; the schedule is only moved."""
        kept = {name: getattr(self, name) for name in self._in_float32}
        super()._apply(fn, recurse)
        for name, values in kept.items():
            if not values.is_meta:
                setattr(self, name, values.to(getattr(self, name).device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Takes a file's values as float32; a schedule that it holds in half precision is left, for the config's."""
        for name in self._in_float32:
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.dtype != torch.float32:
                halved = stored.dtype.itemsize < 4 and name in self._schedule
                state_dict[prefix + name] = getattr(self, name) if halved else stored.float()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t of x_start at timesteps t (B,): Ho et al. 2020, eq. 4. Without `noise` it is drawn."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return q_sample(x_start, self._alpha_bar(t, x_start), noise)

    def _alpha_bar(self, t: Tensor, x: Tensor) -> Tensor:
        return at(self.alphas_cumprod, t, x)


def at(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """`values` (T,) at timesteps t (B,), shaped to be multiplied with x (B, …)."""
    return values[t].reshape(-1, *[1] * (x.ndim - 1))
