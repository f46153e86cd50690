"""From a batch of a data loader to latents and a conditioning, as the original's `get_input`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_CLASS_KEYS = ("class_label", "cls")  # what the original calls labels,
_TEXT_KEYS = ("caption", "txt", "coordinates_bbox")  # and what it hands to the encoder as it is


class Batches:
    """What a diffusion model of pictures does with batches: dicts of pictures, captions and labels."""

    def get_input(self, batch: Mapping[str, Any], k: str) -> Any:
        """`batch[k]`, pictures as data loaders give them → (B, C, H, W)."""
        return self.pictures(batch, k)

    def entry(self, batch: Mapping[str, Any], key: str, bs: int | None = None) -> Any:
        """The first `bs` of `batch[key]`: text as it is, all else as a tensor on the model's device."""
        if key not in batch:
            raise KeyError(f"the batch has no {key!r}, only {', '.join(batch)}; name the right one in the config")
        value = batch[key][:bs]
        if key in _TEXT_KEYS and not isinstance(value, Tensor):
            return value
        value = torch.as_tensor(value)
        value = value.float() if value.dtype == torch.float64 else value  # not every device has float64
        return value.to(self.device)

    def pictures(self, batch: Mapping[str, Any], key: str, bs: int | None = None) -> Tensor:
        """`batch[key]`, (B, H, W, C) or (B, H, W) as data loaders give it → (B, C, H, W), float32, on the device."""
        x = self.entry(batch, key, bs)
        x = x[..., None] if x.ndim == 3 else x
        return x.movedim(-1, 1).float().contiguous()


class LatentBatches(Batches):
    """The same for a model of latents, with a conditioning beside them."""

    @torch.no_grad()
    def get_input(
        self,
        batch: Mapping[str, Any],
        k: str,
        return_first_stage_outputs: bool = False,
        force_c_encode: bool = False,
        cond_key: str | None = None,
        return_original_cond: bool = False,
        bs: int | None = None,
        return_x: bool = False,
    ) -> list[Any]:
        """A batch of a data loader → [latents, conditioning], and what else is asked for.

        `batch[k]`: pictures (B, H, W, 3) or (B, H, W) in [−1, 1]; `batch[cond_key]`, by default that of
        `cond_stage_key`: captions, labels or pictures, encoded unless that is being trained (`forward` encodes them
        then; `force_c_encode` does it here). `bs` takes the first so many. Appended, in this order: the pictures and
        their reconstruction; the pictures (`return_x`); the conditioning before it was encoded.
        """
        x = self.pictures(batch, k, bs)
        z = self.get_first_stage_encoding(self.encode_first_stage(x))
        c = said = None
        if self.model.conditioning_key is not None:
            c = said = self._said(batch, cond_key or self.cond_stage_key, bs)
            if force_c_encode or not self.conditioning_is_trained:
                c = self.get_learned_conditioning(said)
        outputs = [z, c]
        if return_first_stage_outputs:
            outputs += [x, self.decode_first_stage(z)]
        if return_x:
            outputs.append(x)
        if return_original_cond:
            outputs.append(said)
        return outputs

    def _said(self, batch: Mapping[str, Any], key: str, bs: int | None) -> Any:
        """What `batch[key]` says, in the form that the conditioner takes."""
        if key in _CLASS_KEYS:  # the encoder takes them out by a key of its own
            own = getattr(self.cond_stage_model, "key", key)
            return {name: self.entry(batch, name, bs) for name in {key, own} if name in batch or name == key}
        return self.entry(batch, key, bs) if key in _TEXT_KEYS else self.pictures(batch, key, bs)
