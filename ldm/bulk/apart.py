"""Ray in a process of its own, beside the one that keeps the results.

Ray ends the process that it is in, without a word, where it loses its cluster, or where a thread that Ray Data has left
behind asks for something after the end. Here that is an attempt that failed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO

from ldm.bulk import cluster
from ldm.bulk.draw import Drawer, ModelError, said
from ldm.bulk.rows import Row

if TYPE_CHECKING:
    from ldm.bulk.engines import Ray, Results

# Python looks for modules in the working directory first for -c, which the process that asks may not do.
_COMMAND = "import sys; sys.path = [path for path in sys.path if path]; from ldm.bulk.apart import main; main()"
_TIDYING = 30  # seconds that the end of Ray may take
_TOLD = (cluster.GaveUp, ModelError, OSError, ValueError, ImportError)  # errors that say all there is to say


def drawn(spread: Ray, make_drawer: Callable[[], Drawer], batches: Sequence[Sequence[Row]]) -> Results:
    """As `cluster.drawn`, by a process that connects to a cluster, or starts one, and ends with the iterator."""
    process = _begun(cluster.load().cloudpickle.dumps((spread, make_drawer, list(batches))))
    try:
        while isinstance(what := _received(process), list | Warning):
            if isinstance(what, Warning):
                warnings.warn(what, stacklevel=2)
            else:
                yield what
        _wait(process)
        if what is not None:
            raise what
    finally:
        _end(process)


def _begun(job: bytes) -> subprocess.Popen:
    modules = os.pathsep.join(os.path.abspath(path) for path in sys.path if os.path.exists(path or "."))
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": modules},
        start_new_session=True,  # a Ctrl-C is for the process that keeps the results, and that one ends this
    )
    threading.Thread(target=_pass_on, args=(process.stderr,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job)
        process.stdin.flush()  # and it stays open: when it closes, nobody waits for the results any more
    return process


def _pass_on(said: BinaryIO) -> None:
    """What the process says, but for Ray's line that it says little."""
    with said:
        for line in said:
            if b"Set ray log level" not in line:
                sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()


def _received(process: subprocess.Popen) -> list | Exception | None:
    """The next results, a warning, or how it ended: with an error or without one."""
    try:
        return pickle.load(process.stdout)  # of our own process
    except (EOFError, pickle.UnpicklingError):
        _wait(process)
        return cluster.GaveUp(f"its process ended with status {process.poll()}")


def _wait(process: subprocess.Popen) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TIDYING)


def _end(process: subprocess.Popen) -> None:
    """It stops when its standard input does, and takes with it the cluster that it has started."""
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        _wait(process)
    finally:  # also where Ctrl-C cuts the waiting short
        process.kill()
        process.wait()


def main() -> None:
    """The process: a job from the standard input, what comes of it to the standard output."""
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)  # what others print is not for the reader of the results
        signal.signal(signal.SIGTERM, _stop)
        send = _sender(results)
        try:
            spread, make_drawer, batches = pickle.load(sys.stdin.buffer)  # of the process that has begun this one
            threading.Thread(target=_end_with_the_reader, daemon=True).start()
            with cluster.connected(spread.address):
                _draw(send, spread, make_drawer, batches)
        except Exception as error:
            send(_told(error))


def _sender(results: BinaryIO) -> Callable[[object], None]:
    def send(what: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody reads it any more; `_end_with_the_reader` ends this
            results.write(pickle.dumps(what))
            results.flush()

    return send


def _draw(send: Callable[[object], None], spread: Ray, make_drawer, batches) -> None:
    """How it ended is sent before Ray is, as this process may end with it."""
    show = warnings.showwarning

    def relay(message, category, *where, **more):
        if category is cluster.FewerWorkers:
            send(message)
        else:
            show(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = relay
        try:
            for results in cluster.drawn(spread, make_drawer, batches):
                send(results)
        except Exception as error:
            send(_told(error))
        else:
            send(None)


def _told(error: Exception) -> Exception:
    """As it can be sent."""
    if not isinstance(error, _TOLD):
        traceback.print_exc()
        return RuntimeError(said(error))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(said(error))


def _stop(*_) -> None:
    """The handler of SIGTERM: Ray is shut down in good order; what it says of tasks cut short is of no use any more."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.exit(1)


def _end_with_the_reader() -> None:
    """Wait until the standard input is closed, or the one who had it open is gone; then this process is to end."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_TIDYING)
    os._exit(1)  # Ray does not let it end
