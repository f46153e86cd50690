"""scripts/depth2img.py: the depth reaches the network, in every digit; what the picture and the strength do."""

from pathlib import Path

import _config
import _model
import depth2img
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _script_models import beside_a_picture, of_depth, vast_png, written
from _txt2img import difference, draw
from PIL import Image

from ldm.models.diffusion.ddpm import LatentDiffusion

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)  # of the multiples that the tiny model takes
DEPTH = np.linspace(2, 9, 12 * 16, dtype=np.float32).reshape(12, 16) ** 2


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return written(tmp_path_factory.mktemp("depth"), of_depth, "depth", "LatentDepth2ImageDiffusion")


@pytest.fixture
def drawn(run, model):
    """Run it on picture.png and depth.npy unless told otherwise; [(pixels, settings), …]."""
    Image.fromarray(PICTURE).save("picture.png")
    np.save("depth.npy", DEPTH)

    def drawn(*flags, out, picture="picture.png", depth="depth.npy"):
        files = ["--depth", depth] + (["--init-img", picture] if picture else [])
        return draw(
            lambda *given: run(*given, model=model, script=depth2img), *files, "--ddim_steps", 3, *flags, out=out
        )

    return drawn


@pytest.fixture
def seen(monkeypatch):
    """What the network is shown at each call: (c_concat, c_crossattn)."""
    calls, apply = [], LatentDiffusion.apply_model

    def spy(self, x, t, cond):
        calls.append((cond["c_concat"][0], cond["c_crossattn"][0]))
        return apply(self, x, t, cond)

    monkeypatch.setattr(LatentDiffusion, "apply_model", spy)
    return calls


def beside(depth, h, w):
    """Depth as the network was trained to see it: at the latents' size, the farthest −1, the nearest 1."""
    depth = torch.as_tensor(depth)
    depth = 1000 * (depth - depth.min()) / (depth.max() - depth.min())
    small = F.interpolate(depth[None, None], (h, w), mode="bicubic")
    return 2 * (small - small.min()) / (small.max() - small.min() + 0.001) - 1


def test_the_depth_stands_beside_the_latents_with_the_text_and_without(drawn, seen):
    drawn("--n_samples", 2, out="a")
    assert len(seen) == 2  # int(0.9 * 3)
    for concat, text in seen:  # both halves of guidance in one call
        torch.testing.assert_close(concat, beside(DEPTH, 6, 8).expand(4, 1, 6, 8))
        assert torch.equal(text[:1], text[1:2]) and not torch.equal(text[0], text[2])


def test_another_depth_is_another_picture(drawn):
    np.save("other.npy", DEPTH.T.copy().reshape(12, 16))
    one, other, near = drawn(out="a")[0], drawn(out="b", depth="other.npy")[0], drawn("--invert_depth", out="c")[0]
    assert difference(one, other) > 1 and difference(one, near) > 1
    assert one[1]["depth"] == "depth.npy" and near[1]["invert_depth"] is True


def test_inverted_the_far_is_near(drawn, seen):
    drawn("--invert_depth", out="a")
    torch.testing.assert_close(seen[0][0][:1], -beside(DEPTH, 6, 8), atol=1e-4, rtol=0)


def test_the_unit_of_depth_is_no_matter(drawn):
    np.save("miles.npy", DEPTH * 1e-5 + 3)
    assert difference(drawn(out="a")[0], drawn(out="b", depth="miles.npy")[0]) <= 1


def test_sixteen_bits_are_kept(drawn, seen):
    fine = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) + 1024  # in 8 bits it were flat
    Image.fromarray(fine).save("fine.png")
    drawn(out="a", depth="fine.png")
    torch.testing.assert_close(seen[0][0][:1], beside(fine.astype(np.float32), 6, 8))


def test_at_strength_1_the_depth_alone_guides_below_it_the_picture_too(drawn):
    Image.fromarray(255 - PICTURE).save("other.png")
    alone = drawn("--strength", 1, out="none", picture=None)[0]
    for strength, same in ((1, True), (0.5, False)):
        one, other = (
            drawn("--strength", strength, out=f"{strength}-{name}", picture=name)[0]
            for name in ("picture.png", "other.png")
        )
        assert bool(difference(one, other) == 0) is same, strength
        assert bool(difference(one, alone) == 0) is same
    assert "init_img" not in alone[1] and one[1]["init_img"] == "picture.png"


