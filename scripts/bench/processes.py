"""The parent's end: worker processes, of which one works at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent


class WorkerError(Exception):
    """What a worker could not do, in a line."""


def environment(threads: int) -> dict[str, str]:
    """For processes that are measured: this checkout's `ldm`, so many threads, and no look at a hub."""
    paths = [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
    numbers = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {
        **os.environ, **numbers, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error",
    }  # fmt: skip


class Worker:
    """One worker process; `ask` waits for its answer."""

    def __init__(self, threads: int, log: Path):
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment(threads),
            encoding="utf-8",
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer. WorkerError where there is an error, or the process has ended, as where memory ran out."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended with status {self._process.wait()} (out of memory?)")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def stop(self) -> None:
        """It does not outlive this, whatever it is at."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            with suppress(BrokenPipeError):
                pipe.close()


class Crew:
    """Starts workers, and stops all of them when it is left (as a context).

    With `shared`, there is one process for all that diffusers does, and one for all else, instead of one for each
    setting: quick, for tiny networks, but peaks of memory then say little.
    """

    def __init__(self, threads: int, log: Path, *, shared: bool = False):
        self.threads, self.log, self.shared = threads, log, shared
        self._workers: list[Worker] = []
        self._by_side: dict[tuple[bool, int], Worker] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error) -> None:
        for worker in [*self._workers]:
            self._stop(worker)

    def _stop(self, worker: Worker) -> None:
        worker.stop()
        self._workers.remove(worker)

    def worker(self, side: str, threads: int | None = None) -> Worker:
        key = side == "diffusers", threads or self.threads
        if self.shared and key in self._by_side and self._by_side[key].alive:
            return self._by_side[key]
        worker = self._by_side[key] = Worker(key[1], self.log)
        self._workers.append(worker)
        return worker

    def done(self, worker: Worker, key: str | None = None) -> None:
        """No more is asked of it by who took it; of a shared one, no more of what was set up under `key`."""
        if not self.shared:
            self._stop(worker)
        elif key is not None:
            with suppress(WorkerError):  # it has ended
                worker.ask(do="drop", key=key)

    def call(self, side: str, task: str, **options: Any) -> Any:
        """One answer of a worker that is needed for nothing else."""
        worker = self.worker(side)
        try:
            return worker.ask(do="call", task=task, options=options)["value"]
        finally:
            self.done(worker)
