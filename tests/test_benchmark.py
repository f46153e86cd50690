"""scripts/benchmark.py at its smallest: all sections run and are written, and what is said follows from the times."""

import json
from statistics import median

import benchmark
import pytest
from bench import bulk, contest, imports, limits
from bench.contest import OURS, THEIRS, Contestant
from bench.processes import Crew, Worker, WorkerError
from bench.sections import SECTIONS
from bench.table import table

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

SMALLEST = ("--size", "tiny", "--rounds", "1", "--threads", "1", "--no-compile", "--device", "cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all sections; imports, which take processes of their own, are not waited for."""
    outdir = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "printed", lambda code: 0.01)
        patch.setattr(imports, "whole", lambda *arguments: 0.1)
        patch.setattr(bulk, "SETTINGS", {"one process": 0})  # a cluster is slow to begin
        benchmark.main([*SMALLEST, "--outdir", str(outdir)])
    assert (outdir / "benchmark.md").read_text(encoding="utf-8").startswith("# Benchmark")
    return json.loads((outdir / "benchmark.json").read_text(encoding="utf-8"))


def rows(results, name):
    return results["sections"][name]["rows"]


def answers(*times, **more):
    return [{"times": list(times), **more}]


def contestant(side, *times, final=True, how="", **more):
    return Contestant(side, how, "", {}, answers=answers(*times, **more) if times else [], final=final)


# --------------------------------------------------------------------------------------------------- a run of all of it


def test_every_section_has_rows_and_none_failed(results):
    assert list(results["sections"]) == list(SECTIONS)
    for name, section in results["sections"].items():
        assert section["failed"] is None and section["rows"], name


def test_both_sides_are_measured_in_every_section(results):
    for name in SECTIONS.keys() - {"bulk"}:
        sides = {e["side"] for row in rows(results, name) for e in row["entries"] if e["median"] is not None}
        assert {OURS, THEIRS} <= sides, name


def test_ratios_follow_from_the_medians_of_the_fastest(results):
    checked = 0
    for section in results["sections"].values():
        for row in section["rows"]:
            met = [e for e in row["entries"] if e["final"]]
            assert all(e["median"] == median(e["times"]) and e["q1"] <= e["median"] <= e["q3"] for e in met)
            best = {side: min([e["median"] for e in met if e["side"] == side], default=None) for side in (OURS, THEIRS)}
            if None not in best.values():
                assert row["ratio"] == best[THEIRS] / best[OURS]
                checked += 1
    assert checked > 10


def test_both_sides_compute_the_same(results):
    errors = [
        entry["error"]
        for name in ("unet", "vae", "text", "txt2img")
        for row in rows(results, name)
        for entry in row["entries"]
        if entry["side"] == OURS and entry["median"] is not None and row.get("dtype", "float32") == "float32"
    ]
    assert len(errors) >= 4 and max(errors) < 1e-3


def test_what_was_not_measured_says_why(results):
    compiled = [row for row in rows(results, "unet") if row["mode"] == "compiled"]
    assert compiled and all(not row["entries"] and row["not_measured"] for row in compiled)
    assert "not measured: --no-compile" in table(results)


def test_machine_threads_versions_and_dtypes_are_told(results):
    assert results["settings"]["threads"] == 1
    assert results["machine"]["cpu"] in table(results) and results["machine"]["versions"]["torch"] in table(results)
    assert {row["dtype"] for row in rows(results, "unet") if "dtype" in row} >= {"float32"}


def test_loading_counts_all_weights_once(results):
    sizes = {e["weights"] for row in rows(results, "load") for e in row["entries"] if e["side"] in (OURS, THEIRS)
             and e["median"] is not None and row["dtype"] == "float32"}  # fmt: skip
    assert len(sizes) == 1 and sizes.pop() > 1e6


# ------------------------------------------------------------------------------------------------------ when it fails


def test_a_section_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def fails(bench):
        yield contest.not_measured("a case", {}, "a reason")
        raise RuntimeError("no memory for it")

    monkeypatch.setitem(SECTIONS, "vae", ("Decoding", fails))
    monkeypatch.setitem(SECTIONS, "text", ("Text", lambda bench: [contest.not_measured("a text", {}, "another")]))
    with pytest.raises(SystemExit, match="vae failed"):
        benchmark.main([*SMALLEST, "--sections", "vae", "text", "--outdir", str(tmp_path)])
    results = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert results["sections"]["vae"]["failed"] == "RuntimeError: no memory for it"
    assert [row["case"] for row in rows(results, "vae")] == ["a case"]  # what there was is kept
    assert [row["case"] for row in rows(results, "text")] == ["a text"]
    assert "Failed: RuntimeError: no memory for it" in capsys.readouterr().out


