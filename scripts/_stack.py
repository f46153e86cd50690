"""Pictures as one array in a file, written as they come."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path


class Stack:
    """An .npz that holds uint8 (N, H, W, 3) as `arr_0`, in a folder, named after its shape as CompVis names it:
    50000x256x256x3-samples.npz.

    As a context: pictures are written when they are added, so that any number fits into memory; to another name, so
    that under its own it is whole. Left with an error, there is no file.
    """

    def __init__(self, folder: Path, shape: Sequence[int]):
        """`shape`: (N, H, W, 3). Makes the folder, and an error of it shows at once."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{'x'.join(map(str, shape))}-samples.npz"
        self._shape, self._count = tuple(shape), 0

    def __enter__(self) -> Stack:
        from numpy.lib import format

        self._partial = self.path.with_suffix(".npz.partial")
        self._zip = zipfile.ZipFile(self._partial, "w")
        self._array = self._zip.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
        format.write_array_header_1_0(self._array, header)
        return self

    def add(self, pictures: Sequence) -> None:
        """PIL's, RGB, each of W×H."""
        for picture in pictures:
            if picture.size != self._shape[2:0:-1]:
                raise ValueError(f"a picture came out at {picture.size}, not {self._shape[2:0:-1]}; check --f")
            self._array.write(picture.tobytes())
            self._count += 1

    def __exit__(self, kind, error, traceback) -> None:
        self._array.close()
        self._zip.close()
        if kind is None and self._count == self._shape[0]:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink()
