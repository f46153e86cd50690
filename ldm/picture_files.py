"""Picture files to pixels, as a person sees them, and masks; pixels to tensors and back. Needs Pillow.

Whatever a file holds (rotation in its EXIF, transparency, 16 bits, a palette, CMYK, a colour profile), an upright RGB
picture of 8 bits in sRGB comes out; `to_tensor` and `ldm.image.to_pil` are exact inverses on it.
"""

from __future__ import annotations

import errno
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MEGAPIXELS = 80  # of the largest picture that is read; Pillow itself takes more than 89 for an attack
# What is read. Others that Pillow knows start programs (EPS), hold no pixels of their own, or are of no use here.
_FORMATS = tuple("PNG JPEG MPO WEBP TIFF BMP DIB GIF PPM JPEG2000 TGA ICO AVIF HEIF QOI PSD SGI PCX".split())
_ORIENTATION = 0x0112  # EXIF's tag
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # a mode, and the colour space of the profiles that fit it


def read_picture(path: str | Path, *, flag: str = "") -> Picture:
    """The picture in a file, RGB with 8 bits, upright, in sRGB; what is transparent shows white, of many frames the
    first is taken.

    16 bits are scaled to 8, floats from 0 … 1. `flag` stands before the path in errors. FileNotFoundError,
    IsADirectoryError; ValueError for what is no picture, is damaged, has more than MEGAPIXELS, or numbers of which
    nobody says what is white. The size is looked at before a pixel is decoded.
    """
    name = f"{flag} {str(path)!r}".lstrip()
    with opened(path, name) as picture:
        orientation, profile, format = loaded(picture, name)
        upright = turned(_over_white(_eight_bits(picture, format, name), profile), orientation)
    upright.info.clear()  # the rotation and the profile are used up
    return upright


def read_mask(path: str | Path, size: Sequence[int], *, flag: str = "", of: str = "the picture") -> np.ndarray:
    """The mask in a file, bool, (H, W): True where it is white (50 % and more).

    Where parts of the file are transparent, its colours are those of what was painted on or cut out, so the alpha
    channel is the mask: if all that is left is white, that is a stroke, and transparent is black; else what is
    transparent was cut out, and is white. A warning says which. `size`: (W, H) of the picture that it goes with, called
    `of` in the ValueError where the mask has another. Other errors are `read_picture`'s.
    """
    name = f"{flag} {str(path)!r}".lstrip()
    with opened(path, name) as picture:
        orientation, _, format = loaded(picture, name)
        picture = _eight_bits(picture, format, name)
        picture = _in_srgb(picture, None) if picture.mode == "LAB" else picture
        picture = turned(picture.convert("RGBA" if picture.has_transparency_data else "L"), orientation)
    if picture.size != tuple(size):
        here, there = (f"{width}x{height}" for width, height in (picture.size, size))
        raise ValueError(f"{name} is {here} pixels, {of} {there}: give a mask of the picture's size")
    white = np.asarray(picture.convert("L")) >= 128
    if picture.mode == "L":
        return white
    clear = np.asarray(picture.getchannel("A")) < 128
    if not clear.any():
        return white
    stroke = white[~clear].all() and not clear.all()
    here = "transparent counts as black" if stroke else "transparent counts as white, all else as black"
    warnings.warn(f"{name} has transparent parts, which make the mask: {here}", stacklevel=2)
    return ~clear if stroke else clear


# ----------------------------------------------------------------------------------------------------------- the file


def opened(path: str | Path, name: str) -> Picture:
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{name} is a folder; give the file of one picture")
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist; give the file of a picture")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{name} is empty, 0 bytes; copy or download it again")
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(path, formats=[format for format in _FORMATS if format in Image.OPEN])
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            pixels = re.search(r"(\d+) pixels", str(error))
            raise ValueError(_too_large(name, f"{int(pixels[1]) / 1e6:.0f}" if pixels else "too many")) from error
        except UnidentifiedImageError as error:
            known = "PNG, JPEG, WebP, TIFF, BMP, GIF"
            raise ValueError(f"{name} is no picture that can be read; save it as one of {known}") from error
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # the system's, such as a file without permission
                raise type(error)(f"{name} cannot be read ({error.strerror}); give another file") from error
            raise ValueError(_damaged(name, error)) from error
        except Exception as error:  # a plugin's, for a header that lies; there is no end of their kinds
            raise ValueError(_damaged(name, error)) from error
    width, height = picture.size
    if width * height > MEGAPIXELS * 1e6:
        picture.close()
        raise ValueError(_too_large(name, f"{width}x{height} are {width * height / 1e6:.0f}"))
    return picture


