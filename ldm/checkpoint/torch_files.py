"""What `torch.save` wrote: the zip format of torch 1.6 on, and the older row of pickles with the numbers behind it."""

from __future__ import annotations

import io
import mmap
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from ldm.checkpoint.errors import CheckpointError, damaged, shown, some, truncated
from ldm.checkpoint.mapped import MappedFile, tensor
from ldm.checkpoint.pickle_names import Inert, Storage, StoredTensor
from ldm.checkpoint.pickles import read_pickle

Contents = tuple[Any, Callable[[StoredTensor], Tensor]]

_ALIGNMENT = 8  # bytes; torch's own zip files have 64
_LOCAL_HEADER = 30  # bytes of a zip record's own header, before its name
_MOST_PICKLE, _LONGEST_LINE = 2**27, 2**20  # bytes
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # what the older format begins with, a pickle each
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError)


def read_zip(path: Path) -> Contents:
    """The pickled object, with StoredTensors in it, and what makes a tensor of one."""
    try:
        archive = _Archive(path)
        content = read_pickle(io.BytesIO(archive.read("data.pkl", _MOST_PICKLE)))
    except _BAD_ZIP as error:
        raise damaged(shown(str(error)) or type(error).__name__) from error
    return content, _builder(archive.storage)


def read_legacy(path: Path) -> Contents:
    """Likewise. The pickles are: a magic number, the version, the machine, the object, and the storages' keys."""
    storages: dict[str, Storage] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        pickles = _Pickles(pages)
        magic = read_pickle(pickles)
        if type(magic) is not int or magic != _MAGIC:
            raise CheckpointError(f"is a pickle of {kind(magic)}, not a file that torch wrote; save it with torch.save")
        version, machine = read_pickle(pickles), read_pickle(pickles)
        if type(version) is not int or version != _VERSION:
            raise damaged("its format has an unknown version")
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise CheckpointError("was written on a big-endian machine, and only little-endian files can be read")
        content, keys = read_pickle(pickles, storages), read_pickle(pickles)
        starts = _starts(pages, keys, storages)
    mapped = MappedFile(path)

    def storage(wanted: Storage) -> UntypedStorage:
        if wanted.key not in starts:
            raise damaged(f"its storage {shown(wanted.key)} is missing")
        return mapped.bytes(starts[wanted.key], wanted.total * wanted.dtype.itemsize, _ALIGNMENT)

    return content, _builder(storage)


class _Pickles:
    """A file's first bytes as a stream of pickles: a line or a text that has no end is not searched for one."""

    def __init__(self, pages: mmap.mmap):
        self.pages, self.tell = pages, pages.tell

    def read(self, count: int) -> bytes:
        if count > _MOST_PICKLE - self.tell():
            raise damaged(f"its pickle reaches beyond {_MOST_PICKLE:,} bytes")
        return self.pages.read(count)

    def readline(self) -> bytes:
        end = self.pages.find(b"\n", self.tell(), min(self.tell() + _LONGEST_LINE, _MOST_PICKLE)) + 1
        if not end:
            raise damaged("its pickle has a line without an end")
        return self.pages.read(end - self.tell())


def _starts(pages: mmap.mmap, keys: Any, storages: dict[str, Storage]) -> dict[str, int]:
    """Where each storage's numbers begin: behind the pickles, in the order of `keys`, each after its length."""
    if type(keys) is not list or not all(type(key) is str and key in storages for key in keys):
        raise damaged("its list of storages is not that of its tensors")
    starts, position = {}, pages.tell()
    for key in keys:
        numel, said = int.from_bytes(pages[position : position + 8], "little"), storages[key].total
        if numel != said:
            raise damaged(f"its storage {shown(key)} has {numel:,} elements, and its pickle says {said:,}")
        starts[key] = position + 8
        position += 8 + numel * storages[key].dtype.itemsize
    if position > len(pages):
        raise truncated(f"its weights reach to byte {position:,}, and it has {len(pages):,}")
    return starts


def kind(value: Any) -> str:
    """What a value from a file is, for a message: a class of the file's by its name."""
    if isinstance(value, StoredTensor):
        return "a tensor"
    name = shown(value.name if isinstance(value, Inert) else type(value).__name__)
    return f"{'an' if name[:1] in 'aeiouAEIO' else 'a'} {name}"


