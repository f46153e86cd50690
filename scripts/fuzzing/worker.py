"""The process that reads hostile files: a JSON line says (kind, seed), a JSON line answers what came of it."""

from __future__ import annotations

import codecs
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from fuzzing import cases, guard

# What honest formats are written in (zip's names, pickle's texts, XML in pictures); each is imported when first used.
_CODECS = (
    "ascii latin-1 utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 cp437 raw_unicode_escape unicode_escape".split()
)


def judged(case: cases.Case, watch: guard.Guard) -> dict[str, str]:
    """{"outcome": "read", "refused" or "failed", "type", "said"} of one case."""
    result, error = None, None
    try:
        with watch.watching():
            result = case.read()
            wrong = case.wrong(result)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as caught:
        error = caught
    finally:
        del result
    if watch.seen or os.listdir():
        return failed("ran", watch.seen[0] if watch.seen else f"there is {os.listdir()} now")
    if watch.grown > guard.MEMORY:
        return failed("memory", f"took {watch.grown / 2**20:.0f} MiB for a file of {_size(case.path)} bytes")
    if error is not None:
        return _of_error(case, error)
    if case.hostile:
        return failed("accepted", "was read, and should have been refused")
    return failed("wrong", wrong) if wrong else {"outcome": "read", "type": "", "said": ""}


def _of_error(case: cases.Case, error: BaseException) -> dict[str, str]:
    kind, said = type(error).__name__, str(error)
    if isinstance(error, guard.Late):
        return failed("late", said)
    if type(error) not in case.refusals:
        return failed(kind, said)
    if case.names not in said:
        return failed("nameless", f"{kind} does not say {case.names}: {said}")
    return {"outcome": "refused", "type": kind, "said": said[:300]}


def failed(kind: str, said: str) -> dict[str, str]:
    return {"outcome": "failed", "type": kind, "said": said[:500]}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def main() -> None:
    sys.path[:] = [path for path in sys.path if path]  # no module comes from where one happens to stand
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # what a reader prints is no answer
    kinds: list[str] = json.loads(sys.stdin.readline())
    for codec in _CODECS:
        codecs.lookup(codec)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in kinds:
            cases.maker(kind).warm(_fresh(scratch))
        watch = guard.Guard(Path(scratch))
        print(json.dumps("ready"), file=answers, flush=True)
        os.chdir(_fresh(scratch))  # where a canary would sit
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line), scratch, watch)), file=answers, flush=True)


def _answer(asked: dict[str, Any], scratch: str, watch: guard.Guard) -> dict[str, str]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        case = cases.make(asked["kind"], asked["seed"], Path(folder))
        return judged(case, watch)


def _fresh(scratch: str) -> Path:
    return Path(tempfile.mkdtemp(dir=scratch))


if __name__ == "__main__":
    main()
