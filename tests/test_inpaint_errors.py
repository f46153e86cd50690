"""What a user can do wrong with scripts/inpaint.py is one line and exit status 2, before a model is loaded."""

from pathlib import Path

import inpaint
import numpy as np
import pytest
from _picture_files import png_header, scene
from _script_models import beside_a_picture, of_depth, of_filling_by_concat, of_upscaling, written
from PIL import Image

FLAGS = ["--init-img", "a.png", "--mask", "m.png"]
SIZE = (12, 8)


def files():
    """Pictures, masks and folders, right and wrong, in the current folder."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[2:5, 3:7] = 255
    Image.fromarray(scene(*SIZE)).save("a.png")
    Image.fromarray(mask).save("m.png")
    Image.new("L", SIZE, 0).save("black.png")
    Image.new("L", SIZE, 255).save("white.png")
    Image.new("L", (8, 8), 255).save("small.png")
    Image.new("RGB", (1, 1)).save("one.png")
    Image.fromarray(np.array([[0]], np.uint8)).save("one_mask.png")
    Image.effect_noise((99, 99), 90).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:5000])
    Path("text.png").write_text("hello")
    png_header(Path("large.png"), 20_000, 20_000)
    for folder in ("none", "lonely", "two", "damaged", "empty", "tiny", "twice"):
        Path(folder).mkdir()
    Image.open("a.png").save("none/a.png")
    for name in ("lonely/b_mask.png", "two/a_mask.webp", "damaged/a_mask.png", "twice/a_mask.bmp", "twice/a_mask.png"):
        Image.open("m.png").save(name)
    for name in ("lonely/a.png", "two/a.bmp", "two/a.png", "damaged/a.png", "twice/a.png"):
        Image.open("a.png").save(name)
    Image.open("a.png").save("damaged/b.png")
    Path("damaged/b_mask.png").write_bytes(b"")
    for name in ("tiny/a", "tiny/b"):
        size = SIZE if name == "tiny/a" else (9, 1)
        Image.fromarray(scene(*size)).save(f"{name}.png")
        Image.fromarray((np.arange(size[0]) < 3)[None].repeat(size[1], 0)).save(f"{name}_mask.png")


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--init-img is missing: give --init-img and --mask, or --indir, a folder of both"),
        (["--indir", "twice"], "'twice' has several masks for a.png: a_mask.bmp, a_mask.png; keep one"),
        (["--init-img", "a.png"], "--mask is missing: give --init-img and --mask, or --indir"),
        (["--mask", "m.png"], "--init-img is missing"),
        (["--init-img", ""], "--init-img: the path is empty"),
        (["--indir", ""], "--indir: the path is empty"),
        ([*FLAGS, "--indir", "none"], "--indir: not allowed with argument --init-img"),
        (["--indir", "none", "--mask", "m.png"], "--mask goes with --init-img; in --indir each picture has its own"),
        (["--init-img", "no.png", "--mask", "m.png"], "--init-img 'no.png' does not exist"),
        (["--init-img", "text.png", "--mask", "m.png"], "--init-img 'text.png' is no picture that can be read"),
        (["--init-img", "cut.png", "--mask", "m.png"], "--init-img 'cut.png' is damaged"),
        (["--init-img", "none", "--mask", "m.png"], "--init-img 'none' is a folder"),
        (["--init-img", "large.png", "--mask", "m.png"], "--init-img 'large.png' is too large (400 megapixels)"),
        (["--init-img", "a.png", "--mask", "large.png"], "--mask 'large.png' is too large (400 megapixels)"),
        (["--init-img", "a.png", "--mask", "no.png"], "--mask 'no.png' does not exist"),
        (["--init-img", "a.png", "--mask", "text.png"], "--mask 'text.png' is no picture that can be read"),
        (["--init-img", "a.png", "--mask", "small.png"], "--mask 'small.png' is 8x8 pixels, the picture 'a.png' 12x8"),
        (["--init-img", "a.png", "--mask", "black.png"], "--mask 'black.png' keeps all of the picture, so there is"),
        (["--init-img", "a.png", "--mask", "black.png"], "with --white hole the hole is white; paint one, or turn it"),
        (["--init-img", "a.png", "--mask", "white.png", "--white", "keep"], "with --white keep the hole is black"),
        (
            ["--init-img", "a.png", "--mask", "white.png"],
            "--mask 'white.png' keeps nothing of the picture; give one that",
        ),
        (["--init-img", "a.png", "--mask", "black.png", "--white", "keep"], "keeps nothing of the picture"),
        ([*FLAGS, "--white", "black"], "--white: invalid choice: 'black'"),
        ([*FLAGS, "--strength", 0], "--strength: '0': give a number above 0"),
        ([*FLAGS, "--strength", 2], "--strength: '2': give a number above 0"),
        ([*FLAGS, "--f", 8], "--f 8: this model has a downsampling factor of 2"),
        ([*FLAGS, "--H", 8], "unrecognized arguments: --H"),
        (["--indir", "a.png"], "--indir 'a.png' is no folder; one picture is given by --init-img and --mask"),
        (["--indir", "nowhere"], "--indir 'nowhere' is no folder"),
        (["--indir", "empty"], "--indir 'empty' has no pair NAME.png and NAME_mask.png (it has: no pictures)"),
        (["--indir", "none"], "--indir 'none' has no pair NAME.png and NAME_mask.png (it has: a.png)"),
        (["--indir", "lonely"], "--indir 'lonely' has no picture, or several, for b_mask.png"),
        (["--indir", "two"], "--indir 'two' has no picture, or several, for a_mask.webp"),
        (["--indir", "damaged"], "--indir 'damaged/b_mask.png' is empty"),
        (["--indir", "tiny"], "the picture 'tiny/b.png' is 9x1 pixels, and one latent of this model covers 2x2"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, no_model):
    files()
    status, out, err = run(*flags, script=inpaint)
    assert status == 2 and not out
    assert len(err) == 1 and err[0].startswith("inpaint: error: ") and said in err[0]


def test_a_picture_of_one_pixel_has_no_mask_that_leaves_something(run, no_model):
    files()
    status, _, err = run("--init-img", "one.png", "--mask", "one_mask.png", script=inpaint)
    assert status == 2 and "keeps all of the picture" in err[0]


def of_colouring(params):
    """Shown a picture by concat, and no mask."""
    of_filling_by_concat(params)
    params["unet_config"]["params"]["in_channels"] = 8


@pytest.mark.parametrize(
    "change, target, said",
    [
        (of_depth, "LatentDepth2ImageDiffusion", "none with a hole: its network takes 5 channels, not 4 of latents"),
        (
            of_colouring,
            "LatentDiffusion",
            "none with a hole: its network takes 8 channels, not 4 of latents, 1 of a mask",
        ),
        (of_upscaling, "LatentUpscaleDiffusion", "shown a picture beside the noise"),
    ],
)
def test_a_model_that_is_shown_another_picture_is_named(change, target, said, run, no_model, tmp_path, monkeypatch):
    files()
    monkeypatch.setattr("_script_models.instantiate_from_config", lambda config: no_weights())
    status, _, err = run(*FLAGS, model=written(tmp_path, change, target=target), script=inpaint)
    assert status == 2 and len(err) == 1 and said in err[0]


def no_weights():
    """What `written` saves where no model is to be loaded."""
    import torch

    return torch.nn.Linear(1, 1)


@pytest.mark.parametrize(
    "change, target", [(of_filling_by_concat, "LatentDiffusion"), (beside_a_picture, "LatentInpaintDiffusion")]
)
def test_an_inpainting_model_is_no_model_of_txt2img(change, target, run, no_model, tmp_path):
    status, _, err = run("--prompt", "a dog", model=written(tmp_path, change, target=target))
    assert status == 2 and len(err) == 1 and "scripts/inpaint.py" in err[0]
