"""One run at a time in a folder. The system lets go of the lock when the process ends, however it does."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

NAME = ".lock"


class Lock:
    """A context in which no other has the lock of `folder`. BlockingIOError, a kind of OSError, where one has.

    On a network's file system it holds as far as that knows `flock`: NFS does.
    """

    def __init__(self, folder: Path):
        self._path = folder / NAME

    def __enter__(self) -> Lock:
        self._file = self._path.open("a+", encoding="utf-8")
        try:
            self._take()
        except OSError as error:
            who = ""
            self._file.seek(0)
            with contextlib.suppress(OSError):  # Windows lets nobody read it
                who = self._file.read(200)
            self._file.close()
            if not isinstance(error, BlockingIOError | PermissionError):
                raise
            remedy = "wait for it, or give another folder"
            raise BlockingIOError(f"{self._path.parent} is in use by another run ({who or '?'}); {remedy}") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        return self

    def _take(self) -> None:
        if fcntl:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            self._file.seek(1000)  # a byte that nobody reads
            msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)

    def __exit__(self, *error: object) -> None:
        """The file stays: deleting it would let two runs lock two files of its name."""
        self._file.close()
