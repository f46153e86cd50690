"""What scripts/score_inpainting.py asks for and how it counts; the bundled model on a few of its scenes."""

import numpy as np
import pytest
import score_inpainting
from PIL import Image

from ldm.data.checker import read_things, score
from ldm.data.shapes import Shapes, changed, draw, is_test_caption


@pytest.fixture(scope="module")
def todo():
    return score_inpainting.tasks(40)


def test_another_thing_is_asked_for_where_the_hole_is_and_all_else_stays(todo):
    scenes = Shapes(score_inpainting.SEED, test=True)
    for i, task in enumerate(todo):
        before = scenes.describe(i)
        for k, (old, new) in enumerate(zip(before.things, task.wanted.things, strict=True)):
            assert (old == new) == (k != task.index) and old.size == new.size
        assert (before.layout, before.place, before.background) == (
            task.wanted.layout, task.wanted.place, task.wanted.background,
        )  # fmt: skip
        assert is_test_caption(task.wanted.caption)


def test_the_hole_covers_its_thing_and_no_other(todo):
    scenes = Shapes(score_inpainting.SEED, test=True)
    for i, task in enumerate(todo):
        covered = task.picture.copy()
        covered[task.hole] = 205
        assert len(read_things(covered)) <= len(read_things(task.picture)) - 1
        assert 0.01 < task.hole.mean() < 0.35 and score(task.picture, scenes.describe(i))["count"]


def test_another_seed_is_other_scenes_and_one_seed_always_the_same():
    fresh, again = (score_inpainting.tasks(3, 77001) for _ in range(2))
    for i, (task, same) in enumerate(zip(fresh, again, strict=True)):
        np.testing.assert_array_equal(task.picture, Shapes(77001, test=True)[i][0])
        np.testing.assert_array_equal(task.hole, same.hole)
        assert task.wanted == same.wanted != score_inpainting.tasks(3)[i].wanted


def test_the_scenes_are_those_of_the_flag(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(score_inpainting, "fill", lambda model, sampler, part, *_: asked.extend(part) or [None])
    monkeypatch.setattr(score_inpainting, "scored", lambda *_: {"in the hole": True, "every part": True})
    for flags, seed in ((["--scenes", "77001"], 77001), ([], 2022)):
        score_inpainting.main(["--n", "1", *flags, "--device", "cpu"])
        np.testing.assert_array_equal(asked.pop().picture, Shapes(seed, test=True)[0][0])


def test_a_picture_drawn_as_asked_is_right_and_the_old_one_is_wrong(todo):
    rights = []
    for i, task in enumerate(todo):
        drawn = draw(task.wanted, np.random.default_rng((score_inpainting.SEED, i)))
        asked = np.where(task.hole[..., None], drawn, task.picture)
        rights.append(score_inpainting.scored(task, asked)["in the hole"])
        assert not score_inpainting.scored(task, task.picture)["in the hole"]
    assert np.mean(rights) > 0.5  # where the new drawing stands where the old one stood


def test_a_kept_pixel_that_has_changed_is_an_error(todo):
    spoilt = todo[0].picture.copy()
    y, x = np.argwhere(~todo[0].hole)[0]
    spoilt[y, x] ^= 1
    with pytest.raises(RuntimeError, match="a pixel that was to be kept has changed"):
        score_inpainting.scored(todo[0], spoilt)


def test_the_table_counts_by_scenes_and_over_all(todo):
    scores = [{"in the hole": i % 2 == 0, "every part": False} for i in range(len(todo))]
    rows = score_inpainting.table(todo, scores)
    assert rows[-1] == {"scenes": "all", "n": 40, "in the hole": 50.0, "every part": 0.0}
    assert sum(row["n"] for row in rows[:-1]) == 40


def test_a_change_is_never_none():
    rng = np.random.default_rng(0)
    for i in range(50):
        description = Shapes(3).describe(i)
        new = changed(description, 0, rng)
        assert new.things[0] != description.things[0] and not is_test_caption(new.caption)


def test_the_script_prints_its_table_and_saves_its_sheet(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    score_inpainting.main(["--n", "4", "--ddim_steps", "10", "--sheet", str(sheet), "--device", "cpu"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "| scenes | n | in the hole | every part |" and said[-1] == str(sheet)
    (total,) = [line for line in said if line.startswith("| all ")]
    assert float(total.split("|")[3].strip(" %")) >= 50
    assert Image.open(sheet).width > 800


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "--sheet folder is a folder; give a file's name in it, such as folder/sheet.png"),
        ("folder.png", "--sheet folder.png is a folder; give a file's name in it, such as folder.png/sheet.png"),
        ("sheet", "--sheet sheet is no PNG's name; give one that ends in .png, such as sheet.png"),
        ("sheet.jpg", "--sheet sheet.jpg is no PNG's name; give one that ends in .png, such as sheet.png"),
        ("none/sheet.png", "--sheet: no file can be made in 'none' (No such file or directory); give another folder"),
    ],
)
def test_a_sheet_that_cannot_be_saved_is_an_error_before_a_model_is_loaded(name, said, run, no_model, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    status, _, errors = run("--sheet", name, model=(), script=score_inpainting)
    assert status == 2 and errors == [f"score_inpainting: error: {said}"]
