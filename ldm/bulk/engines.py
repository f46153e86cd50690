"""Who draws: this process, or the actors of a Ray cluster. Both take batches, and give what became of their rows."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ldm.bulk import apart, cluster
from ldm.bulk.draw import Drawer, Drawn, Failed, ModelError, Worker
from ldm.bulk.rows import Row

Results = Iterator[list[Drawn | Failed]]
_logger = logging.getLogger(__name__)
PATIENCE = 3  # times that Ray may give up with nothing drawn in between


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

        Where Ray gives up, as when a node goes on which a worker was just beginning, what is left is begun again;
        ModelError when it does so without having drawn anything in between, ConnectionError where there is no cluster.

        `make_drawer` is pickled: all nodes with room for a worker must have what it uses, and this package,
        installed or at the same path.
        """
        left, failures = list(batches), 0
        while left:
            came: set[int] = set()
            failed = None
            try:
                with contextlib.closing(self._results(make_drawer, left)) as found:
                    for results in found:
                        came.update(result.index for result in results)
                        yield results
            except cluster.GaveUp as error:
                failures, failed = 1 if came else failures + 1, error
            left = [batch for batch in left if batch[0].index not in came]
            if failures == PATIENCE:
                raise ModelError(f"Ray gave up: {failed}") from failed
            if failed and left:
                _logger.warning("Ray gave up, and begins again with what is left: %s", failed)
                time.sleep(1)  # for the cluster to notice what is gone

    def _results(self, make_drawer: Callable[[], Drawer], batches: Sequence[Sequence[Row]]) -> Results:
        """Of one attempt; GaveUp where it is Ray that fails."""
        drawn = cluster.drawn if cluster.load().is_initialized() else apart.drawn
        return drawn(self, make_drawer, batches)
