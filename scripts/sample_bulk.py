"""Very many pictures, overnight and on many GPUs: whatever dies, what was finished is there once, and a run goes on.

    python scripts/sample_bulk.py --from-file prompts.jsonl --outdir out
    python scripts/sample_bulk.py --from-file prompts.csv --format tar --engine ray --workers 8 --num_gpus 1
    python scripts/sample_bulk.py --ckpt celeba.ckpt -n 50000 --batch_size 32

Prompts are lines of a .txt, or rows of a .csv, .jsonl or .parquet, of which the columns prompt, negative_prompt, seed,
steps, scale, width and height are known; others are handed on to the manifest. A row's picture depends on the row and
the settings alone. The same command goes on where the last run ended, and tries again what it could not draw. It ends
with status 0 where all is drawn, 1 where rows are in errors.jsonl, 130 where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import _cli
import _config

OUTDIR = "outputs/bulk"
SHARD = 1000


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("sample_bulk", doc=__doc__)
    _cli.add_prompt_flags(parser, "nothing", file="draw each row of this .txt, .csv, .jsonl or .parquet once")
    group = parser.add_argument_group("what is drawn without --from-file")
    group.add_argument("-n", dest="count", metavar="N", type=_cli.number(int, 1, 10**7), help="how many (default: 16)")
    group.add_argument(
        "--classes", type=_cli.number(int, 0), nargs="+", metavar="K",
        help="of a model of classes: their numbers, which the pictures take in turn (default: all that it knows)",
    )  # fmt: skip
    group = parser.add_argument_group("sampling, of rows that do not say otherwise")
    seeds = "a row whose seed is not given gets one of this seed and its number"
    _cli.add_sampler_flags(group, scale=7.5, seeds=seeds)
    group = parser.add_argument_group("who draws")
    group.add_argument("--engine", choices=("local", "ray"), default="local",
                       help="this process, or actors of a Ray cluster (default: local)")  # fmt: skip
    group.add_argument("--batch_size", metavar="N", type=_cli.number(int, 1, 1024), default=8,
                       help="rows of like size, steps and scale at a time (default: 8)")  # fmt: skip
    group.add_argument("--workers", metavar="N", type=_cli.number(int, 1, 10_000), default=1,
                       help="ray: how many actors have the model (default: 1)")  # fmt: skip
    group.add_argument("--num_gpus", metavar="N", type=_cli.number(float, 0, 64), default=0,
                       help="ray: GPUs of each (default: 0)")  # fmt: skip
    group.add_argument("--num_cpus", metavar="N", type=_cli.number(float, 0, 1024), default=1,
                       help="ray: cores, and so threads, of each (default: 1)")  # fmt: skip
    group.add_argument(
        "--address", type=_cli.a_path, help="ray: of a running cluster, or auto (default: one for this run)"
    )
    _cli.add_size_flags(parser)
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, OUTDIR, grid=False, json=False)
    group = parser.add_argument_group("how it is written")
    group.add_argument("--format", choices=("png", "tar"), default="png",
                       help="single files, or tar shards for webdataset (default: png)")  # fmt: skip
    group.add_argument("--shard_size", metavar="N", type=_cli.number(int, 1, 10**6), default=SHARD,
                       help=f"rows of a shard (default: {SHARD})")  # fmt: skip
    group.add_argument("--manifest", choices=("jsonl", "parquet"), default="jsonl", help="(default: jsonl)")
    group.add_argument("--overwrite", action="store_true", help="delete what an earlier job left in OUTDIR")
    parser.set_defaults(n_iter=1, n_samples=1, fixed_code=False)  # what other scripts have flags for
    return parser.parse_intermixed_args(argv)


def check(opt: argparse.Namespace) -> None:
    """ValueError for flags that contradict each other, a warning for one without effect."""
    from ldm.bulk.store import files_of

    if not opt.outdir:
        raise ValueError("--outdir is empty; give a folder, or leave the flag out")
    others = {"-n": opt.count, "--classes": opt.classes and " ".join(map(str, opt.classes))}
    for flag, value in others.items():
        if opt.from_file is not None and value is not None:
            raise ValueError(f"{flag} {value}: the rows of --from-file are drawn, each once; leave one of both out")
    if opt.prompt is not None and opt.classes:
        raise ValueError(f"--prompt {opt.prompt} and --classes both say what to draw; leave one out")
    if opt.overwrite and opt.from_file and any(map(partial(_is_below, opt.from_file), files_of(opt.outdir))):
        raise ValueError(f"--overwrite would delete --from-file {opt.from_file}; copy it to another folder")
    if opt.format == "png" and opt.shard_size != SHARD:
        warnings.warn("--shard_size has no effect without --format tar", stacklevel=2)


def _is_below(path: str, place: Path) -> bool:
    return Path(path).resolve().is_relative_to(place.resolve())


def engine(opt: argparse.Namespace):
    from ldm.bulk import Ray, local

    if opt.engine == "local":
        if opt.address or opt.workers != 1 or opt.num_gpus or opt.num_cpus != 1:
            raise ValueError("--workers, --num_gpus, --num_cpus and --address are for --engine ray; add it")
        return local
    return Ray(opt.workers, num_cpus=opt.num_cpus, num_gpus=opt.num_gpus, address=opt.address)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    check(opt)
    spread = engine(opt)
    import _bulk

    from ldm.bulk import Store, run

    session = _bulk.opened(opt)
    shape = _config.latent_shape(session.config, opt.H, opt.W, opt.C, opt.f)
    rows = _bulk.rows(opt, session)
    made = {"format": opt.format, "shard_size": opt.shard_size, "manifest": opt.manifest, "overwrite": opt.overwrite}
    settings = _bulk.settings(opt, session, shape)
    with Store(opt.outdir, rows, settings, **made) as store:
        can, draw = _bulk.checker(opt, session), _bulk.Drawing(opt, settings["model_sha256"])
        summary = run(store, draw, batch_size=opt.batch_size, engine=spread, check=can)
    tell(summary, opt)


def tell(summary, opt: argparse.Namespace) -> None:
    """The last line, and the exit status."""
    counts = [f"{summary.drawn} pictures drawn", f"{summary.there} there before", f"{summary.failed} failed"]
    if summary.left:
        counts.append(f"{summary.left} left")
    failed = f"; {opt.outdir}/errors.jsonl says why" if summary.failed else ""
    again = f"; the same command{' without --overwrite' * opt.overwrite} goes on" if summary.left else ""
    print(f"{summary.rows} rows: {', '.join(counts)}: {summary.manifest}{failed}{again}")
    if summary.left or summary.failed:
        sys.exit(130 if summary.left else 1)


if __name__ == "__main__":
    _cli.run(main, "sample_bulk")