def _builder(storage_of: Callable[[Storage], UntypedStorage]) -> Callable[[StoredTensor], Tensor]:
    """Makes tensors, those of one storage of one; `storage_of` is asked once for each."""
    storages: dict[str, UntypedStorage] = {}

    def build(stored: StoredTensor) -> Tensor:
        storage, size = stored.storage, stored.dtype.itemsize
        if storage.key not in storages:
            storages[storage.key] = storage_of(storage)
        found, start = storages[storage.key], storage.start * storage.dtype.itemsize
        if start % size:
            raise damaged(f"a view into its storage {shown(storage.key)} begins between two elements")
        return tensor(found, stored.dtype, start // size + stored.offset, stored.shape, stored.stride)

    return build


class _Archive:
    """A torch zip file. Its records are stored as they are, so that they can be mapped, or were zipped by somebody."""

    def __init__(self, path: Path):
        self.file, self.archive = MappedFile(path), zipfile.ZipFile(path)
        self.inflated = 0  # bytes
        records = self.archive.infolist()
        self.records = {record.filename: record for record in records}
        pickles = [name for name in self.records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            held = some(map(shown, self.records), 3) or "nothing"
            raise CheckpointError(f"is a zip archive, but not one that torch wrote (it holds {held}): unpack it first")
        self.folder = pickles[0].removesuffix("data.pkl")
        if any(name.startswith((f"{self.folder}code/", f"{self.folder}constants.pkl")) for name in self.records):
            raise CheckpointError("is a TorchScript program, not weights: save the state_dict of the model it was")
        self.ends = self._ends(records)
        if f"{self.folder}byteorder" in self.records and self.read("byteorder", 16) != b"little":
            raise CheckpointError("was written on a big-endian machine, and only little-endian files can be read")

    def _ends(self, records: list[zipfile.ZipInfo]) -> dict[str, int]:
        """Where each record ends at the latest: where the next begins. Two names for the same bytes are no weights."""
        starts = sorted({record.header_offset for record in records})
        following = dict(zip(starts, [*starts[1:], self.file.size], strict=True))
        for record in records:
            room = following[record.header_offset] - record.header_offset - _LOCAL_HEADER
            if record.compress_size > room or record.header_offset < 0:
                raise damaged(f"its record {shown(record.filename)} reaches into another or beyond the file")
            if record.flag_bits & 1:
                raise CheckpointError("is an encrypted zip archive: unpack it first")
            if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CheckpointError("is compressed in an uncommon way: unpack it, and zip it uncompressed")
        if not len(records) == len(self.records) == len(starts):
            raise damaged("two records of its zip archive have one name or one place")
        return {record.filename: following[record.header_offset] for record in records}

    def _record(self, name: str) -> zipfile.ZipInfo:
        if self.folder + name not in self.records:
            raise damaged(f"its record {shown(name)} is missing")
        return self.records[self.folder + name]

    def read(self, name: str, limit: int) -> bytes:
        """The content of a record of at most `limit` bytes, which zipfile compares with its checksum."""
        record = self._record(name)
        if record.file_size > limit:
            raise CheckpointError(f"has a {shown(name)} of {record.file_size:,} bytes; weights have no need of that")
        with self.archive.open(record) as stream:
            content = stream.read(record.file_size + 1)
        if len(content) != record.file_size:
            raise damaged(f"its record {shown(name)} has another size than it says")
        return content

    def storage(self, wanted: Storage) -> UntypedStorage:
        name = f"data/{wanted.key}"
        record, count = self._record(name), wanted.total * wanted.dtype.itemsize
        if count > record.file_size:
            raise damaged(f"its record {shown(name)} has {record.file_size:,} bytes, and its pickle says {count:,}")
        if record.compress_type != zipfile.ZIP_STORED:
            return self._inflate(name, record)
        header = self.file.read(record.header_offset, _LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = record.header_offset + _LOCAL_HEADER + names
        if not header.startswith(b"PK\x03\x04") or start + count > self.ends[record.filename]:
            raise damaged(f"its record {shown(name)} is not where it should be")
        return self.file.bytes(start, count, _ALIGNMENT)

    def _inflate(self, name: str, record: zipfile.ZipInfo) -> UntypedStorage:
        """Weights hardly shrink when zipped: what grows much is a trap, or zeros."""
        if not record.file_size:
            return UntypedStorage(0, device="cpu")
        self.inflated += record.file_size
        if self.inflated > max(16 * self.file.size, 2**26):
            raise CheckpointError("grows more than sixteenfold when unpacked: if you trust it, zip it uncompressed")
        try:
            content = bytearray(self.read(name, record.file_size))
        except _BAD_ZIP as error:
            raise damaged(shown(str(error)) or type(error).__name__) from error
        return torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
