"""What the machine can do: which device, which precision is fast there, and pictures that overflowed in it."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path

PRECISIONS = ("auto", "full", "bf16", "fp16", "autocast")
STRIP_ROWS = 32  # of the autoencoder's layers, where memory is short: fewer save little more, and cost more time
_NO_MEMORY = re.compile("out of memory|can't allocate memory")


def pick_device(name: str):
    """The torch.device that --device names; ValueError where it is unknown or not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise ValueError(f"--device {name!r} is unknown; choose auto, cpu, cuda, cuda:N, mps or xpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # torch goes on with a table of its backends
        reason = reason[:120] + "…" * (len(reason) > 120)
        raise ValueError(f"--device {name} is not available here ({reason}); auto takes what there is") from error
    return torch.device(name)


def pick_dtype(name: str, device):
    """The torch.dtype of the networks that --precision or the config names; "autocast" is CompVis' word for auto.

    auto: bfloat16 where the processor has instructions for it, float16 on older CUDA, float32 elsewhere. ValueError for
    another name.
    """
    import torch

    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}; choose one of {', '.join(PRECISIONS)}")
    if name in ("auto", "autocast"):
        name = _fast(device)
    if name == "fp16" and device.type == "cpu":
        warnings.warn("--precision fp16 is slow on a CPU; bf16 is as small and cannot overflow", stacklevel=2)
    return {"full": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _fast(device) -> str:
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "full"


def _cpu_has_bf16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the CPU computes in bfloat16: AMX, AVX512-BF16 or ARM's BF16. Elsewhere torch emulates it, slowly."""
    try:
        flags = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
    return re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", flags) is not None


def prepare(model, *, compile: bool = False) -> None:
    """Make a loaded model ready to sample: averaged weights for good, and the U-Net as this machine runs it best."""
    from ldm.checkpoint.mapped import release
    from ldm.modules.inference import prepare_for_inference

    if getattr(model, "model_ema", None) is not None:
        model.model_ema.copy_to(model.model)
        model.model_ema = None
    prepare_for_inference(model, compile=compile, release=release)


_CHECK = "check the checkpoint and the config (scale, scale_factor)"


def overflow(model, seen: str) -> str:
    """What to tell the user where the network's output is not finite: what was seen, and the remedy."""
    narrow = _narrow(model)
    computed = str(narrow or "float32").removeprefix("torch.")
    remedies = {"float16": "compute with --precision full (or bf16)", "bfloat16": "compute with --precision full"}
    return f"the network's output overflowed in {computed} ({seen}); {remedies.get(computed, _CHECK)}"


def _narrow(model):
    """The dtype of the model's weights that are float16 or bfloat16, or None where none is."""
    import torch

    return next((p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)


@contextlib.contextmanager
def _present(model):
    """Inside, the autoencoder is on the model's device: with --low_mem it waits elsewhere."""
    first = model.first_stage_model
    home = next((p.device for p in first.parameters()), model.device)
    if home == model.device:
        yield
        return
    first.to(model.device)
    try:
        yield
    finally:
        first.to(home)


def _fitting(model, work: Callable):
    """What the autoencoder gives: in strips, which is the same in less memory, if it does not fit otherwise."""
    first = model.first_stage_model
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        can_be_smaller = getattr(first, "strip_rows", STRIP_ROWS) is None
        if not can_be_smaller or not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
    # Here, not in the handler: there the error still holds all that the attempt had made.
    warnings.warn(
        "the autoencoder did not fit into the memory; it works in strips from here on, which gives the same pictures "
        "in more time (--low_mem: from the start)",
        stacklevel=3,
    )
    first.strip_rows = STRIP_ROWS
    return work()


def encode(model, images):
    """Latents, float32, on the model's device, of pictures (B, 3, H, W) in [-1, 1]; none of which overflowed.

    The most likely latents, where the autoencoder gives a Gaussian: nothing is drawn, so that seeds alone decide. In
    half precision it is as with `decode`.
    """
    import torch

    narrow = _narrow(model)
    with _present(model):
        latents = _latents(model, images)
        if narrow and not latents.isfinite().all():
            _widen(model, narrow)
            latents = _latents(model, images)
    if not latents.isfinite().all():
        raise ValueError(f"the autoencoder overflowed in float32 (NaN or infinite latents); {_CHECK}")
    return latents.to(torch.float32)


def _latents(model, images):
    import torch

    encoded = _fitting(model, lambda: model.encode_first_stage(images.to(model.device)))
    gaussian = hasattr(encoded, "mode") and not isinstance(encoded, torch.Tensor)  # tensors have another `mode`
    return model.get_first_stage_encoding(encoded.mode() if gaussian else encoded)


def _widen(model, narrow) -> None:
    warnings.warn(
        f"the autoencoder overflowed in {str(narrow).removeprefix('torch.')}, as some do; it computes in float32 "
        "from here on",
        stacklevel=3,
    )
    model.first_stage_model.float()


def decode(model, latents):
    """Pictures (B, 3, H, W) of latents, none of which overflowed.

    ValueError where the latents hold NaN or infinity, or the pictures do in float32. Where only the autoencoder
    overflows, as some do in float16, it computes in float32 from here on, with a warning.
    """
    narrow = _narrow(model)
    if not latents.isfinite().all():
        raise ValueError(overflow(model, "NaN or infinite latents"))
    with _present(model):
        images = _fitting(model, lambda: model.decode_first_stage(latents))
        if narrow and not images.isfinite().all():
            _widen(model, narrow)
            images = _fitting(model, lambda: model.decode_first_stage(latents))
    if not images.isfinite().all():
        raise ValueError(f"the autoencoder overflowed in float32 (NaN or infinite pictures); {_CHECK}")
    if narrow and (flat := int(((images.amax((1, 2, 3)) - images.amin((1, 2, 3))) < 0.01).sum())):
        warnings.warn(
            f"{flat} of {len(images)} pictures are one flat colour, as where {str(narrow).removeprefix('torch.')} "
            "loses everything; compare with --precision full",
            stacklevel=2,
        )
    return images
