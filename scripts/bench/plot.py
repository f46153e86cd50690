"""One picture of a run: how many times as long diffusers takes, and how both grow. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contest import OURS, THEIRS, fastest

_COLOURS = {OURS: "#1b6ca8", THEIRS: "#d1495b", "bare arithmetic": "#8a8a8a", "CompVis-like": "#c9a227"}
_AXES = {"latents": "side of the latents", "batch": "pictures at once", "steps": "steps (null model)"}


def plot(results: Mapping[str, Any], path: Path) -> str | None:
    """Draw it; returns why there is no picture, or None."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed"
    bars = [(name, row) for name, s in results["sections"].items() for row in s["rows"] if _is_bar(name, row)]
    grown = _by_axis(results["sections"].get("growth", {}).get("rows", []))
    if not bars and not grown:
        return "nothing was measured on both sides"
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    high = max(0.34 * len(bars) + 1.6, 2.8 * len(grown) + 0.8, 3.5)
    figure = plt.figure(figsize=(13 if grown else 9, high), layout="constrained")
    left, *right = (
        figure.subfigures(1, 2, width_ratios=(3, 2)) if grown and bars else (figure, figure)[: 1 + bool(grown)]
    )
    if bars:
        _draw_bars(left.subplots(), bars)
    for axes, (axis, rows) in zip(_column(right[0], len(grown)) if grown else (), grown.items(), strict=True):
        _draw_growth(axes, axis, rows)
    m, s = results["machine"], results["settings"]
    figure.suptitle(
        f"{m['gpu'] or m['cpu']}, {s['threads']} threads, torch {m['versions']['torch']}, diffusers"
        f" {m['versions']['diffusers']}, size {s['size']}", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return None


def _is_bar(section: str, row: Mapping[str, Any]) -> bool:
    return row["ratio"] is not None and section != "growth"


def _by_axis(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The rows of growth that have anything to show, by what grows."""
    shown = [row for row in rows if any(entry["final"] for entry in row["entries"])]
    return {axis: found for axis in _AXES if (found := [row for row in shown if row["axis"] == axis])}


def _column(figure, count: int):
    axes = figure.subplots(count, 1)
    return [axes] if count == 1 else list(axes)


def _draw_bars(axes, bars: Sequence[tuple[str, Mapping]]) -> None:
    names, values = [f"{section}: {row['case']}" for section, row in bars], [row["ratio"] for _, row in bars]
    places = range(len(bars))
    axes.barh(places, [v - 1 for v in values], left=1, color=[_COLOURS[OURS if v >= 1 else THEIRS] for v in values])
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    low, high = min([*values, 1]), max([*values, 1])
    axes.set_xlim(low / 1.25, high * 1.6)
    for place, value in zip(places, values, strict=True):
        axes.annotate(f"{value:.2f}×", (max(value, 1), place), (4, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if low / 1.25 <= t <= high * 1.6]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("diffusers' time over ours, best settings of both (right of 1: ours is faster)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_growth(axes, axis: str, rows: Sequence[Mapping]) -> None:
    sides = dict.fromkeys(entry["side"] for row in rows for entry in row["entries"] if entry["final"])
    for side in sides:
        points = [(row["value"], best["median"]) for row in rows if (best := fastest(row["entries"], side))]
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=_COLOURS.get(side), label=side, markersize=4)
    axes.set_xlabel(_AXES[axis], fontsize=9)
    axes.set_ylabel("seconds", fontsize=9)
    axes.set_xticks([row["value"] for row in rows])
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
