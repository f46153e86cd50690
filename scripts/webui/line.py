"""Who draws, and who waits for it: first come, first served."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

OFTEN = 0.2  # seconds between looks at how many are before one


class Line:
    """One draws, and at most `most` wait.

    The page's own queue would do, but that it refuses all that a page asks when it is full, and tells nobody how many
    have come before.
    """

    def __init__(self, most: int):
        self._most, self._lock, self._there = most, threading.Lock(), []

    @contextlib.contextmanager
    def place(self) -> Iterator[object]:
        """A place in the line until the context ends, however it ends. ValueError if there is none."""
        mine = object()
        with self._lock:
            if len(self._there) > self._most:
                raise ValueError(f"one picture is being drawn and {self._most} wait already: try again in a while")
            self._there.append(mine)
        try:
            yield mine
        finally:
            with self._lock:
                self._there.remove(mine)

    def before(self, mine: object) -> Iterator[int]:
        """How many are before `mine`, again and again until there are none."""
        while ahead := self._there.index(mine):
            yield ahead
            time.sleep(OFTEN)
