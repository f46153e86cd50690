"""Picture files that Pillow does not write, made by hand, and known colours for them."""

import struct
import zlib

import numpy as np


def png16(path, pixels, colour, *chunks):
    """A PNG of 16 bits; `pixels`: (H, W, channels); `colour`: PNG's colour type; `chunks`: (name, bytes) in front."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    _png(path, parts)


def png_header(path, width, height):
    """A PNG that says a size and has no pixels: whoever decodes one finds it out."""
    _png(path, [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")])


def _png(path, parts):
    chunks = (struct.pack(">I", len(b)) + a + b + struct.pack(">I", zlib.crc32(a + b)) for a, b in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def without_adobes_mark(jpeg):
    """A JPEG without its APP14 segment, so that its CMYK is ink as it is, and not inverted."""
    start = jpeg.index(b"\xff\xee")
    (length,) = struct.unpack(">H", jpeg[start + 2 : start + 4])
    return jpeg[:start] + jpeg[start + 2 + length :]


def scene(width=24, height=16):
    """A picture (H, W, 3) in which no two rows, columns or channels are alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 12, columns * 8, (rows + columns) * 5], -1).astype(np.uint8)


def far(one, other):
    """The largest difference of two pictures, in grey levels."""
    return int(abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())
