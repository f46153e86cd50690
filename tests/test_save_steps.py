"""--save_steps and --save_json: the way of a picture, and its settings beside it."""

import json
from pathlib import Path

import img2img
import inpaint
import numpy as np
import pytest
from _trajectory import Trajectory
from PIL import Image, ImageSequence

from ldm.image import read_settings

ONE = ("--n_iter", "1", "--n_samples", "2", "--ddim_steps", "6", "--device", "cpu")


def frames(path):
    return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(Image.open(path))]


def enlarged(path, like):
    """A picture as the animation shows it."""
    return np.asarray(Image.open(path).resize(like.shape[1::-1], Image.Resampling.NEAREST)).astype(int)


@pytest.fixture
def scene(tmp_path):
    chance = np.random.default_rng(0)
    Image.fromarray(chance.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(tmp_path / "scene.png")
    mask = np.zeros((16, 20), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(mask).save(tmp_path / "hole.png")


@pytest.mark.parametrize(
    ("script", "flags"), [(None, []), (img2img, ["--init-img", "scene.png", "--strength", "0.99"])]
)
def test_each_picture_has_a_sheet_and_an_animation_that_ends_with_it(script, flags, run, scene):
    more = {"script": script} if script else {}
    status, said, _ = run(*flags, *ONE, "--save_steps", 4, "--outdir", "out", **more)
    assert status == 0 and "their steps in out/steps" in said[-1]
    saved = sorted(Path("out/samples").glob("*.png"))
    assert [p.name for p in sorted(Path("out/steps").iterdir())] == [
        f"0000{k}.{s}" for k in (0, 1) for s in ("gif", "png")
    ]
    for path in saved:
        looks = frames(f"out/steps/{path.stem}.gif")
        assert len(looks) == 4
        assert np.abs(looks[-1] - enlarged(path, looks[-1])).mean() < 4  # GIF has 256 colours
        assert np.abs(looks[0] - looks[-1]).mean() > 4  # and it began elsewhere


def test_what_is_known_stays_in_every_look_at_a_filled_picture(run, scene):
    flags = ["--init-img", "scene.png", "--mask", "hole.png", *ONE, "--n_samples", 1, "--save_steps", 3]
    assert run(*flags, "--outdir", "out", script=inpaint)[0] == 0
    looks = frames("out/steps/scene.gif")
    known = enlarged("scene.png", looks[0])
    edge = looks[0].shape[0] // 16 * 4
    assert all(np.abs(look[:edge] - known[:edge]).mean() < 8 for look in looks) and len(looks) == 3


def test_looks_are_even_and_no_more_than_there_are():
    way = Trajectory()
    for k in range(50):
        way(k, k)
    assert [label for label, _ in way.frames(5, lambda x0: x0)] == [f"step {k} of 50" for k in (1, 13, 25, 38, 50)]
    assert [x0 for _, x0 in way.frames(999, lambda x0: x0)] == list(range(50))


def test_the_pictures_are_the_same_with_and_without(run):
    for name, more in (("a", []), ("b", ["--save_steps", 3, "--save_json"])):
        assert run(*ONE, *more, "--outdir", name)[0] == 0
    for k in range(2):
        assert Path(f"a/samples/0000{k}.png").read_bytes() == Path(f"b/samples/0000{k}.png").read_bytes()


def test_the_json_beside_a_picture_says_what_is_in_it(run):
    assert run(*ONE, "--save_json", "--outdir", "out")[0] == 0
    for path in Path("out/samples").glob("*.png"):
        assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == read_settings(path)
    assert len(list(Path("out/samples").iterdir())) == 4
