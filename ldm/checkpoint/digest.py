"""Whether two files hold the same weights, whatever their formats and names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, shapes, dtypes and values, in the order of the names. Reads all of them."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().resolve_conj().resolve_neg()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
