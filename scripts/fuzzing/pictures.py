"""Pictures of every format, changed, and headers that lie: an RGB picture of a bearable size, or a ValueError."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from fuzzing.cases import Case
from fuzzing.mutate import changed
from ldm.picture_files import MEGAPIXELS, read_mask, read_picture

_FORMATS = "PNG JPEG WEBP TIFF GIF BMP PPM JPEG2000 TGA ICO SGI PCX".split()
_REFUSALS = (ValueError, IsADirectoryError, FileNotFoundError)


@cache
def good() -> tuple[bytes, ...]:
    """A small picture in each format and mode that this Pillow can write."""
    from PIL import Image

    rows, columns = np.mgrid[0:20, 0:28]
    scene = Image.fromarray(np.stack([rows * 12, columns * 8, (rows + columns) * 5], -1).astype(np.uint8))
    made = []
    for form in _FORMATS:
        for mode in ("RGB", "RGBA", "P", "L", "CMYK", "1", "I;16", "F", "LAB"):
            file = io.BytesIO()
            try:
                picture = scene.convert("L").convert("F") if mode == "F" else scene.convert(mode.partition(";")[0])
                picture.save(file, form)
            except (OSError, ValueError, KeyError):
                continue
            made.append(file.getvalue())
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    scene.save(file, "JPEG", exif=exif, progressive=True)
    frames = io.BytesIO()
    scene.save(frames, "GIF", save_all=True, append_images=[scene.rotate(90)])
    return (*made, file.getvalue(), frames.getvalue())


def png(*parts: tuple[bytes, bytes]) -> bytes:
    chunks = (struct.pack(">I", len(b)) + a + b + struct.pack(">I", zlib.crc32(a + b)) for a, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, colour, 0, 0, 0)


@cache
def _bomb(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 10**6), 9)


def _lie(chance: random.Random) -> bytes:
    """A header that says another size than there is; pixels, colour profiles and texts that unpack to very much."""
    side = chance.choice([0, 1, 100, 5000, 9000, 20_000, 2**16, 2**31 - 1, 2**32 - 1])
    other = chance.choice([side, 1, 8000, 2**31 - 1])
    match chance.randrange(7):
        case 0:
            return png(header(side, other), (b"IDAT", chance.choice([b"", _bomb(1), _bomb(50)])), (b"IEND", b""))
        case 1:
            profile = b"p\0\0" + _bomb(chance.choice([1, 50, 400]))
            return png(header(4, 4), (b"iCCP", profile), (b"IDAT", zlib.compress(bytes(52))), (b"IEND", b""))
        case 2:
            kind, colour = chance.choice([1, 2, 4, 8, 16, 255]), chance.randrange(8)
            return png(header(4, 4, kind, colour), (b"IDAT", zlib.compress(bytes(200))), (b"IEND", b""))
        case 3:  # BMP
            size = struct.pack(
                "<IiiHHIIiiII", 40, side % 2**31, -(other % 2**31), 1, 24, chance.randrange(4), 0, 0, 0, 0, 0
            )
            return b"BM" + struct.pack("<IHHI", 2**31, 0, 0, 54) + size
        case 4:  # GIF
            frame = b"," + struct.pack("<HHHHB", 0, 0, side % 2**16, other % 2**16, 0) + b"\x08\x01\0\0"
            return (
                b"GIF89a" + struct.pack("<HHBBB", side % 2**16, other % 2**16, 0xF7, 0, 0) + bytes(768) + frame + b";"
            )
        case 5:  # PPM
            return f"P6\n{side} {other}\n{chance.choice([255, 65535, 10**30])}\n".encode() + bytes(300)
    tags = [(256, 4, 1, side % 2**32), (257, 4, 1, other % 2**32), (258, 3, 1, 8), (259, 3, 1, chance.choice([1, 5])),
            (262, 3, 1, 1), (273, 4, 1, 8), (278, 4, 1, other % 2**32), (279, 4, 1, 2**31)]  # fmt: skip
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


def case(chance: random.Random, folder: Path) -> Case:
    path = folder / chance.choice(["a.png", "a.jpg", "a.webp", "a.tif", "a"])
    path.write_bytes(_lie(chance) if chance.random() < 0.3 else changed(chance.choice(good()), chance))
    if chance.random() < 0.2:
        return Case(path, lambda: read_mask(path, (28, 20)), _REFUSALS, repr(str(path)), _wrong_mask)
    return Case(path, lambda: read_picture(path), _REFUSALS, repr(str(path)), _wrong)


def _wrong(picture) -> str | None:
    if picture.mode != "RGB" or picture.width * picture.height > MEGAPIXELS * 1e6 or picture.info:
        return f"it is {picture.mode} of {picture.size}, with {list(picture.info)}"
    return None


def _wrong_mask(mask) -> str | None:
    return None if mask.shape == (20, 28) and mask.dtype == bool else f"the mask is {mask.dtype}, {mask.shape}"


def warm(folder: Path) -> None:
    for k, content in enumerate(good()):
        (folder / str(k)).write_bytes(content)
        for read in (read_picture, lambda path: read_mask(path, (28, 20))):
            try:
                read(folder / str(k))
            except ValueError:
                continue  # floats of which nobody knows what is white
