"""How long Python takes to import: each time in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench import contest
from bench.contest import OURS, THEIRS, Contestant
from bench.processes import SCRIPTS, environment

_AFTER_TORCH = """
import torch, time
began = time.perf_counter()
{}
print(time.perf_counter() - began)
"""
_TORCH = """
import time
began = time.perf_counter()
import torch
print(time.perf_counter() - began)
"""


def printed(code: str) -> float:
    """The seconds that a Python program prints."""
    return float(_run([sys.executable, "-c", code]).splitlines()[-1])


def whole(*arguments: str) -> float:
    """The seconds that a Python process takes from start to end."""
    began = time.perf_counter()
    _run([sys.executable, *arguments])
    return time.perf_counter() - began


def _run(command: list[str]) -> str:
    done = subprocess.run(command, env=environment(1), capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:80]!r} failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return done.stdout


def section(b: Any) -> Iterator[dict[str, Any]]:
    """Rows for `limits`, by "what"."""
    script = str(SCRIPTS / "txt2img.py")
    found = {
        "torch": [("torch", "import torch", lambda: printed(_TORCH))],
        "sampler": [
            (OURS, "import ldm.sampling", lambda: printed(_AFTER_TORCH.format("import ldm.sampling"))),
            (THEIRS, "DDIMScheduler", lambda: printed(_AFTER_TORCH.format("from diffusers import DDIMScheduler"))),
        ],
        "help": [(OURS, "txt2img.py --help", lambda: whole(script, "--help"))],
    }
    cases = {"torch": "torch", "sampler": "the sampler, after torch", "help": "a script's help, the whole process"}
    for what, tried in found.items():
        everyone = [Contestant(side, how, "", {}, final=True) for side, how, _ in tried]
        for _ in range(b.opt.rounds):
            for contestant, (_, _, measure) in zip(everyone, tried, strict=True):
                _once(contestant, measure)
        yield contest.row(cases[what], {"what": what}, everyone)


def _once(contestant: Contestant, measure) -> None:
    if contestant.reason is None:
        try:
            contestant.answers.append({"times": [measure()]})
        except RuntimeError as error:
            contestant.reason, contestant.answers = str(error), []