def _too_large(name: str, megapixels: str) -> str:
    return f"{name} is too large ({megapixels} megapixels); make it smaller: at most {MEGAPIXELS} are read"


def _damaged(name: str, error: Exception) -> str:
    return f"{name} is damaged ({error or type(error).__name__}); copy or download it again"


def loaded(picture: Picture, name: str) -> tuple[int, bytes | None, str | None]:
    """Decode the pixels; (EXIF's orientation, colour profile, format)."""
    format = picture.format
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture.load()
            if picture.mode in ("P", "PA") and picture.palette is None:
                raise ValueError("it has no palette")
        except Exception as error:
            raise ValueError(_damaged(name, error)) from error
        try:  # after loading, as PNG may have it behind the pixels; TIFF has been turned by now, and says so
            orientation = picture.getexif().get(_ORIENTATION, 1)
        except Exception:  # damaged metadata is no reason to refuse a picture
            orientation = 1
    return orientation, picture.info.get("icc_profile"), format


# --------------------------------------------------------------------------------------------------------- the pixels


def _eight_bits(picture: Picture, format: str | None, name: str) -> Picture:
    """Numbers with more than 8 bits, which Pillow would clip, scaled; and CMYK that is ink, not the lack of it."""
    from PIL import Image, ImageChops

    if picture.mode == "CMYK" and format == "JPEG" and "adobe" not in picture.info:
        return _like(ImageChops.invert(picture), picture)  # Pillow takes all for Adobe's, which are stored inverted
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture).astype(np.float64)
    low, high = values.min(), values.max()
    if picture.mode == "F":
        white, known = 1.0, bool(low >= 0 and high <= 1)  # false for NaN, too
    else:  # "I" has 32 bits, but PNG and PGM, which Pillow reads into it, have 16
        white, known = 65535.0, picture.mode != "I" or format in ("PNG", "PPM")
    if not known:
        kind = "floats" if picture.mode == "F" else "integers of more than 16 bits"
        raise ValueError(f"{name} holds {kind} from {low:g} to {high:g}, of which none is known to be white; save it "
                         "with 8 or 16 bits")  # fmt: skip
    grey = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    clear = picture.info.get("transparency")
    if clear is None:
        return _like(grey, picture)
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _like(made: Picture, picture: Picture) -> Picture:
    made.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return made


def _over_white(picture: Picture, profile: bytes | None) -> Picture:
    """RGB in sRGB, with white behind what is transparent."""
    from PIL import Image

    if not picture.has_transparency_data:
        return _in_srgb(picture, profile)
    grey = picture.mode in ("L", "LA", "La")
    clear = picture.convert("RGBA")
    colours = _in_srgb(clear.convert("L" if grey else "RGB"), profile)
    return Image.composite(colours, Image.new("RGB", colours.size, "white"), clear.getchannel("A"))


def _in_srgb(picture: Picture, profile: bytes | None) -> Picture:
    """RGB in sRGB of a picture without transparency, through its profile where that fits it.

    One that calls itself sRGB is left out: going through it could only add rounding.
    """
    from PIL import ImageCms

    mode = {"LAB": "LAB", "CMYK": "CMYK", "L": "L", "1": "L"}.get(picture.mode, "RGB")
    picture = picture.convert(mode)
    if not profile and mode != "LAB":
        return picture.convert("RGB")
    try:
        source = ImageCms.createProfile("LAB") if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        fits = mode == "LAB" or source.profile.xcolor_space.strip() == _SPACES[mode]
        if not fits or mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
            return picture.convert("RGB")
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ImportError):  # a damaged profile, or a Pillow without colour management
        return picture.convert("RGB")


def turned(picture: Picture, orientation: int) -> Picture:
    """Upright, by EXIF's orientation: how to turn what was stored."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    return picture.transpose(turns[orientation]) if orientation in turns else picture


# ------------------------------------------------------------------------------------------------------------ tensors


def to_tensor(picture: Picture) -> Tensor:
    """An RGB picture → (1, 3, H, W), float32 in [−1, 1]; `ldm.image.to_pil` gives the same picture back."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def padded(x: Tensor, multiple: int) -> Tensor:
    """`x`, (B, C, H, W), floats, with its last row and column repeated until both sides are multiples.

    `[..., :H, :W]` cuts it back.
    """
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
