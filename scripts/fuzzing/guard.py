"""Watches one reading: what it runs, imports, opens or connects to, how long it takes, and how much memory.

Python's audit hooks cannot be taken off again, so this is for a process that does nothing else. They see what Python
does; what a library in C does by itself, they do not.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows, where `scripts/fuzz.py` says that it needs another system
    resource = None

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # of one case
MEMORY = 300 * 2**20  # bytes that one case may take over
_ADDRESSES = 2**31  # bytes beyond what the process has: what asks for more gets none, and the machine lives

# Events (docs.python.org/3/library/audit_events.html) that no reading of data has.
_HARM = re.compile(
    r"os\.(system|exec|spawn|posix_spawn|fork|forkpty|startfile|remove|rename|rmdir|mkdir|chmod|chown|link|symlink"
    r"|truncate|putenv|unsetenv|kill|killpg|chdir)"
    r"|subprocess\.|pty\.|socket\.|ctypes\.|webbrowser\.|urllib\.|http\.|ftplib\.|smtplib\.|shutil\.|tempfile\."
    r"|pickle\.find_class|marshal\.|code\.__new__|function\.__new__|sys\.(settrace|setprofile|addaudithook)|gc\."
)
_PLACES = tuple(
    os.path.realpath(place)
    for place in {ROOT, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), "/proc/self", "/usr/share"}
)
_TRIED = frozenset({"pytz"})  # pyarrow looks for it at every time zone, where it is not installed
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Ran(BaseException):
    """No reader catches this one."""


class Late(BaseException):
    """A case that takes longer than SECONDS."""


class Guard:
    """`watching` is the context of one reading; `seen` what it did that it must not, `grown` by how much it grew."""

    def __init__(self, folder: Path):
        self.seen: list[str] = []
        self.grown = 0
        self._on = False
        self._places = (os.path.realpath(folder), *_PLACES)
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGALRM, _late)
        limit = _status("VmSize") + _ADDRESSES
        with suppress(ValueError, OSError):  # not every system has it
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen, self.grown = [], 0
        before = _fresh_peak()
        signal.alarm(SECONDS)
        self._on = True
        try:
            yield
        finally:
            self._on = False
            signal.alarm(0)
            self.grown = max(0, _status("VmHWM") - before)

    def _audit(self, event: str, args: tuple) -> None:
        if self._on and (harm := self._harm(event, args)):
            self.seen.append(harm)
            raise Ran(harm)

    def _harm(self, event: str, args: tuple) -> str | None:
        if event == "open":
            return self._opened(*args)
        if event == "import":
            return None if args[0] in _TRIED else f"imported {args[0]}"
        if event == "exec" or event == "compile" and args[1] != "<unknown>":  # numpy parses headers, without running
            return f"{event} of {args[-1]!r}"[:200]
        return f"{event} {args!r}"[:200] if _HARM.match(event) else None

    def _opened(self, path, mode, flags) -> str | None:
        if not isinstance(path, str | bytes | os.PathLike):
            return None  # a number, of what was opened before
        if isinstance(flags, int) and flags & _WRITING or isinstance(mode, str) and set(mode) & set("wax+"):
            return f"opened {path!r} for writing"
        real = os.path.realpath(os.fsdecode(path))
        return None if real.startswith(self._places) else f"opened {path!r}"


def _late(*_) -> None:
    raise Late(f"took longer than {SECONDS} s")


def _status(name: str) -> int:
    """A size of this process in bytes, where the system tells it; else the largest that it has had."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fresh_peak() -> int:
    """Let the system count the peak anew; what the process has now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")
