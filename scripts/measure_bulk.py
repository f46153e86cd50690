"""Bulk sampling on trial: how memory and rate hold over many pictures, and what is left of a run that is killed.

    python scripts/measure_bulk.py --pictures 10000                # a soak: memory and rate in each tenth
    python scripts/measure_bulk.py --pictures 300 --kills 30       # killed 30 times, held against an undisturbed run

Runs scripts/sample_bulk.py with the bundled model, on one thread and few steps, as a process of its own. Linux alone
tells the memory of others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import _cli

SCRIPT = Path(__file__).with_name("sample_bulk.py")
PROMPT = "a red circle above a blue square"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("measure_bulk", doc=__doc__)
    parser.add_argument("--pictures", type=_cli.number(int, 10, 10**6), default=1000, help="(default: 1000)")
    parser.add_argument("--kills", type=_cli.number(int, 0, 1000), default=0, help="(default: 0, a soak)")
    parser.add_argument("--steps", type=_cli.number(int, 1, 1000), default=4, help="of each picture (default: 4)")
    parser.add_argument("--batch_size", type=_cli.number(int, 1, 1024), default=16, help="(default: 16)")
    parser.add_argument("--format", choices=("png", "tar"), default="tar", help="(default: tar)")
    parser.add_argument("--seed", type=_cli.number(int, 0), default=1, help="of the moments of killing (default: 1)")
    return parser.parse_args(argv)


def start(opt: argparse.Namespace, outdir: Path) -> subprocess.Popen:
    flags = ["-n", opt.pictures, "--prompt", PROMPT, "--ddim_steps", opt.steps, "--batch_size", opt.batch_size]
    flags += ["--format", opt.format, "--shard_size", 100, "--outdir", outdir, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, flags)], stdout=subprocess.DEVNULL, env=environment)


def drawn(outdir: Path) -> int:
    """How many pictures there are by now."""
    try:
        return (outdir / "checksums.jsonl").read_bytes().count(b"[")
    except FileNotFoundError:
        return 0


def resident(pid: int) -> float:
    """MiB that a process has in memory, its own and shared."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it has just ended


def soak(opt: argparse.Namespace, outdir: Path) -> None:
    """A line for each tenth: pictures, seconds, pictures a second in it, MiB at its end and the most in it."""
    process, began = start(opt, outdir), time.monotonic()
    print(f"{'pictures':>10} {'seconds':>8} {'a second':>9} {'MiB':>7} {'most':>7}")
    last, most, mark = (0, began), 0.0, 1
    while process.poll() is None:
        time.sleep(0.2)
        most, now, count = max(most, resident(process.pid)), time.monotonic(), drawn(outdir)
        if count >= mark * opt.pictures / 10:
            rate = (count - last[0]) / (now - last[1])
            print(f"{count:10} {now - began:8.1f} {rate:9.1f} {resident(process.pid):7.0f} {most:7.0f}", flush=True)
            last, most, mark = (count, now), 0.0, int(10 * count / opt.pictures) + 1
    if process.returncode:
        raise ValueError(f"sample_bulk.py ended with status {process.returncode}")


def kill(opt: argparse.Namespace, folder: Path) -> None:
    """Kill and go on, then hold all that is there against a run that nobody killed."""
    chance, counts = random.Random(opt.seed), []
    for outdir in (disturbed := folder / "disturbed", undisturbed := folder / "undisturbed"):
        while outdir is disturbed and len(counts) < opt.kills:
            process = start(opt, outdir)
            time.sleep(chance.uniform(0, 8))
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                counts.append(drawn(outdir))
        if status := start(opt, outdir).wait():
            raise ValueError(f"sample_bulk.py ended with status {status}")
    print("pictures at each kill:", *counts)
    one, other = (pictures(place) for place in (disturbed, undisturbed))
    print(f"missing: {len(other.keys() - one.keys())}, too many: {len(one.keys() - other.keys())}")
    print(f"half-written: {len(list(disturbed.rglob('*.part')))}")
    apart = max(levels(one[row], other[row]) for row in one.keys() & other.keys())
    print(f"{len(one)} pictures, at most {apart} grey levels from those of the undisturbed run")


def pictures(outdir: Path) -> dict[int, bytes]:
    """By the manifest: each row's PNG."""
    import tarfile

    found = {}
    for line in (outdir / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "member" in record:
            with tarfile.open(outdir / record["file"]) as tar:
                found[record["row"]] = tar.extractfile(record["member"]).read()
        else:
            found[record["row"]] = (outdir / record["file"]).read_bytes()
    return found


def levels(one: bytes, other: bytes) -> int:
    """How far two PNGs are apart."""
    import io

    from PIL import Image, ImageChops

    apart = ImageChops.difference(*(Image.open(io.BytesIO(png)).convert("RGB") for png in (one, other)))
    return max(high for _, high in apart.getextrema())


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    with tempfile.TemporaryDirectory(prefix="ldm-bulk-") as folder:
        if opt.kills:
            kill(opt, Path(folder))
        else:
            soak(opt, Path(folder))


if __name__ == "__main__":
    _cli.run(main, "measure_bulk")
