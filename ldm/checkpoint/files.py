"""Named tensors from a file, whatever its format. Nothing that a file says is run."""

from __future__ import annotations

import io
import os.path
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.errors import CheckpointError, RefusedError, shown, some
from ldm.checkpoint.pickle_names import StoredTensor
from ldm.checkpoint.pickles import read_pickle
from ldm.checkpoint.safetensors_file import is_safetensors, read_safetensors
from ldm.checkpoint.torch_files import kind, read_legacy, read_zip

_SNIFF = 1024  # bytes; a tar archive shows itself at byte 257
_PROBE = 2**20  # bytes, of what may be a pickle or a text


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. format: "safetensors", "torch" (zip), "torch-legacy" or "diffusers" (a folder).

    global_step: how far the training was, where the file says so; config: a folder's own.
    """

    weights: dict[str, Tensor]
    format: str
    global_step: int | None = None
    config: dict[str, Any] | None = None
    path: str = ""


def load_state_dict(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on `device`; its format is recognised by content, not by the file's name.

    Reads safetensors, both formats of `torch.save`, and diffusers folders, without running anything that a pickle asks
    for. A "state_dict" around the tensors is taken off. On the CPU the tensors are mapped from the file: nothing is
    read before it is used, and the file must stay as it is as long as they are in use (to save over it is no harm:
    `save_checkpoint` puts a new file in its place).

    CheckpointError (a ValueError), FileNotFoundError or PermissionError say what is wrong with the file.
    """
    return load_checkpoint(path, device).weights


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """`load_state_dict`, and what else the file tells: its format, and the step of the training it is from."""
    path = Path(path)
    try:
        found = _read_folder(path) if path.is_dir() else _read_file(path)
    except PermissionError as error:
        raise PermissionError(f"checkpoint {str(path)!r} may not be read by this user: see its permissions") from error
    weights = found.weights
    if torch.device(device).type != "cpu":
        weights = {key: value.to(device) for key, value in weights.items()}
    return replace(found, weights=weights, path=str(path))


def _read_folder(path: Path) -> Checkpoint:
    if (path / "model_index.json").is_file():
        from ldm.checkpoint.diffusers_folder import load_folder  # which reads its files with this module

        try:
            config, weights = load_folder(path)
        except CheckpointError as error:  # of a part's weights, say, which came from several files
            if str(path) in str(error):
                raise
            raise type(error)(f"{str(path)!r}: {error}") from error
        return Checkpoint(weights, "diffusers", config=config)
    whole = Path(os.path.abspath(path)).parent
    if (whole / "model_index.json").is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} is a part of a diffusers folder; give the whole: {whole}")
    inside = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", ".ckpt", ".bin", ".pt"))
    remedy = f"in it is {some(inside, 3)}: name that" if inside else "give the path of a .safetensors or .ckpt file"
    raise FileNotFoundError(
        f"checkpoint {str(path)!r} is a folder without a model_index.json, so no model that diffusers saved; {remedy}"
    )


def load_content(path: str | Path) -> tuple[Any, Callable[[StoredTensor], Tensor]]:
    """What a file holds, a dict of weights or another object, and what makes a tensor of each StoredTensor in it.

    Read as `load_state_dict` reads, and its errors.
    """
    path = Path(path)
    content, build = _of_file(path, lambda path: _content(path)[:2])
    return content, lambda stored: _of_file(path, lambda _: build(stored))  # a tensor may be what is damaged


def _read_file(path: Path) -> Checkpoint:
    return _of_file(path, _read_content)


def _of_file(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(f"checkpoint {str(path)!r} {what}; give the path of a .safetensors or .ckpt file")
    try:
        return read(path)
    except CheckpointError as error:  # the readers' messages begin behind the file's name
        raise type(error)(f"{str(path)!r} {error}") from error


def _read_content(path: Path) -> Checkpoint:
    content, build, form, metadata = _content(path)
    if form == "safetensors":
        step = str(metadata.get("global_step", ""))
        return Checkpoint(_tensors(content), form, int(step) if re.fullmatch("[0-9]{1,18}", step) else None)
    step = content.get("global_step") if isinstance(content, dict) else None
    return Checkpoint(_tensors(content, build), form, step if type(step) is int else None)


def _content(path: Path) -> tuple[Any, Callable[[StoredTensor], Tensor], str, dict[str, str]]:
    """The object in the file, what makes its tensors, the format, and the metadata of safetensors."""
    with path.open("rb") as file:
        start = file.read(_SNIFF)
    if is_safetensors(start):
        weights, metadata = read_safetensors(path)
        return weights, lambda tensor: tensor, "safetensors", metadata
    if start.startswith(b"PK\x03\x04"):
        return *read_zip(path), "torch", {}
    if start.startswith(b"\x80"):
        return *read_legacy(path), "torch-legacy", {}
    _refuse_text_pickle(path, start)
    raise CheckpointError(f"is not a checkpoint: it {_looks_like(start, path.suffix)}")


def _tensors(content: Any, build: Callable[[StoredTensor], Tensor] | None = None) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"holds {kind(content)}, not named tensors (a state_dict)")
    if "string_to_param" in content:
        raise CheckpointError("holds a textual-inversion embedding: a new word for a model, not a model")
    if wrong := {key: value for key, value in content.items() if not _is_named_tensor(key, value)}:
        found = some(f"{shown(key) if isinstance(key, str) else kind(key)}: {kind(wrong[key])}" for key in wrong)
        raise CheckpointError(f"holds other things ({found}) where a state_dict has named tensors")
    if not content:
        raise CheckpointError("holds nothing where a state_dict has named tensors")
    return {key: build(value) for key, value in content.items()} if build else content