def test_a_picture_is_the_same_alone_and_in_a_batch(drawn):
    together = drawn("--n_samples", 3, "--seed", 7, out="a")
    assert difference(together[2], drawn("--seed", 9, out="b")[0]) <= 1 < difference(together[1], together[2])


def test_any_size_is_padded_and_cut_back(drawn, seen):
    Image.fromarray(PICTURE[:9, :13]).save("odd.png")
    np.save("odd.npy", DEPTH[:9, :13])
    assert drawn(out="a", picture="odd.png", depth="odd.npy")[0][0].shape == (9, 13, 3)
    whole = np.pad(DEPTH[:9, :13], ((0, 3), (0, 3)), mode="edge")
    torch.testing.assert_close(seen[0][0][:1], beside(whole, 6, 8))
    assert drawn("--W", 26, out="b", picture="odd.png", depth="odd.npy")[0][0].shape == (18, 26, 3)
    assert seen[-1][0].shape[2:] == (10, 14) and seen[-1][0].min() == -1


def test_half_precision_comes_close(drawn):
    full, half = drawn(out="a")[0], drawn("--precision", "bf16", out="b")[0]
    assert 0 < difference(full, half) < 40


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--depth is missing: MiDaS, which estimates the depth of a picture, is not here; give a depth map"),
        (["--depth", "depth.npy"], "--init-img is missing: give the picture to begin from, or --strength 1"),
        (["--init-img", "nowhere.png", "--depth", "depth.npy"], "--init-img 'nowhere.png' does not exist"),
        (["--init-img", "text.png", "--depth", "depth.npy"], "--init-img 'text.png' is no picture that can be read"),
        (["--init-img", "vast.png", "--depth", "depth.npy"], "--init-img 'vast.png' is too large (400 megapixels)"),
        (["--init-img", "picture.png", "--depth", "vast.png"], "--depth 'vast.png' is too large (400 megapixels)"),
        (["--init-img", "picture.png", "--depth", "nowhere.png"], "--depth 'nowhere.png' does not exist"),
        (["--init-img", "picture.png", "--depth", "picture.png"], "--depth 'picture.png' has colours"),
        (
            ["--init-img", "one.png", "--depth", "depth.npy"],
            "--depth 'depth.npy' is 16x12 pixels, the picture 'one.png' 1x1: give a depth map of the picture's size",
        ),
        (
            ["--init-img", "one.png", "--depth", "one.npy"],
            "'one.png' is 1x1 pixels, and one latent of this model covers",
        ),
        (["--depth", "one.npy", "--strength", 1], "'one.npy' is 1x1 pixels"),
        (["--strength", 0], "--strength: '0': give a number above 0 (0 would change nothing) and up to 1"),
        (["--strength", 2], "--strength: '2'"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, model, no_model):
    Image.fromarray(PICTURE).save("picture.png")
    Image.fromarray(PICTURE[:1, :1]).save("one.png")
    np.save("depth.npy", DEPTH)
    np.save("one.npy", DEPTH[:1, :1])
    Path("text.png").write_text("a picture")
    vast_png(Path("vast.png"))
    status, out, err = run(*flags, model=model, script=depth2img)
    err = [line for line in err if "everywhere, so it says nothing" not in line]
    assert status == 2 and not out and len(err) == 1 and said in err[0], err


def test_the_released_models_config_is_one():
    """All that can be known before its weights are there."""
    config = _config.load_config("stable-diffusion/v2-midas-inference")
    _model.check_class(config, "LatentDepth2ImageDiffusion")
    assert _model.told_by(config, ("hybrid",)) == "text"


@pytest.mark.parametrize("change", [lambda params: None, beside_a_picture])
def test_a_model_of_another_kind_is_named_before_it_is_loaded(change, run, no_model, tmp_path):
    np.save("depth.npy", DEPTH)
    for model in (written(tmp_path, change), ()):
        status, out, err = run("--depth", "depth.npy", "--strength", 1, model=model, script=depth2img)
        assert status == 2 and not out and len(err) == 1
        assert "models of the class LatentDepth2ImageDiffusion, and this one's is LatentDiffusion" in err[0]
        assert "512-depth-ema.ckpt" in err[0] and "stable-diffusion/v2-midas-inference" in err[0]
