"""What a user can do wrong with scripts/img2img.py is one line and exit status 2, before a model is loaded."""

from pathlib import Path

import img2img
import pytest
from _picture_files import png_header, scene
from _script_models import beside_a_picture, written
from PIL import Image


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--init-img is missing: give the file of a picture to begin from"),
        (["--init-img", ""], "--init-img: the path is empty"),
        (["--init-img", "no.png"], "--init-img 'no.png' does not exist"),
        (["--init-img", "folder"], "--init-img 'folder' is a folder; give the file of one picture"),
        (["--init-img", "text.png"], "--init-img 'text.png' is no picture that can be read"),
        (["--init-img", "empty.png"], "--init-img 'empty.png' is empty"),
        (["--init-img", "cut.png"], "--init-img 'cut.png' is damaged"),
        (["--init-img", "one.png"], "the picture 'one.png' is 1x1 pixels, and one latent of this model covers 2x2"),
        (["--init-img", "large.png"], "--init-img 'large.png' is too large (400 megapixels)"),
        (["--init-img", "a.png", "--W", 1], "is 1x1 pixels"),
        (["--init-img", "a.png", "--H", 16000, "--W", 16000], "--H 16000 --W 16000: 16000x16000 are 256 megapixels"),
        (
            ["--init-img", "a.png", "--strength", 0],
            "--strength: '0': give a number above 0 (0 would",
        ),
        (["--init-img", "a.png", "--strength", "0.0"], "--strength: '0.0'"),
        (["--init-img", "a.png", "--strength", 2], "--strength: '2': give a number above 0"),
        (["--init-img", "a.png", "--strength", -1], "--strength: '-1'"),
        (["--init-img", "a.png", "--strength", "nan"], "--strength: 'nan'"),
        (["--init-img", "a.png", "--plms", "--dpm_solver"], "--dpm_solver/--dpm: not allowed with argument --plms"),
        (["--init-img", "a.png", "--f", 4], "--f 4: this model has a downsampling factor of 2"),
        (["--init-img", "a.png", "--C", 3], "--C 3: this model has 4 latent channels"),
        (["--init-img", "a.png", "--from-file", "no.txt"], "no.txt"),
        (["--init-img", "a.png", "sampler.params.strength=0.5"], "sampler.params has 'strength', which DDIMSampler"),
        (["--init-img", "a.png", "sampler.params.init=0.5"], "sampler.params has 'init', which DDIMSampler"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, no_model):
    Image.fromarray(scene(8, 8)).save("a.png")
    Image.new("RGB", (1, 1)).save("one.png")
    Image.effect_noise((99, 99), 90).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:5000])
    Path("folder").mkdir()
    Path("text.png").write_text("hello")
    Path("empty.png").write_bytes(b"")
    png_header(Path("large.png"), 20_000, 20_000)
    status, out, err = run(*flags, script=img2img)
    assert status == 2 and not out
    assert len(err) == 1 and err[0].startswith("img2img: error: ") and said in err[0]


def test_a_model_that_is_shown_a_picture_besides_is_named(run, no_model, tmp_path):
    Image.fromarray(scene(8, 8)).save("a.png")
    status, _, err = run("--init-img", "a.png", model=written(tmp_path, beside_a_picture), script=img2img)
    assert status == 2 and len(err) == 1 and "shown a picture beside the noise (conditioning_key 'hybrid')" in err[0]


def test_a_picture_that_cannot_be_read_leaves_no_folder_behind(run, no_model):
    run("--init-img", "no.png", "--outdir", "out", script=img2img)
    assert not Path("out").exists()
