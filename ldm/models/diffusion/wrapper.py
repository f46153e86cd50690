"""Between the conditionings and the network: which goes where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.util import instantiate_from_config

_WANTED = {  # conditioning_key → the conditionings that it takes, all of them and no other
    None: (),
    "concat": ("c_concat",),
    "crossattn": ("c_crossattn",),
    "hybrid": ("c_concat", "c_crossattn"),
    "adm": ("c_crossattn",),
    "hybrid-adm": ("c_concat", "c_crossattn", "c_adm"),
    "crossattn-adm": ("c_crossattn", "c_adm"),
}


class DiffusionWrapper(nn.Module):
    """Hands the conditionings to the network the way `conditioning_key` says. Named by the checkpoints' keys."""

    KEYS = tuple(_WANTED)

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in self.KEYS:
            raise ValueError(f"conditioning_key={conditioning_key!r} is unknown; choose one of {self.KEYS}")
        if diff_model_config.get("sequential_crossattn"):
            raise ValueError("sequential_crossattn=True: one context per block is not supported; set it to false")
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | Sequence[Tensor] | None = None,
        c_crossattn: Tensor | Sequence[Tensor] | None = None,
        c_adm: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """`c_concat` (B, C, H, W) joins x along the channels, `c_crossattn` (B, L, D) along the tokens, and `c_adm`,
        (B,) or (B, D), the timestep, as the first of `c_crossattn` does where the key is "adm"."""
        key, given = self.conditioning_key, {"c_concat": c_concat, "c_crossattn": c_crossattn, "c_adm": c_adm}
        given = {name: [value] if isinstance(value, Tensor) else list(value or ()) for name, value in given.items()}
        for name, tensors in given.items():
            wanted = name in _WANTED[key]
            if bool(tensors) != wanted:
                verb, remedy = ("needs", "pass it in") if wanted else ("does not take", "leave it out of")
                raise ValueError(f"conditioning_key={key!r} {verb} {name}: {remedy} the conditioning")
        inputs = {}
        if key == "adm":
            inputs["y"] = given["c_crossattn"][0]
        elif given["c_crossattn"]:
            inputs["context"] = _cat(given["c_crossattn"])
        if given["c_adm"]:
            inputs["y"] = given["c_adm"][0]
        output = self.diffusion_model(_cat([x, *given["c_concat"]]), t, **inputs)
        graphed = getattr(self.diffusion_model, "_compiled_call_impl", None) is not None and x.is_cuda
        return output.clone() if graphed else output  # a CUDA graph writes its next answer to the same place


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """Along the channels or the tokens; a single one is left as it is, for what layers keep with it."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
