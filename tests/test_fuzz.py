"""The short form of scripts/fuzz.py: hostile files are read rightly or refused; and the fuzzer itself can fail."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import fuzz
import pytest
from fuzzing import guard
from fuzzing.cases import KINDS, make
from fuzzing.run import fuzz as run_fuzz
from fuzzing.run import keep_file, table

HERE = str(Path(__file__).parent)
COUNTS = {"folders": 60, "parquet": 60, "configs": 80, "settings": 80, "prompts": 80}  # of each kind; else 120
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are told by Linux alone")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the reading process is watched by means of POSIX")


@pytest.fixture(scope="module")
def tallies():
    """One process reads all of them: its imports take the most time."""
    pytest.importorskip("PIL")
    kinds = [kind for kind in KINDS if kind != "parquet" or importlib.util.find_spec("pyarrow")]
    found = {}
    for count in sorted(set(COUNTS.values()) | {120}):
        of_count = [kind for kind in kinds if COUNTS.get(kind, 120) == count]
        found |= run_fuzz(of_count, cases=count)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_read_rightly_or_refused_with_our_own_error(kind, tallies):
    if kind not in tallies:
        pytest.skip("pyarrow is not installed")
    tally = tallies[kind]
    assert tally.failures == [] and tally.cases == COUNTS.get(kind, 120)
    assert tally.refused > tally.cases // 4
    assert tally.read or kind == "pickles"  # else nothing would be known of what is still right


# --------------------------------------------------------------------------------------------- it notices what is wrong

BAD = {
    "runs": "ran",
    "imports": "ran",
    "evaluates": "ran",
    "unpickles": "ran",
    "connects": "ran",
    "writes": "ran",
    "reads_elsewhere": "ran",
    "hides_what_it_ran": "ran",
    "crashes": "crash",
    "exits": "crash",
    "hangs_in_c": "hang",
    "another_error": "KeyError",
    "a_kind_of_our_error": "UnicodeDecodeError",
    "says_no_name": "nameless",
    "answers_wrongly": "wrong",
    "accepts": "accepted",
}


@pytest.fixture(scope="module")
def failures():
    """What is said of each reader of _bad_readers; their cases are told apart by their seeds."""
    said = {}
    run_fuzz(
        ["_bad_readers"],
        cases=len(BAD) + 2,
        places=[HERE],
        patience=2,
        told=lambda tally, seed, answer: said.setdefault(seed, answer),
    )
    return said


@pytest.mark.parametrize("name", BAD)
def test_a_reader_that_does_it_is_caught(name, failures):
    assert failures[list(BAD).index(name)]["type"] == BAD[name]


def test_a_reader_that_does_nothing_wrong_is_not(failures):
    assert len(BAD) not in failures and len(BAD) + 1 not in failures


def test_what_was_run_is_told(failures):
    assert "os.system" in failures[0]["said"] and "SIGSEGV" in failures[list(BAD).index("crashes")]["said"]


def test_a_crash_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tally = run_fuzz(["_bad_readers"], cases=1, seed=list(BAD).index("crashes"), places=[HERE])["_bad_readers"]
    assert tally.failures == [(list(BAD).index("crashes"), "crash")] and not list(tmp_path.iterdir())


@LINUX
def test_a_reader_that_takes_much_memory_is_caught():
    said = []
    run_fuzz(["_greedy_reader"], cases=1, places=[HERE], told=lambda tally, seed, answer: said.append(answer))
    assert said[0]["type"] == "memory" and "for a file of 2 bytes" in said[0]["said"]


def test_a_reader_that_python_can_interrupt_is_late(monkeypatch, tmp_path):
    """In this process: the watch is not turned on, only the clock."""
    monkeypatch.setattr(guard.signal, "alarm", lambda seconds: seconds and guard._late())
    watch = object.__new__(guard.Guard)
    with pytest.raises(guard.Late, match="20 s"), guard.Guard.watching(watch):
        pass


# ------------------------------------------------------------------------------------------------ a case is found again


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"parquet"}))
def test_a_kind_and_a_seed_make_the_same_file(kind, tmp_path):
    pytest.importorskip("PIL")
    for seed in range(8):
        once, again = (make(kind, seed, _folder(tmp_path, f"{seed}{k}")).path for k in "ab")
        assert once.name == again.name and _bytes(once) == _bytes(again)


def test_other_seeds_make_other_files(tmp_path):
    made = {_bytes(make("checkpoints", seed, _folder(tmp_path, str(seed))).path)[0] for seed in range(20)}
    assert len(made) > 15


def test_the_failing_files_can_be_kept(tmp_path):
    path = keep_file("configs", 5, tmp_path)
    assert path.is_file() and path.parent == tmp_path / "configs-5"


def _folder(parent, name):
    (parent / name).mkdir()
    return parent / name


def _bytes(path):
    return [file.read_bytes() for file in sorted(path.rglob("*") if path.is_dir() else [path]) if file.is_file()]


# ----------------------------------------------------------------------------------------------------------- the script


def test_the_script_prints_a_table_and_ends_well(capsys):
    fuzz.main(["--only", "checkpoints", "--cases", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("| kind |") and lines[2].startswith("| checkpoints | 20 |") and lines[-1].endswith("| 0 |")
    )


def test_it_ends_badly_and_says_how_to_have_a_failure_again(monkeypatch, capsys, tmp_path):
    def one_fails(kinds, told, **_):
        tally = fuzz.Tally(kinds[0])
        answer = {"outcome": "failed", "type": "ran", "said": "os.system"}
        tally.add(7, answer)
        told(tally, 7, answer)
        return {kinds[0]: tally}

    monkeypatch.setattr(fuzz, "fuzz", one_fails)
    with pytest.raises(SystemExit, match="1 cases failed"):
        fuzz.main(["--only", "configs", "--keep", str(tmp_path)])
    said = capsys.readouterr().err
    assert "os.system" in said and "scripts/fuzz.py --only configs --seed 7 --cases 1" in said
    assert len(list(tmp_path.glob("configs-7/*"))) == 1


def test_the_table_adds_up(tallies):
    last = table(tallies).splitlines()[-1].split("|")
    total, read, refused, failed = (int(last[k]) for k in (2, 3, 4, 6))
    assert total == read + refused + failed == sum(tally.cases for tally in tallies.values())
