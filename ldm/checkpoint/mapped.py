"""A file's bytes as tensors. Mapped, not read: a page comes in when it is first used, and goes when memory is short."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from ldm.checkpoint.errors import CheckpointError, truncated

_maps: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by their address, as long as a tensor uses them
_NOT_THERE, _OF_FILE = 0b000, 0b101  # a page's bits 63 to 61 in Linux: there, swapped, as its file has it


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

    def read(self, start: int, count: int) -> bytes:
        """A copy of so few bytes that no page is mapped for them, with its neighbours; fewer at the file's end."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(count)

    def _mapped(self) -> UntypedStorage:
        """Not by torch's `from_file`, which takes no path that is not UTF-8."""
        with self.path.open("rb") as file:
            try:
                pages = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot be mapped into memory ({error})") from error
        storage = torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()
        _maps[storage.data_ptr()] = pages
        return storage

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


def release(tensor: Tensor) -> None:
    """Give back the memory of a mapped tensor that has been copied: it is read again where it is used again.

    Nothing happens to other tensors, to one that was written into (the file does not have that), and where the system
    does not tell which were: only Linux does.
    """
    for pages, start, length in _pages_of(tensor):
        with suppress(OSError):
            if _unwritten(tensor.untyped_storage().data_ptr(), length):
                pages.madvise(mmap.MADV_DONTNEED, start, length)


def _pages_of(tensor: Tensor) -> Iterator[tuple[mmap.mmap, int, int]]:
    """The map that a tensor's storage lies in, the start of its first page there, and how far it reaches from that."""
    if tensor.device.type != "cpu" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    storage = tensor.untyped_storage()
    for address, pages in list(_maps.items()):
        start = storage.data_ptr() - address
        if 0 <= start < len(pages):
            within = start % mmap.PAGESIZE
            yield pages, start - within, within + storage.nbytes()


def _unwritten(address: int, length: int) -> bool:
    """Whether all pages from this address on are as the file has them (docs.kernel.org/admin-guide/mm/pagemap.html)."""
    first, count = address // mmap.PAGESIZE, -(-length // mmap.PAGESIZE)
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(8 * first)
        states = np.frombuffer(file.read(8 * count), dtype=np.uint64) >> np.uint64(61)
    return len(states) == count and bool(((states == _NOT_THERE) | (states == _OF_FILE)).all())
