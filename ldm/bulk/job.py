"""A whole run: what is left of the rows is drawn by an engine, and kept by a store."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ldm.bulk.draw import Drawer, Drawn, Failed, ModelError
from ldm.bulk.engines import Results, local
from ldm.bulk.rows import Row, batches
from ldm.bulk.store import Store

# So many rows failed, of all likenesses or of so many of them, and none was ever drawn: it is no row's fault.
HOPELESS = 32
LOGGED = 60  # seconds from one report of the progress to the next, in a file that stands for the terminal


@dataclass(frozen=True)
class Summary:
    """Counts that add up: rows = there (before this run) + drawn + failed + left."""

    rows: int
    there: int
    drawn: int
    failed: int
    manifest: Path

    @property
    def left(self) -> int:
        """Not tried, as the run was interrupted."""
        return self.rows - self.there - self.drawn - self.failed


def run(
    store: Store,
    make_drawer: Callable[[], Drawer],
    *,
    batch_size: int = 8,
    engine: Callable[[Callable[[], Drawer], Sequence[Sequence[Row]]], Results] = local,
    progress: bool = True,
    check: Callable[[Row], None] | None = None,
) -> Summary:
    """Draw the rows of `store`, which is entered, that are not finished; what it says when no more can be done.

    `make_drawer` makes what draws, where that is done: a function of rows that are alike. `check` raises ValueError
    for a row that the model cannot draw. `engine`: `local`, or a `Ray`. `progress`: False for no bar on stderr.

    After Ctrl-C (once: the batch is finished) there are rows that are `left`. Where the disk is full, an OSError, and
    where the model fails, a ModelError: in every case what was finished is there, and the next run goes on from it.
    """
    left = [row for row in store.rows if isinstance(row, Row) and row.index not in store.done]
    wanted = [row for row in left if check is None or _passes(store, row, check)]
    there, complete = len(store.done), False
    try:
        with _interrupts() as interrupted, _bar(len(store.rows), there + store.failed, progress) as bar:
            kinds = len({row.likeness for row in wanted})
            complete = _drain(store, _found(engine, make_drawer, wanted, batch_size), kinds, interrupted, bar)
    except BaseException:
        with contextlib.suppress(OSError):  # of the same full disk; the first error says it
            store.finish(False)
        raise
    return Summary(len(store.rows), there, len(store.done) - there, store.failed, store.finish(complete))


def _passes(store: Store, row: Row, check: Callable[[Row], None]) -> bool:
    try:
        check(row)
    except ValueError as error:
        store.fail(row.index, "row", str(error))
        return False
    return True


def _found(engine, make_drawer, wanted: Sequence[Row], size: int) -> Results:
    return engine(make_drawer, batches(wanted, size)) if wanted else iter(())


def _drain(store: Store, found: Results, kinds: int, interrupted: threading.Event, bar) -> bool:
    """Keep what is found; whether that was all. `kinds`: how many likenesses the rows have."""
    failed = 0
    hopeless = set()  # likenesses of rows that failed: the first rows may be those that are too large
    with contextlib.closing(found) if hasattr(found, "close") else contextlib.nullcontext():
        for results in found:
            for result in results:
                if isinstance(result, Drawn):
                    store.add(result.index, result.png)
                elif isinstance(result, Failed):
                    store.fail(result.index, result.kind, result.reason)
                    failed += 1
                    hopeless.add(store.rows[result.index].likeness)
                bar.update()
            store.flush()
            if not store.done and failed >= HOPELESS and len(hopeless) >= min(kinds, HOPELESS):
                raise ModelError(f"the first {failed} rows failed, the last with: {results[-1].reason}")
            if interrupted.is_set():
                return False
    return True


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM; the second is a KeyboardInterrupt at once. Elsewhere than in the main thread
    signals are the caller's."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame):
        if asked.is_set():
            raise KeyboardInterrupt("at once; what was finished is there, and the next run goes on from it")
        asked.set()
        tqdm.write("interrupted: the run finishes the batch, and ends; once more ends it at once", file=sys.stderr)

    usual = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _bar(total: int, initial: int, progress: bool) -> tqdm:
    often = {} if sys.stderr.isatty() else {"mininterval": LOGGED, "maxinterval": LOGGED}
    bar = {"desc": "pictures", "unit": "picture", "smoothing": 0.05, "disable": not progress}
    return tqdm(total=total, initial=initial, **bar, **often)
