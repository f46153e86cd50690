"""Measure this library and diffusers side by side, on the same random weights.

    python scripts/benchmark.py                                  # everything: hours on two cores, minutes on a GPU
    python scripts/benchmark.py --size small --rounds 3          # Stable Diffusion's networks on small latents
    python scripts/benchmark.py --sections overhead import       # minutes anywhere
    python scripts/benchmark.py --sections unet --dtypes bfloat16 --threads 2

Each side has processes of its own, and one works at a time: they take turns, round by round. Where a side has several
settings, all are tried, and the fastest of each meet. Prints a table; it, its numbers as JSON and a plot are in
--outdir, renewed with each row. docs/speed_bench.md says how to read them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _cli
from bench.contest import OURS
from bench.limits import check
from bench.plot import plot
from bench.processes import Crew, WorkerError
from bench.sections import SECTIONS, SIZES, Bench
from bench.table import table

DTYPES = ("float32", "bfloat16", "float16")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = _cli.number(int, 1, 1000)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS], metavar="NAME",
                        help=f"of {', '.join(SECTIONS)} (default: all)")  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="full", help="of networks and latents (default: full)")
    parser.add_argument("--rounds", type=count, default=5, help="in which both sides take turns (default: 5)")
    parser.add_argument("--threads", type=count, default=os.cpu_count(), help="of a process (default: one a core)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, metavar="DTYPE",
                        help=f"of {', '.join(DTYPES)} (default: float32, and the half that is fast here)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                        help="measure compiled networks, too (default: where there is a compiler)")  # fmt: skip
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="WORD",
        help="leave out settings of networks with one of these in their name: max-autotune takes long",
    )
    parser.add_argument("--outdir", default="outputs/bench", help="(default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    outdir = Path(opt.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    log = outdir / "workers.log"
    log.write_bytes(b"")
    with (
        tempfile.TemporaryDirectory(prefix="ldm-bench-") as scratch,
        Crew(opt.threads, log, shared=opt.size == "tiny") as crew,
    ):
        try:
            machine = crew.call(OURS, "machine:describe", device=opt.device)
        except WorkerError as error:  # a --device that is unknown or not there
            raise ValueError(str(error).partition(": ")[2] or str(error)) from error
        bench = Bench(opt, machine, crew, Path(scratch), SIZES[opt.size])
        results = begin(opt, machine)
        for name in opt.sections:
            run_section(name, bench, results, outdir)
    print(table(results))
    if reason := plot(results, outdir / "benchmark.png"):
        print(f"no plot: {reason}", file=sys.stderr)
    print(outdir)
    if failed := [name for name, section in results["sections"].items() if section["failed"]]:
        sys.exit(f"benchmark: {', '.join(failed)} failed; {log} has more")


def begin(opt: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    """What is known before anything is measured."""
    names = "size", "rounds", "threads", "dtypes", "compile", "without", "sections"
    settings = {name: getattr(opt, name) for name in names}
    date = datetime.date.today().isoformat()
    return {"date": date, "machine": machine, "settings": settings, "sections": {}, "limits": []}


def run_section(name: str, bench: Bench, results: dict[str, Any], outdir: Path) -> None:
    """Measure a section, and write each row when it is there; an error ends the section alone, and is written, too."""
    title, rows = SECTIONS[name]
    section = results["sections"][name] = {"title": title, "failed": None, "rows": []}
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        for row in rows(bench):
            section["rows"].append(row)
            write(results, outdir)
            print(f"  {row['case']}: {told(row)}", file=sys.stderr, flush=True)
    except Exception as error:
        with bench.crew.log.open("a") as log:
            traceback.print_exc(file=log)
        section["failed"] = f"{type(error).__name__}: {error}"
    section["seconds"] = time.monotonic() - began
    write(results, outdir)


def told(row: dict[str, Any]) -> str:
    if row["ratio"] is not None:
        return f"diffusers takes {row['ratio']:.2f} times as long as ours"
    return row.get("not_measured") or "measured"


def write(results: dict[str, Any], outdir: Path) -> None:
    """The results so far: a run that is cut short keeps them."""
    results["limits"] = check(results["sections"])
    (outdir / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (outdir / "benchmark.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and the temporary folder go, too
    _cli.run(main, "benchmark")