def _is_named_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, (StoredTensor, Tensor))


# ------------------------------------------------------------------------------------------- files that are none of it

_OTHER_FORMATS = {
    b"GGUF": "is a GGUF file, whose weights are quantized: get the model as safetensors",
    b"\x89HDF": "is an HDF5 file, as Keras writes: get the model as safetensors",
    b"\x1f\x8b": "is compressed (gzip): unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    b"version https://git-lfs": "is a git-lfs pointer, which only names the file: run `git lfs pull`, or download the "
    "file itself",
}

_A_CONFIG = "looks like a config, which only describes a model: give it with --config, and here its weights"
_TEXTS = {  # by the name's end, which alone tells them from other text
    ".json": "is JSON, which only describes a model: give the folder that model_index.json is in",
    ".yaml": _A_CONFIG,
    ".yml": _A_CONFIG,
}


def _looks_like(start: bytes, suffix: str) -> str:
    if not start:
        return "is empty"
    if not start.strip(b"\0"):
        return "begins with nothing but zeros, as a download does that was broken off: get the file again"
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            return what
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it first, or, if torch before 0.4 wrote it, save it again with a current torch"
    text = start[:200].decode("utf-8", errors="replace").rstrip("\ufffd")
    is_text = "\ufffd" not in text and all(letter.isprintable() or letter.isspace() for letter in text)
    if start[8:9] == b"{" and not is_text:
        return f"looks like safetensors, but its header would have {int.from_bytes(start[:8], 'little'):,} bytes"
    if re.match(r"\s*(<!doctype html|<html)", text, re.IGNORECASE):
        return "is an HTML page, as a website shows before it gives the file: download the file itself"
    if is_text:
        begins = shown(" ".join(text.split()), 40)
        return _TEXTS.get(suffix.lower(), f"is text, which begins with {begins!r}: download the file itself")
    return f"starts with {start[:16]!r}; safetensors and torch files can be read"


def _refuse_text_pickle(path: Path, start: bytes) -> None:
    """Python also reads pickles that look like text; they hold no weights, but may hold a call."""
    if start[:1] in (b"(", b"c", b"]", b"}", b"l", b"d", b"i"):
        with path.open("rb") as file:
            try:
                read_pickle(io.BytesIO(file.read(_PROBE)))
            except RefusedError:
                raise
            except CheckpointError:
                pass  # text, then


# ------------------------------------------------------------------------------------ what it is, where it does not fit

_KINDS = (
    (
        r"^lora_(unet|te\d?)_|[._]lora[._](up|down|A|B)\.|\.lora_embedding_[AB]|\.(hada_w1_a|lokr_w1)",
        "a LoRA: small changes to a model, not a model",
    ),
    (r"^(control_model|controlnet_cond_embedding|controlnet_down_blocks)\.", "a ControlNet: it steers a model"),
    (r"^(emb_params|clip_[lg]|<.+>)$", "a textual-inversion embedding: a new word for a model, not a model"),
    (r"^conditioner\.embedders\.", "an SDXL model"),
    (
        r"(^|\.)(double_blocks\.0\.img_attn|joint_blocks\.0\.context_block|single_transformer_blocks\.0"
        r"|transformer_blocks\.0\.attn\.add_[qk]_proj)\.",
        "a Flux or SD 3 transformer",
    ),
    (r"^decoder\.(up|up_blocks)\.0\.", "an autoencoder (VAE) alone"),
    (r"^down_blocks\.0\.(resnets|attentions)\.", "a diffusers UNet alone: the whole folder can be loaded"),
    (r"^input_blocks\.0\.0\.", "a UNet alone"),
    (r"^(text_model\.)?(embeddings\.token_embedding|encoder\.layers\.0)\.", "a text encoder alone"),
)


def describe(weights: Iterable[str]) -> str | None:
    """What the names of the weights show the file to be, where that is no latent-diffusion model; else None."""
    names = list(weights)
    for pattern, what in _KINDS:
        if any(re.search(pattern, name) for name in names):
            return what
    return None
