"""Bulk sampling: how the rate grows from one worker of Ray to two, each with one thread; beside it one process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import contest
from bench.contest import OURS, Contestant

PROMPT = "a red circle above a blue square"
BATCH, STEPS = 8, 4
SETTINGS = {"one process": 0, "Ray, 1 worker": 1, "Ray, 2 workers": 2}  # workers
PICTURES = {"full": 1600, "small": 800, "tiny": 64}


def section(b: Any) -> Iterator[dict[str, Any]]:
    """One row: the bundled model, on CPUs."""
    import _config

    count = PICTURES[b.opt.size]
    case, key = f"a picture of {count}, bundled model, {STEPS} steps, {BATCH} at a time", {"pictures": count}
    if not _config.BUNDLED_CKPT.is_file():
        yield contest.not_measured(case, key, "the bundled weights are not in this checkout")
        return
    found = [
        Contestant(OURS, how, "bulk:rate", {"workers": n, "count": count}, threads=1) for how, n in SETTINGS.items()
    ]
    contest.apart(b.crew, found, b.opt.rounds)
    yield contest.row(case, key, found)


def rate(workers: int, count: int):
    """Seconds of a picture while all workers are at work: from when a quarter is there to when three are.

    Before, they load the model; after, some have nothing left to do. `workers`: 0 is this process alone.
    """
    import _bulk
    import sample_bulk

    from ldm.bulk import Ray, Row, Store, local, row_seed, run

    engine = Ray(workers) if workers else local
    rows = [Row(k, row_seed(1, k), PROMPT) for k in range(count)]

    def timed(seen: list[float]):
        def watch(make_drawer, batches):
            for results in engine(make_drawer, batches):
                seen.extend([time.perf_counter()] * len(results))
                yield results

        return watch

    def once() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="ldm-bulk-") as outdir:
            opt = sample_bulk.parse(["--ddim_steps", str(STEPS), "--device", "cpu", "--outdir", outdir])
            seen: list[float] = []
            with Store(Path(outdir), rows, {}) as store:
                run(store, _bulk.Drawing(opt), batch_size=BATCH, engine=timed(seen), progress=False)
        first, last = len(seen) // 4, 3 * len(seen) // 4
        return {"times": [(seen[last] - seen[first]) / (last - first)]}

    return once
