"""Hostile files for everything here that reads what strangers give, and whether it keeps what SECURITY.md promises.

Each case is a file of its own: changed bytes of a good one, or written to do harm. It must be read rightly or refused
with our own error that names it, within seconds and 300 MB, with nothing run, imported, written or connected to. The
reading is done by another process, whose end is noticed. The same kind and seed make the same file.

    python scripts/fuzz.py --seconds 480
    python scripts/fuzz.py --only parquet configs --cases 2000 --keep outputs/fuzz
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import _cli
from fuzzing.cases import KINDS
from fuzzing.run import Tally, fuzz, keep_file, table


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("fuzz", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", metavar="S", type=_cli.number(float, 0, 10**6),
                        help="how long, shared by the kinds (default: 60)")  # fmt: skip
    length.add_argument("--cases", metavar="N", type=_cli.number(int, 1, 10**9), help="how many of each kind")
    parser.add_argument("--seed", metavar="N", type=_cli.number(int, 0, 2**63), default=0,
                        help="of each kind's first case; the next has the next (default: 0)")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", default=list(KINDS),
                        help=f"of {', '.join(KINDS)} (default: all; parquet, where pyarrow is installed)")  # fmt: skip
    parser.add_argument("--keep", metavar="DIR", type=_cli.a_path, help="put the files that failed there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    if sys.platform == "win32":
        raise ValueError("fuzzing watches the reading process by means that Windows lacks; run it on Linux, or in WSL")
    kinds = list(opt.only)
    if "parquet" in kinds and importlib.util.find_spec("pyarrow") is None:
        print("parquet is left out: pyarrow is not installed", file=sys.stderr)
        kinds.remove("parquet")
    seconds = opt.seconds if opt.seconds is not None or opt.cases else 60
    tallies = fuzz(kinds, seconds=seconds, cases=opt.cases, seed=opt.seed, told=tell(opt.keep))
    print(table(tallies))
    if failures := sum(tally.failed for tally in tallies.values()):
        sys.exit(f"fuzz: {failures} cases failed")


def tell(keep: str | None):
    """What says how to have a failure again, and keeps its file."""
    folder = None if keep is None else Path(keep)

    def told(tally: Tally, seed: int, answer: dict[str, str]) -> None:
        again = f"python scripts/fuzz.py --only {tally.kind} --seed {seed} --cases 1"
        print(f"FAILED {tally.kind}, {answer['type']}: {answer['said']}\n    {again}", file=sys.stderr, flush=True)
        if folder is not None:
            print(f"    {keep_file(tally.kind, seed, folder)}", file=sys.stderr, flush=True)

    return told


if __name__ == "__main__":
    _cli.run(main, "fuzz")
