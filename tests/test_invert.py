"""scripts/invert.py: pictures come back as docs/inversion.md says, and edits change what the words change."""

import re
import warnings
from pathlib import Path

import _config
import invert
import numpy as np
import pytest
import torch
from _script_models import of_as_many_classes_as_imagenet, of_classes, unconditional, vast_png, written
from PIL import Image

from ldm.checkpoint import load_model
from ldm.data.checker import read_background, score
from ldm.data.shapes import Description, Thing, draw
from ldm.image import read_settings, to_pil
from ldm.picture_files import to_tensor

PAGE = Path(__file__).parent.parent / "docs" / "inversion.md"
NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
WORDS = ["--prompt", "a red circle"]


def inverted(run, *flags, picture="scene.png", out="out", model=None):
    """Run it, expect success: ({name: (pixels, settings)}, the three errors that it prints, what it says)."""
    model = {} if model is None else {"model": model}
    status, printed, said = run("--init-img", picture, "--outdir", out, *flags, script=invert, **model)
    assert status == 0, said
    files = sorted(Path(out, "samples").iterdir())
    pictures = {path.stem: (np.asarray(Image.open(path)).astype(int), read_settings(path)) for path in files}
    errors = [float(number) for number in re.findall(r"\d\.\d+e[-+]\d+", printed[0])]
    assert len(errors) == 3 and "there and back" in printed[0]
    return pictures, errors, said


@pytest.fixture
def scene(tmp_path):
    """A scene of the bundled model's world, in scene.png, and its description."""
    things = (Thing("red", "circle", "large"), Thing("blue", "square", "small"))
    caption = "a large red circle above a small blue square on a plain background"
    description = Description(things, "column", None, "plain", caption)
    Image.fromarray(draw(description, np.random.default_rng(1))).save(tmp_path / "scene.png")
    return description


@pytest.fixture
def noise(tmp_path):
    """A picture of the tiny model's size, in scene.png."""
    Image.fromarray(NOISE).save(tmp_path / "scene.png")


# ------------------------------------------------------------------------------------------- there and back, bundled


def test_the_picture_comes_back_as_the_page_says(run, scene):
    """Up to noise alone and back, at S = 10: of what the autoencoder makes of the picture, the page's error is lost."""
    flags = ["--prompt", scene.caption, "--strength", 1, "--ddim_steps", 10]
    pictures, (whole, floor, way), said = inverted(run, *flags, model=())
    documented = float(re.search(r"^\| 10 \| \S+ \| (\S+) \|$", PAGE.read_text(encoding="utf-8"), re.M)[1])
    assert 0 < way < 2 * documented and not said
    # the same by the library and the file, to its rounding
    model = load_model(_config.load_config(None), _config.BUNDLED_CKPT)
    x = to_tensor(Image.open("scene.png"))
    own = model.decode_first_stage(model.get_first_stage_encoding(model.encode_first_stage(x).mode()))
    (own,) = (np.asarray(picture).astype(int) for picture in to_pil(own))
    back, original = pictures["scene-back"][0], np.asarray(Image.open("scene.png")).astype(int)
    rounding = 0.5 / 255**2
    assert np.square((back - own) / 255).mean() == pytest.approx(way, abs=rounding)
    assert np.square((own - original) / 255).mean() == pytest.approx(floor, rel=0.05)
    assert np.square((back - original) / 255).mean() == pytest.approx(whole, rel=0.05)
    assert whole < 1.1 * floor


def test_refinement_is_what_brings_it_back(run, scene):
    flags = ["--prompt", scene.caption, "--strength", 1, "--ddim_steps", 5]
    plain, refined = (inverted(run, *flags, "--refine", n, model=(), out=f"{n}")[1][2] for n in (0, 2))
    assert refined < 0.3 * plain


@pytest.mark.parametrize(
    "words, changed, seen",
    [
        (("red", "green"), 0, {"colour": "green"}),
        (("circle", "star"), 0, {"shape": "star"}),
        (("square", "heart"), 1, {"shape": "heart"}),
        (("plain", "striped"), None, {"background": "striped"}),
    ],
)
def test_an_edit_changes_what_the_words_change_and_leaves_the_rest(words, changed, seen, run, scene):
    flags = ["--prompt", scene.caption, "--edit", scene.caption.replace(*words), "--ddim_steps", 20, "--refine", 1]
    pictures, _, said = inverted(run, *flags, model=())
    things = [dict(vars(thing)) for thing in scene.things]
    if changed is not None:
        things[changed] |= seen
    wanted = Description(
        tuple(Thing(**thing) for thing in things), scene.layout, None, seen.get("background", "plain"), ""
    )
    edited, made = pictures["scene-edit"]
    assert all(score(edited.astype(np.uint8), wanted).values()) and not said
    assert made["prompt"] == scene.caption.replace(*words) and made["inverted_as"] == scene.caption
    back = pictures["scene-back"][0]
    assert all(score(back.astype(np.uint8), scene).values()) and read_background(back.astype(np.uint8)) == "plain"
    if changed is not None:  # the other half of the picture is as it was
        kept = np.s_[40:] if changed == 0 else np.s_[:24]
        assert abs(edited - back)[kept].mean() < 4 < abs(edited - back).max()


