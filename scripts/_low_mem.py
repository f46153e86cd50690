"""--low_mem: less memory for more time, and the same pictures.

- Guidance asks the network for one conditioning after the other, not for both in one batch (`batch_guidance=False`).
- The autoencoder works in strips (`ldm.models.strips`), and waits on the CPU while the network has the device.
- The text encoder says all that it will be asked before the network is moved to the device, and goes: `Said`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import _config
import _machine


def options(sampler: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What --low_mem adds to the options of a sampler that are `given`."""
    known = _config._options_of(sampler.__init__) | _config._options_of(sampler.sample)
    return {"batch_guidance": False} if "batch_guidance" in known and "batch_guidance" not in given else {}


def settle(model, device, texts: Iterable[str], *, parks: bool = True) -> None:
    """Bring a model from the CPU to `device`, ready to be asked for `texts` alone; where there are none, for any.

    `parks`: whether the autoencoder waits on the CPU. Where it is also the conditioner, it does not.
    """
    if texts := list(dict.fromkeys(texts)):
        for part in filter(None, (model.cond_stage_model, model.embedding_manager)):
            part.to(device)
        _forget(model, texts)
    first = getattr(model, "first_stage_model", None)
    if hasattr(first, "strip_rows"):
        first.strip_rows = _machine.STRIP_ROWS
    if not parks or first is None or getattr(model, "cond_stage_model", None) is first:
        model.to(device)
    else:
        model.first_stage_model = None
        model.to(device)
        model.first_stage_model = first


def _forget(model, texts: list[str]) -> None:
    """Put what the text encoder says of `texts` in its place, where that is smaller than it is."""
    import torch

    encoder = model.cond_stage_model
    said = model.get_learned_conditioning(texts[:1])
    if not isinstance(said, torch.Tensor) or model.cond_stage_forward not in (None, "encode"):
        return
    if said.nbytes * len(texts) < sum(each.nbytes for each in (*encoder.parameters(), *encoder.buffers())):
        rest = (model.get_learned_conditioning([text]) for text in texts[1:])
        model.cond_stage_model = said_of(dict(zip(texts, (said, *rest), strict=True)))


def said_of(answers: Mapping[str, Any]):
    """A text encoder, (B texts) → (B, N, width), that knows the answers, each (1, N, width), and no more."""
    import torch

    class Said(torch.nn.Module):
        def encode(self, texts: Iterable[str], **_: Any):
            return torch.cat([answers[text] for text in texts])

    return Said()
