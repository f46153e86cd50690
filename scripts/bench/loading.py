"""From a file to a model whose weights are in memory; and reading the file, which nothing can be much faster than.

A mapped weight has cost nothing yet when the model is there. So that all are compared in what a user waits for, every
page of every weight is looked at before the clock stops.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import clock, memory

_BLOCK = 1 << 24  # bytes


def _timed(load: Callable[[], Iterable], path: str, cold: bool) -> dict[str, Any]:
    """One loading: `load` returns the weights. Memory is counted from where it began."""
    if cold:
        drop_from_cache(path)
    before = {name: memory.bytes_of(name) for name in ("VmRSS", "RssAnon")}
    with memory.AnonymousPeak() as anonymous:
        seconds, tensors = clock.timed(lambda: touched(load()))
    sizes = {"weights": sum(t.nbytes for t in tensors)}
    if before["VmRSS"] is not None:
        sizes["grown"] = memory.bytes_of("VmHWM") - before["VmRSS"]
        sizes["grown_anonymous"] = anonymous.bytes - before["RssAnon"]
    return {"times": [seconds], **sizes}


def touched(tensors: Iterable) -> list:
    """The tensors, each page of each read."""
    found = list(tensors)
    for tensor in found:
        if tensor.numel():
            tensor.detach().reshape(-1)[:: max(4096 // tensor.element_size(), 1)].sum()
    return found


def drop_from_cache(path: str) -> None:
    """Let the next reading of a file, or of a folder's, come from the disk. OSError where the system cannot."""
    if not hasattr(os, "posix_fadvise"):
        raise OSError("this system cannot drop a file from its cache")
    files = [p for p in Path(path).rglob("*") if p.is_file()] if os.path.isdir(path) else [path]
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain(path: str, cold: bool, **_: Any):
    """Reading the file into one buffer, block by block."""

    def read() -> list:
        buffer = bytearray(_BLOCK)
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        return []

    return lambda: _timed(read, path, cold)


def ours(path: str, dtype: str, cold: bool):
    """load_model of a .ckpt with its config, or of a pipeline folder."""
    import torch

    from ldm.checkpoint import load_model

    beside = Path(path).with_suffix(".json")
    config = json.loads(beside.read_text()) if beside.is_file() else None
    kept = []

    def load() -> Iterable:
        kept.append(load_model(config, path, dtype=getattr(torch, dtype)))
        return kept[-1].parameters()

    return lambda: _timed(load, path, cold)


def diffusers_folder(path: str, dtype: str, cold: bool, **_: Any):
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401

    from bench.theirs import pipeline

    kept = []

    def load() -> Iterable:
        kept.append(pipeline(path, dtype))
        return _weights(kept[-1])

    return lambda: _timed(load, path, cold)


def diffusers_file(path: str, dtype: str, cold: bool, folder: str):
    """from_single_file, with the pipeline folder for the config that it would ask the hub for."""
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel  # noqa: F401

    kept = []

    def load() -> Iterable:
        kept.append(
            StableDiffusionPipeline.from_single_file(
                path,
                config=folder,
                torch_dtype=getattr(torch, dtype),
                local_files_only=True,
                tokenizer=None,
                safety_checker=None,
                feature_extractor=None,
            )  # fmt: skip
        )
        return _weights(kept[-1])

    return lambda: _timed(load, path, cold)


def _weights(pipe) -> Iterable:
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        yield from part.parameters()