# ----------------------------------------------------------------------------------------------------- what is drawn


def test_nothing_is_drawn_at_random(run, noise):
    flags = [*WORDS, "--edit", "a blue square"]
    one, other = (inverted(run, *flags, out=out)[0] for out in "ab")
    for name, (pixels, settings) in one.items():
        assert np.array_equal(pixels, other[name][0]) and "seed" not in settings and "eta" not in settings


def test_strength_is_how_many_steps_go_up_and_come_down(run, noise, monkeypatch):
    from ldm.models.diffusion.ddpm import LatentDiffusion

    calls, apply = [], LatentDiffusion.apply_model
    monkeypatch.setattr(
        LatentDiffusion, "apply_model", lambda self, x, t, c: calls.append(int(t[0])) or apply(self, x, t, c)
    )
    inverted(run, *WORDS, "--ddim_steps", 10, "--strength", 0.39, "--refine", 1)
    assert calls == [1, 1, 11, 11, 21, 21, 21, 11, 1]  # three steps, each asked once more on the way up


def test_the_stronger_the_more_an_edit_changes(run, noise):
    changes = []
    for strength in (0.1, 0.5, 1):
        flags = [*WORDS, "--edit", "a blue square", "--ddim_steps", 10, "--strength", strength]
        (edited, made), (back, _) = (
            inverted(run, *flags, out=f"{strength}")[0][f"scene-{k}"] for k in ("edit", "back")
        )
        changes.append(abs(edited - back).mean())
        assert (made["strength"], made["refine"], made["scale"], made["steps"]) == (strength, 2, 2.0, 10)
    assert changes == sorted(changes) and changes[0] < changes[1] - 0.1


def test_each_edit_is_a_picture_and_all_are_in_one_sheet(run, noise):
    flags = [*WORDS, "--edit", "a blue square", "--edit", "", "--edit", "a red circle"]
    pictures, *_ = inverted(run, *flags)
    assert {name: made["prompt"] for name, (_, made) in pictures.items()} == {
        "scene-back": "a red circle", "scene-edit": "a blue square", "scene-edit-1": "", "scene-edit-2": "a red circle",
    }  # fmt: skip
    assert pictures["scene-back"][1]["scale"] == 1.0
    sheet = Image.open("out/grid-0000.png")
    assert sheet.width == 5 * (8 * 24 + 16) + 16 and sheet.height > 8 * 24 + 40  # captions below
    assert np.array_equal(np.asarray(sheet)[16 : 16 + 192 : 24, 16 : 16 + 192 : 24], NOISE)


def test_without_guidance_the_same_words_are_the_way_back(run, noise):
    pictures, *_ = inverted(run, *WORDS, "--edit", "a red circle", "--scale", 1)
    assert np.array_equal(pictures["scene-back"][0], pictures["scene-edit"][0])
    guided = inverted(run, *WORDS, "--edit", "a red circle", "--scale", 5, out="b")[0]
    assert abs(guided["scene-edit"][0] - guided["scene-back"][0]).max() > 1
    kept_out = [*WORDS, "--edit", "a red circle", "--scale", 5, "--negative_prompt", "a blue square"]
    assert abs(inverted(run, *kept_out, out="c")[0]["scene-edit"][0] - guided["scene-edit"][0]).max() > 1


def test_what_is_skipped_is_not_written(run, noise):
    for flag, left in (("--skip_grid", "samples/scene-back.png"), ("--skip_save", "grid-0000.png")):
        status, out, _ = run("--init-img", "scene.png", *WORDS, flag, "--outdir", flag[2:], script=invert)
        names = [str(path.relative_to(flag[2:])) for path in Path(flag[2:]).rglob("*.png")]
        assert status == 0 and names == [left] and out[-1].startswith("1 picture:")


def test_any_size_is_padded_and_cut_back(run, tmp_path):
    Image.fromarray(np.concatenate([NOISE, NOISE], 1)[:7, :13]).save(tmp_path / "scene.png")
    pictures, *_ = inverted(run, *WORDS, "--edit", "a blue square")
    assert {pixels.shape for pixels, _ in pictures.values()} == {(7, 13, 3)}
    assert {pixels.shape for pixels, _ in inverted(run, "--W", 26, out="b")[0].values()} == {(14, 26, 3)}


