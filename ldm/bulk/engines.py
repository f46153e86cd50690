"""Who draws: this process, or the actors of a Ray cluster. Both take batches, and give what became of their rows."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.bulk.draw import Drawer, Drawn, Failed, ModelError, Worker, said
from ldm.bulk.rows import Row

Results = Iterator[list[Drawn | Failed]]
_logger = logging.getLogger(__name__)
PATIENCE = 3  # times that Ray may give up with nothing drawn in between
MAX_BLOCKS = 10_000  # of a Ray data set; beyond, several batches share one


def local(make_drawer: Callable[[], Drawer], batches: Sequence[Sequence[Row]]) -> Results:
    """In this process, one batch after the other."""
    worker = Worker(make_drawer)
    for batch in batches:
        yield worker(batch)


@dataclass(frozen=True)
class Ray:
    """How to spread the work; needs Ray Data (pip install 'ray[data]').

    workers: how many processes draw; each has the model. num_cpus, num_gpus: of a worker, which has as many threads.
    address: of a cluster, "auto" for the one here; None starts one of this machine's, for the job. (Whoever has called
    ray.init before has chosen: then it is not looked at.)
    """

    workers: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    address: str | None = None

    def __call__(self, make_drawer: Callable[[], Drawer], batches: Sequence[Sequence[Row]]) -> Results:
        """In the cluster's actors, in any order. Workers that die, and nodes that go, are replaced by Ray, and their
        batches drawn again. Nothing is written there: the results come here.

        `make_drawer` is pickled: all nodes must have what it uses, and this package, installed or at the same path.
        """
        ray = _ray()
        begun = not ray.is_initialized()
        if begun:
            self._connect(ray)
        try:
            yield from self._persistently(ray, make_drawer, batches)
        finally:
            if begun:
                ray.shutdown()

    def _persistently(self, ray, make_drawer, batches) -> Results:
        """`_results`; where Ray gives up, as when a node goes on which a worker was just beginning, what is left is
        begun again. ModelError when it does so without having drawn anything in between."""
        left, failures = list(batches), 0
        while left:
            came: set[int] = set()
            try:
                for results in self._results(ray, make_drawer, left):
                    came.update(result.index for result in results)
                    yield results
            except ray.exceptions.RayError as error:
                failures = 1 if came else failures + 1
                if failures == PATIENCE:
                    raise ModelError(f"Ray gave up: {said(error)}") from error
                _logger.warning("Ray gave up, and begins again with what is left: %s", said(error))
                time.sleep(1)  # for the cluster to notice what is gone
            left = [batch for batch in left if batch[0].index not in came]

    def _connect(self, ray) -> None:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        _answers(self.address)
        signals = _signals()
        try:
            ray.init(
                address=self.address or "local",  # without a word it would join any cluster that is about
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": _environment()},
                **({} if self.address else {"include_dashboard": False}),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:  # the last: Ray or Python of another version
            raise ConnectionError(f"no Ray cluster at {self.address or 'this machine'}: {said(error)}") from error
        finally:
            for number, handler in signals.items():  # which Ray has replaced by its own
                signal.signal(number, handler)

    def _room(self, ray) -> int:
        """How many workers there can be. ValueError where there is no room for one: Ray would wait for it forever."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        room = 0
        for node in ray.nodes():
            if node["Alive"]:
                fits = [node["Resources"].get(name, 0) // need for name, need in needs.items() if need]
                room += int(min(fits, default=self.workers))
        if not room:
            wanted = " and ".join(f"{need:g} {name}" for name, need in needs.items() if need)
            raise ValueError(
                f"no node of the Ray cluster has {wanted}, which a worker takes; give it less, or add nodes"
            )
        if room < self.workers:
            warnings.warn(f"the Ray cluster has room for {room} of {self.workers} workers", stacklevel=2)
        return min(room, self.workers)

    def _results(self, ray, make_drawer, batches) -> Results:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        if hasattr(context, "max_consecutive_actor_init_deaths"):  # by default one is too many
            context.max_consecutive_actor_init_deaths = 20
        pieces = [{"rows": pickle.dumps(list(batch))} for batch in batches]
        found = ray.data.from_items(pieces, override_num_blocks=min(len(pieces), MAX_BLOCKS)).map_batches(
            _Actor,
            fn_constructor_args=(make_drawer,),
            batch_size=1,
            batch_format="numpy",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=min(self._room(ray), len(pieces))),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )
        for piece in found.iter_rows():
            results = pickle.loads(piece["results"])  # of our own actor
            if isinstance(results, ModelError):
                raise results
            yield results


class _Actor:
    """A worker in a process of its own. Its errors are answers: as exceptions, Ray would try them again and again."""

    def __init__(self, make_drawer: Callable[[], Drawer]):
        self._error = self._worker = None
        try:
            self._worker = Worker(make_drawer)
        except ModelError as error:
            self._error = error

    def __call__(self, batch):
        import numpy as np

        results = [self._drawn(pickle.loads(piece)) for piece in batch["rows"]]
        return {"results": np.array([pickle.dumps(result) for result in results], dtype=object)}

    def _drawn(self, rows: Sequence[Row]) -> list[Drawn | Failed] | ModelError:
        if self._worker is None:
            return self._error
        try:
            return self._worker(rows)
        except ModelError as error:
            return error


def _answers(address: str | None) -> None:
    """ConnectionError where nobody listens at HOST:PORT; Ray itself takes minutes to say so."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}); start one, or leave the address out"
        ) from error


def _signals() -> dict:
    """The handlers of what ends a process; nothing elsewhere than in the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _environment() -> dict[str, str]:
    """For the actors: where this process looks for modules, beside Python's own and what is installed."""
    own = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    found = [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]
    places = {path: Path(path).resolve() for path in found}
    told = [
        path
        for path, place in places.items()
        if not any(place.is_relative_to(lib) for lib in own) and not {"site-packages", "dist-packages"} & {*place.parts}
    ]
    return {"PYTHONPATH": os.pathsep.join(told)}


def _ray():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell others of the run
    # Else a thread that Ray Data leaves behind starts Ray anew after a run's shutdown, in the way of the next one.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what is as it should be
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray Data ({error}): pip install 'ray[data]'") from error
    return ray
