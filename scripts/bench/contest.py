"""One row of the table: the settings of each side try out, and the fastest of each meet, round by round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.processes import Crew, Worker, WorkerError

OURS, THEIRS = "ours", "diffusers"


@dataclass
class Contestant:
    """One side with one setting, and what was measured of it."""

    side: str  # "ours", "diffusers", or a third's name
    how: str  # the setting, in words
    task: str  # "module:function" of this package
    options: Mapping[str, Any]
    params: Mapping[str, Any] = field(default_factory=dict)  # of its run, beside the row's
    reason: str | None = None  # why it is not measured
    threads: int | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    final: bool = False  # whether it was among those that met
    first: float | None = None  # seconds of the very first call, with what it compiles
    saved: str | None = None  # its output
    _worker: Worker | None = None
    _key: str = ""

    def run(self, crew: Crew, params: Mapping[str, Any], save: str | None = None) -> dict[str, Any] | None:
        """One round, begun with the worker's setup if there is none yet; None where it fails, and for good."""
        if self.reason is not None:
            return None
        try:
            if self._worker is None:
                self._worker, self._key = crew.worker(self.side, self.threads), f"{next(_KEYS)}"
                self._worker.ask(do="setup", key=self._key, task=self.task, options=self.options)
            return self._worker.ask(do="run", key=self._key, params={**params, **self.params}, save=save)
        except WorkerError as error:
            self.reason, self.answers = str(error), []
            self.close(crew)
            return None

    def close(self, crew: Crew) -> None:
        if self._worker is not None:
            crew.done(self._worker, self._key)
            self._worker = None

    @property
    def times(self) -> list[float]:
        return [seconds for answer in self.answers for seconds in answer["times"]]


_KEYS = itertools.count()


def contest(
    crew: Crew,
    sides: Sequence[Sequence[Contestant]],
    params: Mapping[str, Any],
    rounds: int,
    scratch: Path,
    *,
    warm_up: Mapping[str, Any] | None = None,
) -> None:
    """Measure the settings of each side; what was found is in them.

    Of a side with several, each runs once, and the fastest goes on. Those that are left take turns, `rounds` times,
    one process at work at a time. `warm_up`: the params of each process' first run, which does not count.
    """
    left = []
    for settings in sides:
        best = None
        for contestant in settings:
            _try_out(crew, contestant, params, warm_up or params, scratch, measured=len(settings) > 1)
            if contestant.reason is not None:
                continue
            loser = contestant if best is not None and _seconds(best) <= _seconds(contestant) else best
            best = contestant if loser is not contestant else best
            if loser is not None:
                loser.close(crew)
        if best is not None:
            best.final = True
            left.append(best)
    for contestant in left:
        contestant.answers = []  # the rounds alone, in which both had the same machine
    for _ in range(rounds):
        for contestant in left:
            if answer := contestant.run(crew, params):
                contestant.answers.append(answer)
    for contestant in left:
        contestant.close(crew)


def _try_out(crew, contestant, params, warm_up, scratch: Path, measured: bool) -> None:
    save = str(scratch / f"{next(_KEYS)}.npy")
    answer = contestant.run(crew, warm_up, save)
    if answer:
        contestant.first = answer.get("first", answer["times"][0])
        contestant.saved = answer.get("output")
    if measured and (answer := contestant.run(crew, params)):
        contestant.answers.append(answer)


def _seconds(contestant: Contestant) -> float:
    return median(contestant.times) if contestant.answers else 0.0


def apart(crew: Crew, contestants: Sequence[Contestant], rounds: int) -> None:
    """Measure contestants that need a fresh process in every round, as those that load."""
    for _ in range(rounds):
        for contestant in contestants:
            contestant.final = True
            if answer := contestant.run(crew, {}):
                contestant.answers.append(answer)
                contestant.close(crew)


# ------------------------------------------------------------------------------------------------- what the row says


def row(
    case: str, key: Mapping[str, Any], contestants: Sequence[Contestant], reference: str | None = None
) -> dict[str, Any]:
    """The row as JSON has it; `key` says what it is of, for `limits` and `plot` to find it.

    `reference`: the saved output that all are held against, by default that of diffusers' first setting.
    """
    reference = reference or saved_by_theirs(contestants)
    entries = [_entry(c, reference) for c in contestants]
    return {"case": case, **key, "entries": entries, **ratios(entries)}


def saved_by_theirs(contestants: Sequence[Contestant]) -> str | None:
    """The output of diffusers' first setting that has one."""
    return next((c.saved for c in contestants if c.side == THEIRS and c.saved), None)


def not_measured(case: str, key: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """A row that says why it is empty."""
    return {"case": case, **key, "entries": [], "not_measured": reason, **ratios([])}


def _entry(c: Contestant, reference: str | None) -> dict[str, Any]:
    entry = {"side": c.side, "how": c.how, "final": c.final and bool(c.answers), "not_measured": c.reason}
    if not c.answers:
        return entry | {"not_measured": c.reason or "no round was finished", "times": [], "median": None}
    more = {name: c.answers[0][name] for name in ("weights", "peak_of") if name in c.answers[0]}
    for name in ("peak", "grown", "grown_anonymous"):
        found = [answer[name] for answer in c.answers if answer.get(name) is not None]
        more[name] = max(found) if found else None
    if starts := [answer["start"] for answer in c.answers if "start" in answer]:
        more["start"] = median(starts)
    error = relative_error(c.saved, reference) if c.saved and reference else None
    return entry | {"times": c.times, **spread(c.times), "first": c.first, "error": error, **more}


def spread(times: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles."""
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {"median": median(times), "q1": low, "q3": high}


def ratios(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How many times as long diffusers' best takes as ours, and how much of its memory ours takes."""
    ours, theirs = (fastest(entries, side) for side in (OURS, THEIRS))
    if not ours or not theirs:
        return {"ratio": None, "memory_ratio": None}
    both = ours.get("peak") and theirs.get("peak")
    memory = ours["peak"] / theirs["peak"] if both else None
    return {"ratio": theirs["median"] / ours["median"], "memory_ratio": memory}


def fastest(entries: Sequence[Mapping[str, Any]], side: str) -> Mapping[str, Any] | None:
    """Of the side's settings that met, the fastest."""
    found = [entry for entry in entries if entry["side"] == side and entry["final"]]
    return min(found, key=lambda entry: entry["median"], default=None)


def relative_error(found: str, expected: str) -> float | None:
    """‖found − expected‖ / ‖expected‖ of two saved arrays; None where their shapes differ."""
    import numpy as np

    a, b = (np.load(file).astype(np.float64) for file in (found, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)) if a.shape == b.shape else None
