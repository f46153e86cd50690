"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_HEAD = ("case", "who", "setting", "median", "quartiles", "times ours", "peak memory", "relative error")
_NOTE = """\
Medians; "times ours" is a median over the median of ours. Rows marked † tried out once and were not the fastest of
their side. "Relative error" is against diffusers' first setting, eager, in the same dtype."""


def table(results: Mapping[str, Any]) -> str:
    """The whole report, of what has been measured so far."""
    parts = [head(results)]
    for section in results["sections"].values():
        parts.append(f"## {section['title']}\n")
        if section["failed"]:
            parts.append(f"Failed: {section['failed']}\n")
        if section["rows"]:
            parts.append(_markdown(_HEAD, [line for row in section["rows"] for line in lines(row)]))
    parts.append("## What is to be shown\n")
    cells = [(x["what"], x["limit"], _found(x["found"]), x["verdict"]) for x in results["limits"]]
    parts.append(_markdown(("what", "limit", "found", "verdict"), cells))
    return "\n".join(parts)


def head(results: Mapping[str, Any]) -> str:
    m, s = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in m["versions"].items())
    memory = "" if m["memory_bytes"] is None else f", {m['memory_bytes'] / 2**30:.0f} GiB"
    gpu = m["gpu"] or "not measured (there is none, or --device says otherwise)"
    return (
        f"# Benchmark\n\n{m['cpu']}, {m['cores']} cores{memory}, {m['system']}; GPU: {gpu}.\n"
        f"Python {m['python']}, {versions}. Device {m['device']}, {s['threads']} threads; the dtype that is fast here:"
        f" {m['auto_dtype']}.\nSize {s['size']}, {s['rounds']} rounds, {results['date']}.\n\n{_NOTE}\n"
    )


def lines(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row's entries, a line each."""
    if not row["entries"]:
        yield row["case"], "", "", f"not measured: {row['not_measured']}", "", "", "", ""
    base = next((e["median"] for e in row["entries"] if e["side"] == "ours" and e["final"]), None)
    for i, entry in enumerate(row["entries"]):
        case = "" if i else row["case"]
        if entry["median"] is None:
            yield case, entry["side"], entry["how"], f"not measured: {entry['not_measured']}", "", "", "", ""
            continue
        start = "" if "start" not in entry else f" (and {seconds(entry['start'])} a run)"
        dagger = "" if entry["final"] else " †"
        yield (
            case, entry["side"], entry["how"] + dagger, seconds(entry["median"]) + start,
            f"{seconds(entry['q1'])} – {seconds(entry['q3'])}",
            f"{entry['median'] / base:.2f}×" if base else "",
            _memory(entry),
            "" if entry.get("error") is None else f"{entry['error']:.1e}",
        )  # fmt: skip


def _memory(entry: Mapping[str, Any]) -> str:
    if entry.get("grown") is not None:
        of = f" ({entry['grown'] / entry['weights']:.2f}× the weights)" if entry.get("weights") else ""
        return f"{_mib(entry['grown'])}{of}, no file's: {_mib(entry['grown_anonymous'])}"
    if entry.get("peak") is None:
        return "not measured" if "peak_of" in entry else ""
    return _mib(entry["peak"]) + (" (so far)" if entry["peak_of"] == "process" else "")


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def seconds(value: float) -> str:
    """With a unit that suits."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if abs(value) * factor >= 1 or unit == "µs":
            return f"{value * factor:.3g} {unit}"
    raise AssertionError


def _found(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    made = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |" for cells in made) + "\n"
