"""What the benchmark is to show ("done when"), beside what it showed in this run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.contest import OURS, THEIRS, fastest

_NOTHING = {"entries": [], "ratio": None, "memory_ratio": None}


def check(sections: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{"what", "limit", "found": a number or None, "verdict": "met", "not met" or "not measured"}]."""
    found = [*_overhead(sections), *_unet(sections), *_load(sections), *_import(sections)]
    return [
        {"what": what, "limit": f"{sign} {limit:g}{unit}", "found": value, "verdict": _verdict(value, sign, limit)}
        for what, value, sign, limit, unit in found
    ]


def _verdict(value: float | None, sign: str, limit: float) -> str:
    if value is None:
        return "not measured"
    return "met" if (value <= limit if sign == "≤" else value >= limit) else "not met"


Found = Iterator[tuple[str, float | None, str, float, str]]


def _row(sections: Mapping, name: str, **key: Any) -> Mapping[str, Any]:
    rows = sections.get(name, {}).get("rows", [])
    return next((row for row in rows if all(row.get(k) == v for k, v in key.items())), _NOTHING)


def _of(row: Mapping, side: str, how: str = "", name: str = "median") -> float | None:
    """A number of the entry of this side whose setting begins so."""
    found = [e for e in row["entries"] if e["side"] == side and e["how"].startswith(how)]
    return found[0].get(name) if found else None


def over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _overhead(sections: Mapping) -> Found:
    row = _row(sections, "overhead", batch=1, guidance=7.5)
    seeds, compat = _of(row, OURS, "seeds"), _of(row, OURS, "CompVis")
    micro = None if seeds is None else seeds * 1e6
    bare = over(seeds, _of(row, "bare arithmetic"))
    if micro is not None and bare is not None and micro > 30:  # either will do
        yield "overhead of a step, times the bare arithmetic", bare, "≤", 3, "×"
    else:
        yield "overhead of a step, seeds, batch 1", micro, "≤", 30, " µs"
    yield "diffusers' scheduler loop, times ours", over(_of(row, THEIRS), seeds), "≥", 3, "×"
    name = "with CompVis' noise: of the original's operations"
    yield name, over(compat, _of(row, "CompVis-like")), "≤", 1, "×"


def _unet(sections: Mapping) -> Found:
    for mode, limit in (("eager", 1.15), ("compiled", 1.05)):
        for dtype in ("float32", "bfloat16"):
            row = _row(sections, "unet", mode=mode, dtype=dtype)
            yield f"U-Net, {mode}, {dtype}: diffusers' best, times ours", row["ratio"], "≥", limit, "×"
            yield f"U-Net, {mode}, {dtype}: peak memory, of diffusers'", row["memory_ratio"], "≤", 0.8, "×"
        best = fastest(_row(sections, "unet", mode=mode, dtype="float32")["entries"], OURS)
        yield f"U-Net, {mode}, float32: relative error", best and best["error"], "≤", 1e-3, ""
    row = _row(sections, "defaults")
    yield "U-Net, no flags: diffusers', times ours", row["ratio"], "≥", 3.5, "×"
    like = over(_of(row, "CompVis-like"), _of(row, OURS))
    yield "U-Net, no flags: CompVis-like, times ours", like, "≥", 8, "×"


def _load(sections: Mapping) -> Found:
    how = "load_model, .ckpt"
    for dtype in ("float32", "bfloat16"):
        row = _row(sections, "load", dtype=dtype, cold=False)
        reading = _of(row, "reading the file")
        yield f"load .ckpt as {dtype}: of reading the file", over(_of(row, OURS, how), reading), "≤", 1.3, "×"
        weights = _of(row, OURS, how, "weights")
        grown = over(_of(row, OURS, how, "grown"), weights)
        yield f"load .ckpt as {dtype}: peak memory, of the weights", grown, "≤", 1.3, "×"
        held = over(_of(row, OURS, how, "grown_anonymous"), weights)
        yield f"load .ckpt as {dtype}: the same without the file's own pages", held, "≤", 1.3, "×"


def _import(sections: Mapping) -> Found:
    sampler = _of(_row(sections, "import", what="sampler"), OURS)
    yield "import ldm.sampling, after torch", sampler and sampler * 1e3, "≤", 60, " ms"
    yield "txt2img.py --help", _of(_row(sections, "import", what="help"), OURS), "≤", 0.5, " s"