def test_a_worker_answers_an_error_and_goes_on_and_its_end_is_told(tmp_path):
    worker = Worker(1, tmp_path / "log")
    try:
        with pytest.raises(WorkerError, match="no_such_task"):
            worker.ask(do="call", task="memory:no_such_task", options={})
        assert worker.ask(do="call", task="memory:bytes_of", options={"name": "nothing"}) == {"value": None}
        worker._process.kill()
        with pytest.raises(WorkerError, match="ended with status -9"):
            worker.ask(do="call", task="memory:bytes_of", options={"name": "nothing"})
    finally:
        worker.stop()


# -------------------------------------------------------------------------------------------------- heats and a final


class Played(Crew):
    """Its workers answer with the times that a task's options list, one list a round."""

    def __init__(self):
        self.order, self.stopped = [], []

    def worker(self, side, threads=None):
        return PlayedWorker(self)

    def done(self, worker, key=None):
        self.stopped.append(worker.name)


class PlayedWorker:
    def __init__(self, crew):
        self.crew = crew

    def ask(self, do, **request):
        if do == "setup":
            self.name, self.rounds = request["task"], iter(request["options"]["rounds"])
            return {}
        self.crew.order.append(self.name)
        answer = next(self.rounds)
        if isinstance(answer, str):
            raise WorkerError(answer)
        return {"times": [answer]}


def played(side, name, *rounds):
    return Contestant(side, name, name, {"rounds": rounds})


def test_the_fastest_setting_of_each_side_meets_and_the_sides_take_turns(tmp_path):
    crew, slow, fast, other = (
        Played(),
        played(OURS, "a", 9, 3),
        played(OURS, "b", 9, 2, 4, 6),
        played(THEIRS, "c", 9, 8, 8),
    )
    contest.contest(crew, [[slow, fast], [other]], {}, 2, tmp_path)
    assert crew.order == ["a", "a", "b", "b", "c", "b", "c", "b", "c"]
    assert (slow.final, fast.final, other.final) == (False, True, True)
    assert crew.stopped == ["a", "b", "c"]
    assert (slow.times, fast.times, other.times) == ([3], [4, 6], [8, 8])  # neither the warm-up nor the trial counts
    row = contest.row("case", {}, [slow, fast, other])
    assert row["ratio"] == 8 / 5 and fast.first == 9


def test_a_setting_that_fails_is_out_with_its_reason(tmp_path):
    crew, broken, plain, theirs = (
        Played(),
        played(OURS, "a", "no compiler"),
        played(OURS, "b", 1, 1, 1),
        played(THEIRS, "c", 1, 2),
    )
    contest.contest(crew, [[broken, plain], [theirs]], {}, 1, tmp_path)
    row = contest.row("case", {}, [broken, plain, theirs])
    assert [entry["not_measured"] for entry in row["entries"]] == ["no compiler", None, None]
    assert row["ratio"] == 2


def test_a_side_that_fails_in_the_final_leaves_no_ratio(tmp_path):
    ours, theirs = played(OURS, "a", 1, 1, "killed"), played(THEIRS, "c", 1, 1, 1)
    contest.contest(Played(), [[ours], [theirs]], {}, 2, tmp_path)
    row = contest.row("case", {}, [ours, theirs])
    assert row["ratio"] is None and row["entries"][0]["not_measured"] == "killed"


# ------------------------------------------------------------------------------------------------------------- limits


def verdicts(**sections):
    found = limits.check({name: {"rows": rows} for name, rows in sections.items()})
    return {x["what"]: (x["found"], x["verdict"]) for x in found}


def test_nothing_is_met_or_missed_that_was_not_measured():
    assert {verdict for _, verdict in verdicts().values()} == {"not measured"}


@pytest.mark.parametrize("theirs, verdict", [(1.2, "met"), (1.1, "not met")])
def test_a_network_is_held_against_its_limits(theirs, verdict):
    entries = [contestant(OURS, 1.0, peak=79, peak_of="round"), contestant(THEIRS, theirs, peak=100, peak_of="round")]
    found = verdicts(unet=[contest.row("", {"mode": "eager", "dtype": "float32"}, entries)])
    assert found["U-Net, eager, float32: diffusers' best, times ours"] == (theirs, verdict)
    assert found["U-Net, eager, float32: peak memory, of diffusers'"] == (0.79, "met")
    assert found["U-Net, eager, bfloat16: diffusers' best, times ours"] == (None, "not measured")


@pytest.mark.parametrize(
    "bare, what, verdict",
    [(1e-5, "times the bare arithmetic", "not met"), (2e-5, "times the bare arithmetic", "met")],
)
def test_overhead_beyond_the_limit_in_time_may_still_be_near_the_floor(bare, what, verdict):
    entries = [contestant(OURS, 5e-5, how="seeds"), contestant("bare arithmetic", bare)]
    found = verdicts(overhead=[contest.row("", {"batch": 1, "guidance": 7.5}, entries)])
    assert found[f"overhead of a step, {what}"][1] == verdict


def test_imports_are_timed_by_the_program_that_imports():
    assert imports.printed("print('a line before'); print(0.25)") == 0.25
    with pytest.raises(RuntimeError, match="No module named 'no_such_module'"):
        imports.printed("import no_such_module")
    assert imports.whole("-c", "pass") > 0
