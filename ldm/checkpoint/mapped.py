"""A file's bytes as tensors. Mapped, not read: a page comes in when it is first used, and goes when memory is short."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor, UntypedStorage

from ldm.checkpoint.errors import CheckpointError, truncated


class MappedFile:
    """The bytes of `path`, for as long as a tensor uses them.

    The map is private: writing into a tensor changes memory, never the file.
    """

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        self._storage: UntypedStorage | None = None

    def bytes(self, start: int, count: int, alignment: int) -> UntypedStorage:
        """`count` bytes from `start` on; copied only where they do not lie at a multiple of `alignment`."""
        if not 0 <= start <= start + count <= self.size:
            raise truncated("its weights reach beyond its end")
        if not count:
            return UntypedStorage(0, device="cpu")
        if start % alignment:
            return self._copied(start, count)
        if self._storage is None:
            self._storage = self._mapped()
        return self._storage[start : start + count]

    def _mapped(self) -> UntypedStorage:
        """Not by torch's `from_file`, which takes no path that is not UTF-8."""
        with self.path.open("rb") as file:
            try:
                pages = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot be mapped into memory ({error})") from error
        return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()

    def _copied(self, start: int, count: int) -> UntypedStorage:
        part = torch.empty(count, dtype=torch.uint8, device="cpu")
        with self.path.open("rb") as file:
            file.seek(start)
            if file.readinto(part.numpy()) != count:
                raise truncated("it became shorter while it was read")
        return part.untyped_storage()


def tensor(storage: UntypedStorage, dtype: torch.dtype, offset: int, shape: tuple, stride: tuple) -> Tensor:
    """A view of the storage; the caller knows that it lies within, for torch would make the storage longer."""
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, offset, shape, stride)
