"""Which machine, which versions, and what is fast there. For workers: it imports torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any


def describe(device: str) -> dict[str, Any]:
    """What the table's head says. `device`: as --device; ValueError where it is not there."""
    import _machine
    import torch

    picked = _machine.pick_device(device)
    gpu = torch.cuda.get_device_name(picked) if picked.type == "cuda" else None
    return {
        "device": str(picked),
        "gpu": gpu,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": total_memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate")},
        "auto_dtype": str(_machine.pick_dtype("auto", picked)).removeprefix("torch."),
        "compiler": can_compile(picked.type),
        "can_prepare": importlib.util.find_spec("ldm.modules.inference") is not None,
    }


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    features = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if re.search(rf"\b{name}\b", text)]
    name = found[1] if found else platform.machine()
    return f"{name} ({features[0]})" if features else name


def total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def can_compile(kind: str) -> str | None:
    """What torch.compile would use on such a device: a C++ compiler's name, or "triton"; None where it is missing."""
    if kind == "cuda":
        return "triton" if version("triton") else None
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return next((name for name in names if name and shutil.which(name)), None)
