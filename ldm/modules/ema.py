"""An exponential moving average of a model's weights, in CompVis' layout."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Averages of the trainable parameters of `model`, updated by calling it: `ema(model)`.

    avg ← d·avg + (1 − d)·weight, with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the first steps are
    forgotten soon; `use_num_upates=False` (CompVis' spelling) keeps d = decay.

    Buffers are called as the parameters are, without the dots: frozen by the released checkpoints' keys.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay}: choose a number from 0 (no memory) to 1 (no change)")
        # By numpy, which `torch.device("meta")` does not reach: real where a file of averages lacks them, too.
        self.register_buffer("decay", torch.from_numpy(np.array(decay, dtype=np.float32)))
        self.register_buffer("num_updates", torch.from_numpy(np.array(0 if use_num_upates else -1)))  # −1: not counted
        self.m_name2s_name: dict[str, str] = {}
        self.collected_params: list[Tensor] = []
        for name, p in model.named_parameters():
            if p.requires_grad:
                shadow = name.replace(".", "")
                if hasattr(self, shadow):
                    raise ValueError(f"the average of {name!r} would be called {shadow!r}, which is taken; rename it")
                self.m_name2s_name[name] = shadow
                self.register_buffer(shadow, p.detach().clone())

    def _apply(self, fn, recurse: bool = True) -> LitEma:
        """Moves and casts the averages; `decay` is only moved, for in half precision 0.9999 is 1."""
        decay = self.decay
        super()._apply(fn, recurse)
        self.decay = decay.to(self.decay.device)
        return self

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Take the weights of `model` into the average. Nothing here waits for the device."""
        n = self.num_updates
        n += n >= 0
        warm = torch.minimum(self.decay, (1 + n) / (10 + n))
        weight = 1 - torch.where(n >= 0, warm, self.decay)
        for shadow, p in self._pairs(model):
            shadow.lerp_(p.to(shadow), weight.to(shadow))

    def reset_num_updates(self) -> None:
        """Count from 0 again, so that what was averaged so far is forgotten soon."""
        self.num_updates.zero_()

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights of `model` with the average."""
        for shadow, p in self._pairs(model):
            p.copy_(shadow)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep a copy of these weights for `restore`."""
        self.collected_params = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the weights of the last `store` back; pass the same parameters."""
        for kept, p in zip(self.collected_params, parameters, strict=True):
            p.copy_(kept)
        self.collected_params = []

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, nn.Parameter]]:
        parameters = dict(model.named_parameters())
        shadows = dict(self.named_buffers())
        return [(shadows[s], parameters[name]) for name, s in self.m_name2s_name.items()]
