"""Weights from a file, and a model from a config and a file. Nothing that a file says is run."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.util import instantiate_from_config

# In a file but not in the model, and of no use to it: the schedule's buffers (the config makes them), EMA copies where
# the model keeps none, the weights of a training loss, and a constant that older text encoders saved.
_HARMLESS_UNEXPECTED = re.compile(
    r"(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior|lvlb)_\w+|logvar)$|model_ema\.|(\w+\.)?loss\."
    r"|cond_stage_model\..*position_ids$"
)
# In the model but not in the file, and made from the config alone. `scale_factor` is not: where kept, it was measured.
_HARMLESS_MISSING = re.compile(r"(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior|lvlb)_\w+|logvar)$")
_MAX_HEADER = 100_000_000  # bytes: safetensors' own limit for its header


class CheckpointError(ValueError):
    """A file that holds no weights, cannot be read safely, or does not fit the model."""


def load_state_dict(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on `device`; its format is recognised by content, not by the file's name.

    Reads safetensors and what `torch.save` writes (the zip format and the older pickle), without running anything that
    a pickle asks for. A "state_dict" around the tensors is taken off. CheckpointError (a ValueError) or
    FileNotFoundError say what is wrong with the file.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {str(path)!r} {what}; give the path of a .safetensors or .ckpt file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
    if _is_safetensors(start):
        content = _read_safetensors(path, size, start, device)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        content = _read_torch(path, device, mmap=start.startswith(b"PK"))
    else:
        found = "is empty" if not size else f"starts with {start!r}"
        raise CheckpointError(f"{str(path)!r} is not a checkpoint: it {found}; safetensors and torch files can be read")
    return _tensors(content, path)


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of header length (little-endian), then the header, a JSON object."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER


def _read_safetensors(path: Path, size: int, start: bytes, device: str | torch.device) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{str(path)!r} is a safetensors file: `pip install safetensors` to read it") from error
    if 8 + int.from_bytes(start[:8], "little") > size:
        raise CheckpointError(f"{str(path)!r} is truncated: its header alone is longer than the file")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} is truncated or damaged ({error}); get the file again") from error


def _read_torch(path: Path, device: str | torch.device, mmap: bool) -> Any:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # CVE-2025-32434: weights_only could be got round
        raise CheckpointError(f"{str(path)!r} is a pickle, safe to read from torch 2.6 on; this is {torch.__version__}")
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not wanted:
            raise CheckpointError(f"{str(path)!r} is damaged or not a torch file; get the file again") from error
        raise CheckpointError(
            f"{str(path)!r} was refused: reading it would run {wanted[1]}, and a checkpoint may hold anything there; "
            "save its state_dict alone, best as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{str(path)!r} is truncated or damaged ({reason}); get the file again") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}, not named tensors (a state_dict)")
    wrong = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong or not content:
        found = f"other things ({_some(wrong)})" if wrong else "nothing"
        raise CheckpointError(f"{str(path)!r} holds {found} where a state_dict has named tensors")
    return dict(content)


def load_model(config: Mapping[str, Any], ckpt: str | Path | None = None, *, device: str | torch.device = "cpu"):
    """Build `config["model"]` (target and params), give it the weights of `ckpt`, and return it on `device`, eval().

    config: an OmegaConf node or plain dicts, as in CompVis' YAML files; without `ckpt` the weights stay random.
    The file must fit: CheckpointError lists keys that are missing, unexpected or of another shape, all but the known
    harmless ones.
    """
    if "model" not in config:
        raise ValueError(f"the config has no 'model' section (it has: {_some(config)})")
    weights = load_state_dict(ckpt) if ckpt is not None else None  # first: a bad file shows before the model is built
    try:
        model = instantiate_from_config(config["model"])
    except TypeError as error:  # a parameter that a constructor does not have, or a target that is no class
        raise ValueError(f"the config's model cannot be built: {error}") from error
    if weights is not None:
        load_weights(model, weights, str(ckpt))
    return model.eval().to(device)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into the model; CheckpointError, which names `source`, where they do not fit."""
    own = model.state_dict()
    problems = {
        "missing": [k for k in own if k not in weights and not _HARMLESS_MISSING.match(k)],
        "unexpected": [k for k in weights if k not in own and not _HARMLESS_UNEXPECTED.match(k)],
        "of another shape": [
            f"{k} {tuple(weights[k].shape)}, the model's is {tuple(own[k].shape)}"
            for k in own
            if k in weights and weights[k].shape != own[k].shape
        ],
    }
    if "scale_factor" in problems["unexpected"]:  # a config may say it, too; another value would spoil every picture
        factor = getattr(model, "scale_factor", None)
        if factor is None or abs(weights["scale_factor"].item() / factor - 1) < 1e-3:
            problems["unexpected"].remove("scale_factor")
    found = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys)
    if found:
        raise CheckpointError(f"{source!r} does not fit the config's model ({found}); is it the config of this file?")
    if "betas" in own and "betas" in weights and not torch.allclose(own["betas"], weights["betas"].float(), rtol=1e-3):
        warnings.warn(
            f"{source!r} was trained with another noise schedule than the config's; its own is used", stacklevel=3
        )
    model.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)  # all else is accounted for


def _some(names: Iterable[Any], limit: int = 5) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f", … and {len(names) - limit} more" if len(names) > limit else "")
