"""Small helpers that CompVis' repositories import, above all `instantiate_from_config`."""

from __future__ import annotations

import importlib
import inspect
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_logger = logging.getLogger(__name__)

# What CompVis' configs say where there is nothing to build: the first stage serves as the encoder, or none is needed.
_NOTHING_TO_BUILD = ("__is_first_stage__", "__is_unconditional__")

_allowed_everywhere: list[str] = ["ldm", "torch.nn"]
_allowed_here: ContextVar[tuple[str, ...]] = ContextVar("allowed_here", default=())


def allow_targets(*prefixes: str) -> None:
    """Let configs name classes below these modules, from now on: `allow_targets("mypackage")`.

    A config's `target` is code that gets imported and called, and configs come from strangers, so only what is named
    here may be named there. A prefix ends at a dot: "my" allows `my.net.UNet`, not `mypackage.net.UNet`.
    """
    _allowed_everywhere.extend(_clean(prefixes))


def instantiate_from_config(config: Mapping[str, Any] | str, allow: str | Iterable[str] = ()) -> Any:
    """Build `config["target"](**config["params"])`; None for "__is_first_stage__" and "__is_unconditional__".

    `allow`: more prefixes, beside those of `allow_targets`, for this call and the calls that it makes in turn (a model
    that builds its own parts). Raises ValueError for a target outside them, before anything is imported; TypeError
    for a target that is not a class.
    """
    if config in _NOTHING_TO_BUILD:
        return None
    if not hasattr(config, "keys") or "target" not in config:
        raise ValueError(
            f"{config!r} does not say what to build; write a mapping with `target` (a class) and, if wanted, `params`,"
            f" or one of {', '.join(_NOTHING_TO_BUILD)}"
        )
    with _allowing(allow):
        cls = get_obj_from_str(config["target"])
        if not inspect.isclass(cls):
            raise TypeError(f"target {config['target']!r} is a {type(cls).__name__}; only a class can be built")
        return cls(**(config.get("params") or {}))


def get_obj_from_str(string: str, reload: bool = False, allow: str | Iterable[str] = ()) -> Any:
    """The object that the dotted path `string` names, if the allow-list (see `allow_targets`) has it."""
    with _allowing(allow):
        _require_allowed(string, string)
        module_name, _, name = string.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the target is there, but something that it imports is not
            raise ValueError(f"target {string!r}: there is no module {error.name!r}; check the spelling") from error
        if reload:
            module = importlib.reload(module)
        if not hasattr(module, name):
            raise ValueError(f"target {string!r}: the module {module_name!r} has no {name!r}; check the spelling")
        obj = getattr(module, name)
        # An allowed module may itself have imported something that is not, such as subprocess.Popen.
        if inspect.isclass(obj) and string not in _allowed():
            _require_allowed(f"{obj.__module__}.{obj.__qualname__}", string)
        return obj


def _require_allowed(path: str, target: str) -> None:
    if any(path == prefix or path.startswith(prefix + ".") for prefix in _allowed()) and "." in path:
        return
    what = f"target {target!r}" if path == target else f"target {target!r}, which is {path!r},"
    raise ValueError(
        f"{what} is not on the allow-list ({', '.join(_allowed())}); if you trust that code, call"
        f" ldm.util.allow_targets({path.partition('.')[0]!r}) or pass allow={path.partition('.')[0]!r}"
    )


def _allowed() -> tuple[str, ...]:
    return (*_allowed_everywhere, *_allowed_here.get())


@contextmanager
def _allowing(prefixes: str | Iterable[str]) -> Iterator[None]:
    token = _allowed_here.set(_allowed_here.get() + _clean(prefixes))
    try:
        yield
    finally:
        _allowed_here.reset(token)


def _clean(prefixes: str | Iterable[str]) -> tuple[str, ...]:
    """Prefixes without their trailing dot; one string is one prefix."""
    cleaned = tuple(p.removesuffix(".") for p in ([prefixes] if isinstance(prefixes, str) else prefixes))
    if "" in cleaned:
        raise ValueError("an empty prefix would allow every target; name the package, as in 'mypackage'")
    return cleaned


def exists(x: Any) -> bool:
    return x is not None


def default(val: Any, d: Any) -> Any:
    """`val`, or where it is None `d`, called first if it is a function."""
    if val is not None:
        return val
    return d() if inspect.isfunction(d) else d


def ismap(x: Any) -> bool:
    """A batch of feature maps: (B, C > 3, H, W)."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] > 3


def isimage(x: Any) -> bool:
    """A batch of pictures: (B, 1 or 3, H, W)."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)


def mean_flat(tensor: Tensor) -> Tensor:
    """The mean over every axis but the batch: (B, …) → (B,)."""
    return tensor.reshape(len(tensor), -1).mean(1)


def count_params(model: nn.Module, verbose: bool = False) -> int:
    """The number of parameters; `verbose` also logs it."""
    n = sum(p.numel() for p in model.parameters())
    if verbose:
        _logger.info("%s has %.2f M parameters", type(model).__name__, n / 1e6)
    return n


def log_txt_as_img(wh: Sequence[int], xc: Iterable[Any], size: float = 10) -> Tensor:
    """Texts as pictures for a log, black on white: (B, 3, H, W) in [−1, 1] for `wh` = (W, H). Needs Pillow.

    In Pillow's own font, `size` pixels high but at least 1, so that no font file is needed; letters that it lacks are
    boxes. Lines are broken to fit the width, and end with the picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(max(size, 1))
    pages = []
    for text in xc:
        page = Image.new("RGB", tuple(wh), "white")
        ImageDraw.Draw(page).text((0, 0), "\n".join(_wrapped(str(text), wh[0], font)), fill="black", font=font)
        pages.append(torch.from_numpy(np.array(page)))
    return torch.stack(pages).movedim(-1, 1) / 127.5 - 1


def _wrapped(text: str, width: int, font: FreeTypeFont) -> list[str]:
    """Lines of at most `width` pixels, broken between words, or within a word that is wider than that."""
    lines = []
    for rest in text.splitlines():
        while rest:
            fits = bisect_right(range(1, len(rest) + 1), width, key=lambda n, rest=rest: font.getlength(rest[:n])) or 1
            space = rest.rfind(" ", 0, fits + 1)
            fits = space if fits < len(rest) and space > 0 else fits
            lines.append(rest[:fits])
            rest = rest[fits:].lstrip()
    return lines
