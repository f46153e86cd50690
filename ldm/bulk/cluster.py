"""What runs in the process that has Ray: the connection to a cluster, and a data set whose rows its actors draw."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.bulk.draw import Drawer, Drawn, Failed, ModelError, Worker, said
from ldm.bulk.rows import Row

if TYPE_CHECKING:
    from ldm.bulk.engines import Ray, Results

MAX_BLOCKS = 10_000  # of a Ray data set; beyond, several batches share one


class GaveUp(Exception):
    """Ray cannot go on; what has not been drawn may be asked for again."""


class FewerWorkers(UserWarning):
    """The cluster has no room for as many as were asked for."""


def load():
    """Ray, and Ray Data. ImportError where it is not installed."""
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


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """To the cluster at this address, or to one of this machine's for as long. ConnectionError where there is none."""
    ray = load()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _check_that_one_answers(address)
    signals = _signals()
    try:
        ray.init(
            address=address or "local",  # without a word it would join any cluster that is about
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": _environment()},
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:  # the last: Ray or Python of another version
        raise ConnectionError(f"no Ray cluster at {address or 'this machine'}: {said(error)}") from error
    finally:
        for number, handler in signals.items():  # which Ray has replaced by its own
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def drawn(spread: Ray, make_drawer: Callable[[], Drawer], batches: Sequence[Sequence[Row]]) -> Results:
    """By the actors of the cluster to which this process is connected, in any order."""
    ray = load()
    try:
        yield from _results(ray, spread, make_drawer, batches)
    except ray.exceptions.RayError as error:
        raise GaveUp(said(error)) from error


def _results(ray, spread: Ray, make_drawer, batches) -> Results:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    if hasattr(context, "max_consecutive_actor_init_deaths"):  # by default one is too many
        context.max_consecutive_actor_init_deaths = 20
    room = _room(ray, spread)
    workers = min(sum(room.values()), spread.workers, len(batches))
    _check_nodes(ray, room, ray.cloudpickle.dumps((_Actor, make_drawer)))
    pieces = [{"rows": pickle.dumps(list(batch))} for batch in batches]
    found = ray.data.from_items(pieces, override_num_blocks=min(len(pieces), MAX_BLOCKS)).map_batches(
        _Actor,
        fn_constructor_args=(make_drawer,),
        batch_size=1,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=spread.num_cpus,
        num_gpus=spread.num_gpus,
    )
    for piece in found.iter_rows():
        results = pickle.loads(piece["results"])  # of our own actor
        if isinstance(results, ModelError):
            raise results
        yield results


def _room(ray, spread: Ray) -> dict[str, int]:
    """{the id of a node that is there: how many workers it has room for}, of those that have any. ValueError where none
    has: Ray would wait for it forever."""
    needs = {"CPU": spread.num_cpus, "GPU": spread.num_gpus}
    room = {}
    for node in ray.nodes():
        fits = [node["Resources"].get(name, 0) // need for name, need in needs.items() if need]
        if node["Alive"] and (count := int(min(fits, default=spread.workers))):
            room[node["NodeID"]] = count
    if not room:
        wanted = " and ".join(f"{need:g} {name}" for name, need in needs.items() if need)
        raise ValueError(f"no node of the Ray cluster has {wanted}, which a worker takes; give it less, or add nodes")
    if (total := sum(room.values())) < spread.workers:
        warnings.warn(f"the Ray cluster has room for {total} of {spread.workers} workers", FewerWorkers, stacklevel=2)
    return room


def _check_nodes(ray, nodes: Iterable[str], actor: bytes) -> None:
    """ModelError where one of these nodes cannot load the pickled actor: Ray would try it again and again, without a
    word."""

    def lacks() -> str | None:  # pickled itself, as it is no module's, so that a node without this package can run it
        try:
            pickle.loads(actor)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(lacks)
    asked = [task.options(num_cpus=0, scheduling_strategy=on(node, soft=False)).remote() for node in nodes]
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    for node, answer in zip(nodes, asked, strict=True):
        with contextlib.suppress(ray.exceptions.RayError):  # the node has gone; the others draw
            if (error := ray.get(answer)) is not None:
                raise ModelError(f"the Ray node {addresses[node]} lacks what the job needs: {error}")


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


def _check_that_one_answers(address: str | None) -> None:
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
