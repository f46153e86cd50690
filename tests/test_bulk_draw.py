"""Batches that do not fit, rows that overflow, models that fail, and the counts of a run."""

import pickle
import sys
import sysconfig

import pytest
from _bulk_process import maker, picture, rows

from ldm.bulk import ModelError, Ray, Row, Store, run
from ldm.bulk.cluster import GaveUp, _environment
from ldm.bulk.draw import Drawn, Failed, Worker
from ldm.bulk.job import HOPELESS

LIKE = [Row(k, k) for k in range(13)]


class Narrow:
    """Has room for so many rows at a time, and remembers what it was asked for."""

    def __init__(self, room, error=None):
        self.room, self.error, self.sizes = room, error or MemoryError(), []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return [picture(row) for row in batch]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail] can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_next_ones_begin_as_small(error):
    draw = Narrow(3, error)
    worker = Worker(lambda: draw)
    assert worker(LIKE) == [Drawn(row.index, picture(row)) for row in LIKE]
    assert draw.sizes == [13, 6, 3, 3, 3, 3, 1]
    draw.sizes.clear()
    worker(LIKE[:8])
    assert draw.sizes == [3, 3, 2]


def test_rows_of_another_size_begin_with_whole_batches():
    draw = Narrow(3)
    worker = Worker(lambda: draw)
    worker(LIKE[:4])
    draw.room = 8
    draw.sizes.clear()
    worker([Row(k, k, width=32) for k in range(8)])
    assert draw.sizes == [8]


def test_a_row_that_does_not_even_fit_alone_fails_and_the_others_go_on():
    def draw(batch):
        if any(row.index == 5 for row in batch):
            raise MemoryError("no room")
        return [picture(row) for row in batch]

    found = {result.index: result for result in Worker(lambda: draw)(LIKE)}
    assert found[5] == Failed(5, "memory", "MemoryError: no room")
    assert sorted(found) == list(range(13)) and all(isinstance(found[k], Drawn) for k in found if k != 5)


def test_rows_that_overflow_are_found_and_the_others_are_drawn():
    def draw(batch):
        if bad := [row.index for row in batch if row.index in (2, 3, 11)]:
            raise FloatingPointError(f"NaN for {bad}")
        return [picture(row) for row in batch]

    found = Worker(lambda: draw)(LIKE)
    assert [r.index for r in found if isinstance(r, Failed)] == [2, 3, 11]
    assert {r.kind for r in found if isinstance(r, Failed)} == {"numbers"} and len(found) == 13


def test_what_is_no_rows_fault_is_the_models():
    def draw(batch):
        raise RuntimeError("mat1 and mat2\nshapes cannot be multiplied")

    with pytest.raises(ModelError, match="the model failed: RuntimeError: mat1 and mat2 shapes"):
        Worker(lambda: draw)(LIKE)

    def none():
        raise FileNotFoundError("no such checkpoint")

    with pytest.raises(ModelError, match="cannot be loaded: FileNotFoundError: no such checkpoint"):
        Worker(none)


def test_a_drawer_that_forgets_a_row_is_not_believed():
    with pytest.raises(ModelError, match="gave 1 pictures for 13 rows"):
        Worker(lambda: lambda batch: [b""])(LIKE)


def test_an_error_of_the_model_can_be_sent_by_an_actor():
    assert str(pickle.loads(pickle.dumps(ModelError("why")))) == "why"


# ----------------------------------------------------------------------------------------------------------------- run


