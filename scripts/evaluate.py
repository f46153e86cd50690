"""What DDIM claims (Song et al. 2021), measured: quality over steps and noise, time, consistency, guidance.

    python scripts/evaluate.py --parts mixture                                  # seconds; the denoiser is a formula
    python scripts/evaluate.py --parts steps --scale 1 --steps 5 10 20 50 100   # the bundled model, unguided
    python scripts/evaluate.py                                                  # everything: an hour on two cores

Prints tables, and keeps them with all numbers, and with a plot where matplotlib is installed, in --outdir, where what
other runs measured stays. docs/evaluation.md says what they mean.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _cli
import _model
import _session

PARTS = ("mixture", "steps", "spacing", "scale", "noise")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = _cli.number(int, 1, 1000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="(default: all)")
    parser.add_argument("--steps", type=count, nargs="+", default=[5, 10, 20, 50, 100], metavar="S")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.5, 2, 3, 5, 7.5], metavar="SCALE")
    parser.add_argument("--n", type=_cli.number(int, 40, 10_000), default=200,
                        help="pictures of each setting (default: 200)")  # fmt: skip
    parser.add_argument("--scale", type=float, help="of the tables over steps (default: the config's)")
    parser.add_argument("--points", type=_cli.number(int, 100, 10**6), default=20_000, help="of the mixture")
    parser.add_argument("--seed", type=_cli.number(int, 0, 2**32 - 1), default=0,
                        help="of the first picture; the next ones count on (default: 0)")  # fmt: skip
    parser.add_argument("--batch", type=_cli.number(int, 1, 1024), default=50)
    parser.add_argument("--outdir", default="outputs/evaluation", help="(default: %(default)s)")
    parser.set_defaults(config=None, ckpt=None, ema=False, device="auto", precision=None, overrides=[])
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    outdir = Path(opt.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    kept = outdir / "evaluation.json"
    earlier = _earlier(kept)
    found: dict[str, list[dict[str, Any]]] = {}
    for title, row in rows(opt, sorted(set(opt.steps))):
        found.setdefault(title, []).append(row)
        kept.write_text(json.dumps(earlier | found, indent=1, ensure_ascii=False), encoding="utf-8")
    for title, table in found.items():
        print(f"\n{title}\n\n{markdown(table)}")
    plot(earlier | found, outdir / "evaluation.png")
    print(f"\n{outdir}")


def _earlier(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of earlier runs, which stay where this one does not measure them again."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not what an earlier run wrote; move it away ({error})") from error


def rows(opt: argparse.Namespace, steps: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title of its table, row), each as soon as it is measured."""
    if "mixture" in opt.parts:
        from evaluation import mixture

        of = f"distance ×1000 ({mixture.floor(opt.points):.1f} between fresh points)"
        for row in mixture.by_steps(sorted({*steps, 1000}), opt.points):
            yield f"Mixture: {of}", row
        for row in mixture.by_spacing(steps, opt.points):
            yield f"Mixture, spacings: {of}", row
    if {*PARTS[1:]} & {*opt.parts}:
        import torch
        from evaluation import scenes

        config, checkpoint, _ = _model.open_model(opt)
        model, sampler, options = _session.measured(config, checkpoint, opt)
        scale = options["unconditional_guidance_scale"] if opt.scale is None else opt.scale
        with torch.no_grad(), model.ema_scope():
            made = scenes.Scenes(model, sampler, options, opt.n, opt.batch, opt.seed)
            real = made.real() if {"steps", "spacing"} & {*opt.parts} else [0]
            seeds = f", seeds from {opt.seed}" * bool(opt.seed)
            chance = f"{min(real):.0f} to {max(real):.0f}: real scenes"
            of = f"distance ×1000, scale {scale:g}, {opt.n} pictures{seeds} ({chance})"
            if "steps" in opt.parts:
                for distances, captions in scenes.by_steps(made, steps, scale):
                    yield f"Scenes: {of}", distances
                    yield f"Scenes: captions right in every part, %, scale {scale:g}{seeds}", captions
            if "spacing" in opt.parts:
                for row in scenes.by_spacing(made, [s for s in steps if s <= 50], scale):
                    yield f"Scenes, spacings: {of}", row
            if "scale" in opt.parts:
                for row in scenes.by_scale(made, opt.scales, 20):
                    yield f"Guidance: eta 0, 20 steps{seeds}", row
            if "noise" in opt.parts:
                for row in scenes.alike(made, steps):
                    yield f"The same noise: eta 0{seeds}", row


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_number(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Of the tables over S with a column for each noise, or for each spacing and noise."""
    try:
        import matplotlib
    except ImportError:
        return
    shown = {title: table for title, table in results.items() if len(table[0]) > 4}
    if not shown:
        return
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    wide, high = min(3, len(shown)), -(-len(shown) // 3)
    figure, axes = plt.subplots(high, wide, figsize=(4.4 * wide, 3.4 * high), layout="constrained", squeeze=False)
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    for ax, (title, table) in zip(axes.flat, shown.items(), strict=False):
        _panel(ax, title, table)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(ax: Any, title: str, table: list[dict[str, Any]]) -> None:
    """A line for each column; the floor that the title tells is dotted."""
    from matplotlib.ticker import LogLocator, NullLocator

    steps = [row["S"] for row in table]
    for name in list(table[0])[1:]:
        ax.plot(steps, [row[name] for row in table], "o-", label=f"η = {name}" if len(name) < 4 else name, markersize=3)
    if floor := re.search(r"\(([\d.]+)(?: to ([\d.]+))?:? (.*)\)", title):
        low, high = float(floor[1]), float(floor[2] or floor[1])
        ax.axhspan(low, high, color="grey", alpha=0.25, label=floor[3])
        ax.axhline(low, color="grey", linestyle=":")
    ax.set(xscale="log", xlabel="steps", xticks=steps, xticklabels=steps)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title(title.partition(" (")[0], fontsize=9)
    if "distance" in title:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    ax.legend(fontsize=7)


if __name__ == "__main__":
    _cli.run(main, "evaluate")
