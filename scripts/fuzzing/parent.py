"""Has a child read hostile files, and notices what a child cannot tell: that it died, or hangs where no alarm helps."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing import guard, worker

SCRIPTS = Path(__file__).resolve().parents[1]
_START = 120  # seconds for the imports


class Child:
    """A process that reads cases, and is started anew where one has ended it. A context: it does not outlive it."""

    def __init__(self, kinds: Sequence[str], places: Sequence[str] = (), patience: float = guard.SECONDS + 10):
        """`places`: where else its modules may lie; `patience`: seconds for one case, with the making of it."""
        self.kinds, self.patience = list(kinds), patience
        paths = [str(SCRIPTS), str(SCRIPTS.parent), *places]
        self._scratch = tempfile.TemporaryDirectory(prefix="ldm-fuzz-")  # a child that crashes leaves its files
        self._environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "PYTHONFAULTHANDLER": "", "TMPDIR": self._scratch.name,
        }  # fmt: skip
        self._process: subprocess.Popen | None = None
        self._log = tempfile.TemporaryFile()  # libraries in C say much of what they read, and Python why it ended

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error) -> None:
        self._stop()
        self._log.close()
        self._scratch.cleanup()

    def ask(self, kind: str, seed: int) -> dict[str, str]:
        """{"outcome", "type", "said"} of a case; one that ends the child, or that it does not answer, has failed."""
        if self._process is None:
            self._start()
        self._send({"kind": kind, "seed": seed})
        try:
            answer = self._answer(self.patience)
        except TimeoutError:
            self._stop()
            return worker.failed("hang", f"no answer in {self.patience:g} s")
        if answer is None:
            ended = _how(self._process.wait())
            self._stop()
            return worker.failed("crash", f"the reading process ended: {ended}; {self._last_words()}")
        return answer

    def _start(self) -> None:
        self._log.seek(0)
        self._log.truncate()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzzing.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=self._environment, cwd=SCRIPTS,
        )  # fmt: skip
        self._send(self.kinds)
        if self._answer(_START) != "ready":
            self._stop()
            raise RuntimeError(f"the reading process did not begin: {self._last_words()}")

    def _send(self, value: Any) -> None:
        self._process.stdin.write(f"{json.dumps(value)}\n".encode())
        self._process.stdin.flush()

    def _answer(self, seconds: float) -> Any:
        """The next answer, None where the process has ended; TimeoutError where there is none in time."""
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _last_words(self) -> str:
        self._log.seek(max(0, self._log.seek(0, 2) - 300))
        return " ".join(self._log.read().decode(errors="replace").split())

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close()
            self._process = None


def _how(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
