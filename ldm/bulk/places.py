"""Where a finished row's picture lies: in a folder of PNG files, or in tar shards. What has its name is whole."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldm.bulk.files import write, writing

FOLDER = 1000  # pictures in one folder: some file systems are slow with more


class Folder:
    """OUTDIR/pictures/00012/00012345.png"""

    def __init__(self, outdir: Path, known: Callable[[int], bool]):
        """`known`: whether a number is that of a row that can be drawn; files of others are not looked at."""
        self.outdir, self.kind, self._known = outdir, "png", known

    def where(self, index: int) -> dict[str, str]:
        """What the manifest says."""
        return {"file": f"pictures/{index // FOLDER:05}/{index:08}.png"}

    def _path(self, index: int) -> Path:
        return self.outdir / self.where(index)["file"]

    def finished(self) -> set[int]:
        """The rows whose pictures are there, where they should be."""
        found = [path for path in self.outdir.glob("pictures/*/*.png") if path.stem.isdecimal()]
        there = {int(path.stem) for path in found if path == self._path(int(path.stem))}
        return {index for index in there if self._known(index)}

    def add(self, index: int, png: bytes) -> None:
        write(self._path(index), png)

    def read(self, index: int) -> bytes:
        return self._path(index).read_bytes()

    def close(self) -> None:
        """All rows have been tried."""

    def drop(self, indices: Sequence[int]) -> None:
        """Delete pictures that are elsewhere by now, and folders that are empty."""
        for index in indices:
            self._path(index).unlink(missing_ok=True)
        for folder in [*{self._path(index).parent for index in indices}, self.outdir / "pictures"]:
            with contextlib.suppress(OSError):
                folder.rmdir()


class Shards:
    """OUTDIR/shards/shard-00012.tar, with `size` rows by their indices: 00012345.png, and .json with what it shows.

    What is in a shard hangs neither on who drew it nor when. A picture waits in a folder until its shard is complete.
    A shard of which rows failed is closed when all have been tried, and made again once a later run can draw them.
    """

    def __init__(
        self,
        outdir: Path,
        size: int,
        count: int,
        about: Callable[[int], dict[str, Any]],
        known: Callable[[int], bool],
    ):
        """`count`: of all rows; `about`: what the .json says of one; `known`: as of `Folder`."""
        self.outdir, self.size, self.about, self.kind = outdir, size, about, f"tar of {size}"
        self._last, self._lines, self._known = count - 1, Folder(outdir, known), known
        self._waiting: dict[int, set[int]] = {}  # shard: rows in the folder
        self._packed: dict[int, dict[int, tuple[int, int]]] = {}  # shard: row: where its PNG is in the file, how long

    def where(self, index: int) -> dict[str, str]:
        shard = index // self.size
        if index in self._packed.get(shard, ()):
            return {"file": f"shards/shard-{shard:05}.tar", "member": f"{index:08}.png"}
        return self._lines.where(index)

    def _path(self, shard: int) -> Path:
        return self.outdir / "shards" / f"shard-{shard:05}.tar"

    def finished(self) -> set[int]:
        for path in self.outdir.glob("shards/shard-*.tar"):
            number = path.stem.removeprefix("shard-")
            if number.isdecimal() and path == self._path(shard := int(number)):  # else it is somebody's copy
                self._packed[shard] = self._members(shard)
        packed = {index for members in self._packed.values() for index in members}
        waiting = self._lines.finished()
        if twice := packed & waiting:  # the last run ended just between packing and deleting
            self._lines.drop(sorted(twice))
        for index in waiting - packed:
            self._waiting.setdefault(index // self.size, set()).add(index)
        for shard in list(self._waiting):
            self._pack_if_complete(shard)
        return packed | waiting

    def _members(self, shard: int) -> dict[int, tuple[int, int]]:
        path = self._path(shard)
        try:
            members = _pictures_in(path)
            if others := [index for index in members if index // self.size != shard or not self._known(index)]:
                raise ValueError(f"it has a picture of row {others[0]}, which is not to be there")
        except (tarfile.TarError, ValueError) as error:
            remedy = "delete it, and its rows are drawn again"
            raise ValueError(f"{path} is no shard of ours ({error}); {remedy}") from error
        return members

    def add(self, index: int, png: bytes) -> None:
        self._lines.add(index, png)
        shard = index // self.size
        self._waiting.setdefault(shard, set()).add(index)
        self._pack_if_complete(shard)

    def _pack_if_complete(self, shard: int) -> None:
        there = len(self._waiting[shard]) + len(self._packed.get(shard, ()))
        if there == min(self.size, self._last + 1 - shard * self.size):
            self._pack(shard)

    def read(self, index: int) -> bytes:
        shard = index // self.size
        if index not in self._packed.get(shard, ()):
            return self._lines.read(index)
        offset, length = self._packed[shard][index]
        with self._path(shard).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def close(self) -> None:
        for shard in sorted(self._waiting):
            self._pack(shard)

    def _pack(self, shard: int) -> None:
        waiting = self._waiting[shard]
        with (
            writing(self._path(shard)) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for index in sorted(waiting | self._packed.get(shard, {}).keys()):
                told = json.dumps(self.about(index), ensure_ascii=False).encode()
                for name, content in ((f"{index:08}.png", self.read(index)), (f"{index:08}.json", told)):
                    member = tarfile.TarInfo(name)  # no time, no owner: the same rows make the same bytes
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        self._packed[shard] = self._members(shard)
        self._lines.drop(sorted(self._waiting.pop(shard)))


def _pictures_in(path: Path) -> dict[int, tuple[int, int]]:
    """{row: (offset, length)} of a shard's pictures."""
    with tarfile.open(path, "r:") as tar:
        found = [member for member in tar if member.name.endswith(".png")]
    return {int(Path(member.name).stem): (member.offset_data, member.size) for member in found}
