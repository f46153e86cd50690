"""The original networks' numbers, and weights for a test that depend on nothing but their names."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from ldm.util import instantiate_from_config

GOLDEN = Path(__file__).parent / "golden" / "networks"
CASES = json.loads((GOLDEN / "index.json").read_text())


def golden_weights(model):
    """Fill the state dict by the rule of golden/networks/README.md."""
    for k, v in model.state_dict().items():
        r = torch.randn(v.shape, generator=torch.Generator().manual_seed(zlib.crc32(k.encode())))
        if v.ndim >= 2:
            v.copy_(r / math.sqrt(math.prod(v.shape[1:])))
        else:
            v.copy_(1 + 0.1 * r if k.endswith("weight") else 0.1 * r)
    return model.eval().requires_grad_(False)


def golden(name):
    arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}
    return golden_weights(instantiate_from_config(CASES[name])), arrays


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
