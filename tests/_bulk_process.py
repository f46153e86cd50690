"""A job that needs no model, as a process for tests to kill: `python _bulk_process.py OUTDIR FORMAT COUNT SECONDS`.

A row's "picture" is bytes of its seed. Each takes SECONDS. It says to stderr when it draws, and prints the summary.
"""

import hashlib
import json
import sys
import time
from dataclasses import asdict

from ldm.bulk import Row, Store, row_seed, run

SHARD = 7


def picture(row):
    return hashlib.sha256(f"{row.seed} {row.prompt}".encode()).digest() * (1 + row.seed % 500)


def rows(count):
    return [Row(k, row_seed(1, k), f"number {k}", width=64 + k % 2) for k in range(count)]


def maker(seconds=0.0):
    def draw(batch):
        if seconds:
            print("drawing", file=sys.stderr, flush=True)
        time.sleep(seconds * len(batch))
        return [picture(row) for row in batch]

    return lambda: draw


def failing(*broken):
    """Makes what draws all rows but these, for which numbers overflow."""

    def draw(batch):
        if any(row.index in broken for row in batch):
            raise FloatingPointError("NaN")
        return [picture(row) for row in batch]

    return lambda: draw


def main(outdir, format, count, seconds):
    with Store(outdir, rows(int(count)), {"steps": 5}, format=format, shard_size=SHARD) as store:
        summary = run(store, maker(float(seconds)), batch_size=5, progress=False)
    print(json.dumps({**asdict(summary), "manifest": str(summary.manifest), "left": summary.left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
