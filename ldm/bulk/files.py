"""Files that are whole or not there, and what to do where the system does not take them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

PART = ".part"  # behind the name of a file that is not whole yet
_REMEDIES = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk's quota is used up; make room",
    errno.EEXIST: "a file is where a folder should be; give another folder",
    errno.ENOTDIR: "a file is where a folder should be; give another folder",
    errno.EROFS: "the disk is read-only; give another folder",
    errno.EACCES: "writing is not permitted; change the permissions, or give another folder",
    errno.EPERM: "writing is not permitted; change the permissions, or give another folder",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator:
    """A file to write to, which gets its name when all of it is on the disk; after an error there is none."""
    part = path.with_name(path.name + PART)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes) -> None:
    with writing(path) as file:
        file.write(content)


@contextlib.contextmanager
def explained(outdir: Path) -> Iterator[None]:
    """Inside, an OSError of the system says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        remedy = _REMEDIES.get(error.errno, error.strerror)
        raise type(error)(error.errno, f"{outdir} cannot be written to: {remedy}") from error