def test_a_model_that_fails_stops_the_run_and_keeps_what_there_is(tmp_path):
    calls = []

    def draw(batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise RuntimeError("device lost")
        return [picture(row) for row in batch]

    with Store(tmp_path, rows(20), {}) as store, pytest.raises(ModelError, match="device lost"):
        run(store, lambda: draw, batch_size=4, progress=False)
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 8
    with Store(tmp_path, rows(20), {}) as store:
        assert run(store, maker(), progress=False).drawn == 12


def test_where_every_row_fails_the_run_does_not_go_on_all_night(tmp_path):
    tried = []

    def draw(batch):
        tried.extend(batch)
        raise ValueError("the network's output overflowed")

    with (
        Store(tmp_path, rows(1000), {}) as store,
        pytest.raises(ModelError, match=r"the first \d+ rows failed, .* overflowed"),
    ):
        run(store, lambda: draw, batch_size=1, progress=False)
    assert len(tried) == HOPELESS


def test_large_rows_at_the_beginning_do_not_end_the_run(tmp_path):
    given = [Row(k, k, width=4096 if k < HOPELESS + 8 else 64) for k in range(HOPELESS + 20)]

    def draw(batch):
        if batch[0].width == 4096:
            raise MemoryError
        return [picture(row) for row in batch]

    with Store(tmp_path, given, {}) as store:
        summary = run(store, lambda: draw, batch_size=2, progress=False)
    assert (summary.drawn, summary.failed, summary.left) == (12, HOPELESS + 8, 0)


def test_rows_that_failed_before_are_all_tried_again_where_others_were_drawn(tmp_path):
    given, tried = [Row(k, k) for k in range(HOPELESS + 9)], []

    def draw(batch):
        tried.extend(row.index for row in batch if row.index)
        if any(row.index for row in batch):
            raise FloatingPointError
        return [picture(row) for row in batch]

    for there in (0, 1):
        tried.clear()
        with Store(tmp_path, given, {}) as store:
            summary = run(store, lambda: draw, batch_size=1, progress=False)
        assert (summary.there, summary.drawn, summary.failed) == (there, 1 - there, HOPELESS + 8)
        assert tried == list(range(1, HOPELESS + 9))


def test_where_rows_of_every_kind_fail_the_run_ends_as_well(tmp_path):
    given = [Row(k, k, scale=k / 2) for k in range(1000)]  # no two are alike

    def draw(batch):
        raise FloatingPointError("NaN")

    with Store(tmp_path, given, {}) as store, pytest.raises(ModelError, match=f"the first {HOPELESS} rows failed"):
        run(store, lambda: draw, batch_size=1, progress=False)


def test_progress_goes_to_a_log_as_well_with_the_rate_and_the_time_left(tmp_path, capsys):
    with Store(tmp_path, rows(100), {}) as store:
        run(store, maker(), batch_size=50)
    said = capsys.readouterr().err
    assert "100/100" in said and "picture/s" in said and said.count("\r") <= 3  # not a line a batch


def test_rows_that_the_check_refuses_are_not_drawn(tmp_path):
    def check(row):
        if row.index % 2:
            raise ValueError(f"{row.index} is odd")

    with Store(tmp_path, rows(6), {}) as store:
        summary = run(store, maker(), check=check, progress=False)
    assert (summary.rows, summary.drawn, summary.failed, summary.left) == (6, 3, 3, 0)
    assert "3 is odd" in (tmp_path / "errors.jsonl").read_text()


def test_nothing_left_to_do_loads_no_model(tmp_path):
    for _ in range(2):
        with Store(tmp_path, rows(3), {}) as store:
            run(store, maker(), progress=False)

    with Store(tmp_path, rows(3), {}) as store:
        assert run(store, lambda: pytest.fail("a model was loaded"), progress=False).there == 3


def test_actors_look_where_this_process_does_but_not_into_its_python(tmp_path, monkeypatch):
    """Where Python is in /usr, a checkout may be there as well."""
    mine, installed = tmp_path / "src" / "mine", tmp_path / "lib" / "site-packages"
    for place in (mine, installed):
        place.mkdir(parents=True)
    standard = sysconfig.get_path("stdlib")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(mine), str(installed), standard, str(tmp_path / "none")])
    assert _environment() == {"PYTHONPATH": str(mine)}


def test_without_ray_the_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with Store(tmp_path, rows(3), {}) as store, pytest.raises(ImportError, match=r"pip install 'ray\[data\]'"):
        run(store, maker(), engine=Ray(), progress=False)


class Faltering(Ray):
    """Ray gives up after each so many batches; `calls` has what it was asked for."""

    def _results(self, make_drawer, batches):
        self.calls.append(len(batches))
        for k, batch in enumerate(batches):
            if k == self.after:
                raise GaveUp("RayError: a node has gone")
            yield Worker(make_drawer)(batch)


@pytest.mark.parametrize(("after", "asked"), [(3, [8, 5, 2]), (8, [8])])
def test_where_ray_gives_up_what_is_left_is_begun_again(after, asked, monkeypatch):
    engine = Faltering()
    object.__setattr__(engine, "calls", [])
    object.__setattr__(engine, "after", after)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    batches = [LIKE[k : k + 1] for k in range(8)]
    found = [r.index for results in engine(lambda: Narrow(9), batches) for r in results]
    assert found == list(range(8)) and engine.calls == asked


def test_ray_that_gives_up_at_once_again_and_again_is_an_error(monkeypatch):
    engine = Faltering()
    object.__setattr__(engine, "calls", [])
    object.__setattr__(engine, "after", 0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ModelError, match="Ray gave up: RayError: a node has gone"):
        list(engine(lambda: Narrow(9), [LIKE]))
    assert engine.calls == [1, 1, 1]
