"""A process' own memory, as Linux counts it. Elsewhere all of it is None, and the table says "not measured"."""

from __future__ import annotations

import re
import threading
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def bytes_of(name: str) -> int | None:
    """One number of /proc/self/status in bytes: "VmHWM" (the peak), "VmRSS", "RssAnon" (no file's pages)."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def reset_peak() -> bool:
    """Let VmHWM begin again at what is in use now; False where that is not permitted."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class AnonymousPeak:
    """As a context: `bytes`, the most memory that held no file's pages, looked at every 2 ms (Linux keeps no peak).

    A mapped file's pages count in VmHWM, although they can be dropped at any time; these here cannot.
    """

    bytes: int | None = None

    def __enter__(self) -> AnonymousPeak:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._look()
        self._thread.start()
        return self

    def _look(self) -> None:
        if (now := bytes_of("RssAnon")) is not None:
            self.bytes = max(now, self.bytes or 0)

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self._look()

    def __exit__(self, *error) -> None:
        self._over.set()
        self._thread.join()
        self._look()