# ---------------------------------------------------------------------------------------------------- other models


def test_an_unconditional_model_takes_pictures_there_and_back(run, noise, tmp_path):
    model = written(tmp_path, unconditional)
    pictures, errors, said = inverted(run, "--ddim_steps", 50, model=model)
    assert list(pictures) == ["scene-back"] and errors[2] < 1e-4 and not said
    *_, said = inverted(run, *WORDS, "--ddim_steps", 50, model=model, out="b")
    assert len(said) == 1 and "told nothing" in said[0]
    status, _, said = run("--init-img", "scene.png", "--edit", "x", model=model, script=invert)
    assert status == 2 and "--edit 'x': this model is told nothing" in said[0]


def test_a_picture_of_a_class_becomes_one_of_another(run, noise, tmp_path):
    model = written(tmp_path, of_classes)
    pictures, *_ = inverted(run, "--prompt", 3, "--edit", 4, "--edit", 5, model=model)
    assert abs(pictures["scene-edit"][0] - pictures["scene-edit-1"][0]).max() > 1
    for flags, due in (
        (["--edit", 4], "give a class number with --prompt"),
        (["--prompt", 3, "--edit", "dog"], "not 'dog'"),
    ):
        status, _, said = run("--init-img", "scene.png", *flags, model=model, script=invert)
        assert status == 2 and due in said[0]
    thousand = written(tmp_path, of_as_many_classes_as_imagenet, "thousand")
    inverted(run, "--prompt", 3, model=thousand, out="b")  # nothing is guided without an edit
    status, _, said = run("--init-img", "scene.png", "--prompt", 3, "--edit", 4, model=thousand, script=invert)
    assert status == 2 and "known to stand for no class" in said[0]


def test_what_has_no_effect_is_named(run, noise):
    *_, said = inverted(run, *WORDS, "--scale", 3, "--refine", 0)
    assert len(said) == 1 and "without --edit, --scale and --negative_prompt have no effect" in said[0]
    options = ["sampler.params.eta=0.5", "sampler.params.temperature=0.5", "sampler.params.guidance_rescale=0.1"]
    *_, said = inverted(run, *WORDS, "--edit", "", *options, "--refine", 0, out="b")
    assert len(said) == 1 and "eta, temperature of sampler.params has no effect on inversion" in said[0]


def test_options_of_the_config_are_heeded(run, noise):
    plain = inverted(run, *WORDS, "--edit", "a blue square")[0]
    for k, option in enumerate(["ddim_discretize=trailing", "guidance_rescale=0.9"]):
        pictures = inverted(run, *WORDS, "--edit", "a blue square", f"sampler.params.{option}", out=f"{k}")[0]
        assert abs(pictures["scene-edit"][0] - plain["scene-edit"][0]).max() > 1, option


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--init-img is missing: give the file of a picture to begin from"),
        (["--init-img", "nowhere.png"], "--init-img 'nowhere.png' does not exist"),
        (["--init-img", "text.png"], "--init-img 'text.png' is no picture that can be read"),
        (["--init-img", "one.png"], "the picture 'one.png' is 1x1 pixels, and one latent of this model covers 2x2"),
        (["--init-img", "vast.png"], "--init-img 'vast.png' is too large (400 megapixels); make it smaller"),
        (["--strength", 0], "--strength: '0': give a number above 0 (0 would change nothing) and up to 1"),
        (["--strength", 2], "--strength: '2': give a number above 0 (0 would change nothing) and up to 1"),
        (["--refine", -1], "--refine: '-1': give an integer from 0"),
        (["--init-img", "scene.png", "sampler.target=ldm.sampling.PLMSSampler"], "PLMSSampler cannot invert; set"),
        (["--init-img", "scene.png", "model.params.conditioning_key=hybrid"], "shown a picture beside the noise"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, noise, no_model):
    Image.fromarray(NOISE[:1, :1]).save("one.png")
    vast_png(Path("vast.png"))
    Path("text.png").write_text("a picture")
    status, out, err = run(*flags, script=invert)
    assert status == 2 and not out and len(err) == 1 and said in err[0], err


def test_latents_that_overflow_are_an_error_with_the_flag_that_helps(run, noise, monkeypatch):
    from ldm.models.diffusion.ddpm import LatentDiffusion

    apply = LatentDiffusion.apply_model
    monkeypatch.setattr(LatentDiffusion, "apply_model", lambda self, *given: apply(self, *given) * torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status, _, err = run("--init-img", "scene.png", "--precision", "bf16", script=invert)
    assert status == 2 and "overflowed in bfloat16" in err[-1] and "--precision full" in err[-1]
