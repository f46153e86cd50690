"""Depth maps from files, in all the digits that they have. Needs Pillow for pictures."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format

from ldm.picture_files import MEGAPIXELS, loaded, opened, turned


def read_depth(
    path: str | Path, size: Sequence[int] | None = None, *, flag: str = "", of: str = "the picture"
) -> np.ndarray:
    """The depth map in a file, float32, (H, W), in the file's own unit: a grey picture, or a .npy of numbers.

    16 bits, 32 bits and floats are kept as they are; a picture in colours counts as grey where its channels are equal.
    EXIF's rotation is applied. `size`: (W, H) of the picture that it goes with, called `of` in the ValueError where the
    map has another. FileNotFoundError, IsADirectoryError; ValueError for what is no depth map: colours, NaN, or a .npy
    of another shape. A warning for a flat one. `flag` stands before the path in messages.
    """
    name = f"{flag} {str(path)!r}".lstrip()
    values = _array(Path(path), name) if Path(path).suffix.lower() == ".npy" else _grey(path, name)
    if size is not None and values.shape != (size[1], size[0]):
        here, there = (f"{width}x{height}" for width, height in (values.shape[::-1], size))
        raise ValueError(f"{name} is {here} pixels, {of} {there}: give a depth map of the picture's size")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values; give every pixel a depth")
    if values.min() == values.max():
        warnings.warn(f"{name} is {values.min():g} everywhere, so it says nothing of the scene", stacklevel=2)
    return values


def _array(path: Path, name: str) -> np.ndarray:
    if path.is_dir():
        raise IsADirectoryError(f"{name} is a folder; give the file of one depth map")
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist; give the file of a depth map")
    try:
        values = format.open_memmap(path, mode="r")  # mapped: a header may promise more than there is
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the system's, such as a file without permission
            raise
        raise ValueError(_no_array(name, error)) from error
    except Exception as error:  # numpy reads headers with Python's parser; there is no end of their kinds
        raise ValueError(_no_array(name, error)) from error
    if values.dtype.kind not in "buif" or values.ndim != 2 or not values.size:
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}; a depth map is numbers, (H, W)")
    if values.size > MEGAPIXELS * 1e6:
        raise ValueError(
            f"{name} is too large, {values.shape}; make it smaller: at most {MEGAPIXELS} megapixels are read"
        )
    with np.errstate(over="ignore"):  # infinity is told of later
        return np.array(values, dtype=np.float32)


def _no_array(name: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{name} is no array that numpy saved ({said}); save it with numpy.save"


def _grey(path: str | Path, name: str) -> np.ndarray:
    with opened(path, name) as picture:
        orientation, _, _ = loaded(picture, name)
        if picture.mode not in ("1", "L", "F") and not picture.mode.startswith("I"):
            picture = picture.convert("RGB")  # which leaves out what is transparent
        values = np.asarray(turned(picture, orientation))
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise ValueError(f"{name} has colours, of which nobody says what is near; a depth map is grey, or a .npy")
        values = values[..., 0]
    return values.astype(np.float32)
