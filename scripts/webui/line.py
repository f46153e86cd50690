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
        self.most, self.closed, self._lock, self._there = most, False, threading.Lock(), []

    @contextlib.contextmanager
    def place(self) -> Iterator[object]:
        """A place in the line until the context ends, however it ends. ValueError if there is none."""
        mine = object()
        with self._lock:
            if self.closed:
                raise ValueError("the page is closing")
            if len(self._there) > self.most:
                raise ValueError(f"one picture is being drawn and {self.most} wait already: try again in a while")
            self._there.append(mine)
        try:
            yield mine
        finally:
            with self._lock:
                self._there.remove(mine)

    def before(self, mine: object) -> Iterator[int]:
        """How many are before `mine`, again and again until there are none, or the line is closed."""
        while (ahead := self._there.index(mine)) and not self.closed:
            yield ahead
            time.sleep(OFTEN)

    def close(self, patience: float) -> bool:
        """Nobody gets a place any more, and who has one is to leave it; whether all have, after so many seconds."""
        self.closed = True
        end = time.monotonic() + patience
        while self._there and time.monotonic() < end:
            time.sleep(0.05)
        return not self._there
