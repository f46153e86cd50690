"""Rounds over the kinds, each with its share of the time, and what came of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing import cases
from fuzzing.parent import Child


@dataclass
class Tally:
    """Of one kind. `types`: of the refusals; `failures`: [(seed, what)]."""

    kind: str
    read: int = 0
    types: Counter = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def refused(self) -> int:
        return self.types.total()

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def cases(self) -> int:
        return self.read + self.refused + self.failed

    def add(self, seed: int, answer: Mapping[str, str]) -> None:
        if answer["outcome"] == "read":
            self.read += 1
        elif answer["outcome"] == "refused":
            self.types[answer["type"]] += 1
        else:
            self.failures.append((seed, answer["type"]))


def fuzz(
    kinds: Sequence[str],
    *,
    seconds: float | None = None,
    cases: int | None = None,
    seed: int = 0,
    told: Callable[[Tally, int, dict[str, str]], None] = lambda *_: None,
    places: Sequence[str] = (),
    patience: float | None = None,
) -> dict[str, Tally]:
    """Cases of each kind from `seed` on: `cases` of them, or as many as there is time for. `told`: of each failure.

    `places`: folders of kinds that are not KINDS; `patience`: seconds after which a reader hangs.
    """
    tallies = {kind: Tally(kind) for kind in kinds}
    with Child(kinds, places, **({} if patience is None else {"patience": patience})) as child:
        while left := [t for t in tallies.values() if _goes_on(t, len(kinds), seconds, cases)]:
            _one(min(left, key=lambda tally: tally.seconds), seed, child, told)
    return tallies


def _goes_on(tally: Tally, kinds: int, seconds: float | None, cases: int | None) -> bool:
    return tally.cases < cases if cases is not None else tally.seconds < seconds / kinds


def _one(tally: Tally, seed: int, child: Child, told: Callable) -> None:
    began, seed = time.monotonic(), seed + tally.cases
    answer = child.ask(tally.kind, seed)
    tally.seconds += time.monotonic() - began
    tally.add(seed, answer)
    if answer["outcome"] == "failed":
        told(tally, seed, answer)


def keep_file(kind: str, seed: int, folder: Path) -> Path:
    """Make the file of a case once more, and leave it; where it lies."""
    place = folder / f"{kind}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    return cases.make(kind, seed, place).path


def table(tallies: Mapping[str, Tally]) -> str:
    """Markdown: a row for each kind."""
    lines = ["| kind | cases | read rightly | refused | by type | failed |", "|---|---:|---:|---:|---|---:|"]
    for t in tallies.values():
        types = ", ".join(f"{name} {count}" for name, count in t.types.most_common())
        lines.append(f"| {t.kind} | {t.cases} | {t.read} | {t.refused} | {types} | {t.failed} |")
    total = [sum(getattr(t, name) for t in tallies.values()) for name in ("cases", "read", "refused", "failed")]
    return "\n".join([*lines, "| all | {} | {} | {} | | {} |".format(*total)])
