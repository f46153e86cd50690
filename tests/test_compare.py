"""scripts/compare.py and interpolate.py: every picture is the one that txt2img.py draws with the settings beside it."""

from pathlib import Path

import compare
import interpolate
import numpy as np
import pytest
from PIL import Image

from ldm import image

FEW = ("--ddim_steps", 3, "--device", "cpu")


@pytest.fixture
def tables(monkeypatch):
    """The pictures and labels of the tables that are made, instead of their drawing."""
    made, draw = [], image.table

    def table(pictures, columns, rows):
        made.append(([np.asarray(p).astype(int) for p in pictures], columns, rows))
        return draw(pictures, columns, rows)

    monkeypatch.setattr(image, "table", table)
    return made


def alone(run, *flags):
    status, _, said = run(*FEW, *flags, "--n_iter", 1, "--n_samples", 1, "--outdir", "alone", "--skip_grid")
    assert status == 0, said
    return np.asarray(Image.open(sorted(Path("alone/samples").glob("*.png"))[-1])).astype(int)


def test_each_cell_is_the_picture_of_its_settings(run, tables):
    status, out, said = run(
        *FEW, "--across", "steps=1,4", "--down", "eta=0,0.5,1", "--prompt", "a star", script=compare
    )
    assert status == 0 and "6 pictures: outputs/compare.png" in out[-1], said
    ((pictures, columns, rows),) = tables
    assert (columns, rows) == (["steps 1", "steps 4"], ["eta 0", "eta 0.5", "eta 1"])
    for k, (eta, steps) in enumerate((eta, steps) for eta in (0, 0.5, 1) for steps in (1, 4)):
        flags = ["--prompt", "a star", "--ddim_eta", eta, "--ddim_steps", steps]
        assert np.array_equal(pictures[k], alone(run, *flags)), (eta, steps)
    assert Image.open("outputs/compare.png").size[0] > 2 * 8


def test_samplers_texts_seeds_and_options_of_the_config_can_be_compared(run, tables):
    for flags in (["sampler=ddim,plms", "seed=1,2"], ["prompt=a star, red;", "guidance_rescale=0,0.7"]):
        across, down = flags
        status, _, said = run(*FEW, "--across", across, "--down", down, script=compare)
        assert status == 0, said
    (first, *_), (second, columns, _) = tables
    assert columns == ["a star, red", "(nothing)"]
    assert np.array_equal(first[3], alone(run, "--plms", "--seed", 2, "--prompt", compare.PROMPT))
    rescaled = ["sampler.params.guidance_rescale=0.7", "--prompt", ""]
    assert np.array_equal(second[3], alone(run, *rescaled))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["steps"], "give NAME=VALUE,VALUE, as in steps=5,10,20"),
        (["steps=5,,10"], "give NAME=VALUE,VALUE"),
        (["steps=5,x"], "'x': give an integer of at least 1"),
        (["sampler=euler"], "'euler' is unknown; choose ddim, plms, dpm_solver"),
        (["etta=1,2"], "did you mean 'eta'?"),
        (["eta=1,2", "--down", "eta=1,2"], "compare two settings, or leave --down out"),
        (["steps=5,5000"], "choose a number of steps from 1 to 100,"),
        (["steps=5", "--out", "a.gif"], "--out a.gif is no PNG's name; give one that ends in .png, such as a.png"),
        (["seed=" + ",".join(map(str, range(401)))], "401 times 1 pictures; at most 400 are drawn"),
    ],
)
def test_what_cannot_be_compared_is_said_before_a_model_is_loaded(flags, why, run, no_model):
    status, _, said = run("--across", *flags, script=compare)
    assert status == 2 and why in said[-1]


def test_a_strip_begins_and_ends_with_the_seeds_own_pictures(run, tables):
    flags = ["--prompt", "a star", "--seed", 5, "--to", 9, "--to", 2, "--n", 3]
    status, _, said = run(*FEW, *flags, script=interpolate)
    assert status == 0, said
    ((pictures, columns, rows),) = tables
    assert (columns, rows) == (["0.00", "0.50", "1.00"], ["seed 5 to 9", "seed 9 to 2"])
    for k, seed in ((0, 5), (2, 9), (3, 9), (5, 2)):
        assert np.abs(pictures[k] - alone(run, "--prompt", "a star", "--seed", seed)).max() <= 1, seed
    assert all(np.abs(pictures[1] - pictures[k]).max() > 1 for k in (0, 2))


def test_noise_on_the_way_is_refused_between_seeds(run, no_model):
    status, _, said = run("--ddim_eta", 0.5, script=interpolate)
    assert status == 2 and "leave it at 0" in said[-1]


def test_a_table_has_its_pictures_in_place_and_its_words_outside_of_them():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    sheet = image.table(
        [Image.new("RGB", (300, 200), c) for c in colours], ["one", "two"], ["first", "a long label of many words"]
    )
    found = np.asarray(sheet)
    places = [np.argwhere((found == c).all(-1)) for c in colours]
    assert [len(p) for p in places] == [300 * 200] * 4
    corners = [p.min(0) for p in places]
    assert (
        corners[0][0] == corners[1][0] < corners[2][0] == corners[3][0]
        and corners[0][1] == corners[2][1] < corners[1][1]
    )
    dark = np.argwhere(found.max(-1) < 100)
    assert len(dark) and (dark[:, 1].min() >= 2) and ((dark[:, 0] < corners[0][0]) | (dark[:, 1] < corners[0][1])).all()
    with pytest.raises(ValueError, match="3 pictures for 2 columns and 2 rows"):
        image.table([Image.new("RGB", (8, 8))] * 3, ["a", "b"], ["c", "d"])
