"""scripts/show_info.py: the command that it prints makes the same picture again."""

import importlib
import json
import shlex
from pathlib import Path

import _config
import numpy as np
import pytest
import show_info
from _script_models import of_classes, of_depth, of_upscaling, unconditional, written
from PIL import Image, ImageDraw

from ldm.image import save_png

FEW = ("--ddim_steps", "3", "--device", "cpu")
ONE = ("--n_samples", "1", "--n_iter", "1")


def made_again(run, first, ckpt=None, paths=None):
    """The command for a PNG, run; (the words, the picture that it draws)."""
    status, out, said = run(first, *(("--ckpt", ckpt) if ckpt else ()), model=(), script=show_info)
    assert status == 0, said
    python, script, *flags = shlex.split(out[-1])
    assert python == "python" and (_config.ROOT / script).is_file()
    flags = [str((paths or {}).get(word, word)) for word in flags]
    module = importlib.import_module(Path(script).stem)
    status, _, said = run(*flags, "--device", "cpu", "--outdir", "again", model=(), script=module)
    assert status == 0, said
    drawn = sorted(Path("again").rglob("*.png"))
    return flags, [Image.open(path) for path in drawn if "grid" not in path.name]


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    "flags",
    [
        ["--prompt", "a red circle", "--seed", 7, "--scale", 2.5],
        ["--prompt=-5 'quoted' circles; $HOME", "--negative_prompt=--blue", "--W", 24, "--ddim_eta", 0.5],
        ["--prompt", "", "--plms", "--scale", 1],
        ["--prompt", "a star", "--dpm_solver", "--reuse_features", 2],
        ["--prompt", "a star", "sampler.params.guidance_rescale=0.5", "sampler.params.ddim_discretize=trailing"],
        ["--prompt", "a star", "--merge_tokens", 0.25, "--precision", "bf16"],
    ],
)
def test_the_command_makes_the_picture_again(flags, run, tiny):
    config, ckpt = tiny[1], tiny[3]
    assert run(*flags, *ONE, *FEW, "--outdir", "first")[0] == 0
    first = Path("first/samples/00000.png")
    words, drawn = made_again(run, first, ckpt, {Path(config).stem: config})
    assert "--seed" in words and len(drawn) == 1 and same(Image.open(first), drawn[0])


@pytest.mark.parametrize(("change", "flags"), [(unconditional, []), (of_classes, ["--prompt", 7, "--scale", 2])])
def test_models_without_words_too(change, flags, run, tmp_path):
    model = written(tmp_path, change)
    assert run(*flags, *ONE, *FEW, "--outdir", "first", model=model)[0] == 0
    first = Path("first/samples/00000.png")
    _, drawn = made_again(run, first, model[3], {"other": model[1]})
    assert same(Image.open(first), drawn[0])


@pytest.fixture
def scene(tmp_path):
    """A picture and a mask of it."""
    picture, mask = Image.new("RGB", (64, 64), "white"), Image.new("L", (64, 64), 0)
    ImageDraw.Draw(picture).ellipse((10, 10, 40, 40), fill="red")
    ImageDraw.Draw(mask).rectangle((8, 8, 44, 44), fill=255)
    picture.save(tmp_path / "scene.png")
    mask.save(tmp_path / "hole.png")
    return {"scene.png": tmp_path / "scene.png", "hole.png": tmp_path / "hole.png"}


@pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout")
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("img2img", ["--prompt", "a blue star", "--strength", "0.7", *ONE]),
        ("inpaint", ["--mask", "hole.png", "--prompt", "a blue star", *ONE]),
        ("invert", ["--prompt", "a red circle", "--edit", "a blue circle"]),
    ],
)
def test_pictures_of_pictures_too_with_the_bundled_model(script, flags, scene, run):
    module = importlib.import_module(script)
    flags = ["--init-img", "scene.png", *flags, *FEW, "--outdir", "first"]
    assert run(*flags, model=(), script=module)[0] == 0
    for first in sorted(path for path in Path("first").rglob("*.png") if "grid" not in path.name):
        _, drawn = made_again(run, first, paths=scene)
        assert any(same(Image.open(first), picture) for picture in drawn), first


@pytest.mark.parametrize(
    ("script", "change", "target", "flags"),
    [
        ("depth2img", of_depth, "LatentDepth2ImageDiffusion", ["--depth", "hole.png", "--strength", "0.7"]),
        (
            "depth2img",
            of_depth,
            "LatentDepth2ImageDiffusion",
            ["--depth", "hole.png", "--invert_depth", "--scale", "1"],
        ),
        ("upscale", of_upscaling, "LatentUpscaleDiffusion", ["--noise_level", "30"]),
    ],
)
def test_pictures_of_models_that_see_pictures_too(script, change, target, flags, scene, run, tmp_path):
    module = importlib.import_module(script)
    model = written(tmp_path, change, script, target)
    flags = ["--init-img", "scene.png", "--prompt", "a red circle", *flags, *ONE, *FEW, "--outdir", "first"]
    status, _, said = run(*flags, model=model, script=module)
    assert status == 0, said
    (first,) = Path("first/samples").glob("*.png")
    words, drawn = made_again(run, first, model[3], scene | {script: model[1]})
    assert ("--invert_depth" in words) == ("--invert_depth" in flags)
    assert len(drawn) == 1 and same(Image.open(first), drawn[0])


def test_json_is_what_the_picture_holds(run, tmp_path):
    made = {"prompt": "a", "seed": 3, "steps": 5, "own": [1, None]}
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", made)
    status, out, _ = run("a.png", "--json", model=(), script=show_info)
    assert status == 0 and json.loads("\n".join(out)) == made


def test_what_no_flag_says_is_listed(tmp_path, capsys):
    save_png(
        Image.new("RGB", (8, 8)),
        tmp_path / "a.png",
        {"prompt": "a", "Clip skip": 2, "sampler": "Euler a", "model": "x"},
    )
    show_info.main([str(tmp_path / "a.png")])
    said = capsys.readouterr()
    assert "no flag says: sampler, Clip skip" in said.err or "no flag says: Clip skip, sampler" in said.err
    assert "--ckpt x" in said.out


def test_a_picture_that_tells_nothing_is_an_error(run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    status, _, said = run("a.png", model=(), script=show_info)
    assert status == 2 and "a.png does not tell how it was made" in said[-1]
