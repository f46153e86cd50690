"""scripts/upscale.py: what the network sees of the small picture, whose noise it is, and what comes out."""

from pathlib import Path

import _config
import _model
import numpy as np
import pytest
import torch
import upscale
from _script_models import of_depth, of_upscaling, vast_png, written
from _txt2img import difference, draw
from PIL import Image

from ldm.models.diffusion.ddpm import LatentUpscaleDiffusion
from ldm.modules.diffusionmodules.upscaling import ImageConcatWithNoiseAugmentation

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)  # of the tiny model's multiples
X = torch.from_numpy(PICTURE).permute(2, 0, 1)[None].float() / 127.5 - 1
ALPHA_BAR = ImageConcatWithNoiseAugmentation({"linear_start": 1e-4, "linear_end": 2e-2}).alphas_cumprod


def of_upscaling_without_noise(params):
    of_upscaling(params)
    params["low_scale_config"] = {"target": "ldm.modules.diffusionmodules.upscaling.SimpleImageConcat"}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return written(tmp_path_factory.mktemp("upscale"), of_upscaling, "upscale", "LatentUpscaleDiffusion")


@pytest.fixture
def drawn(run, model):
    """Run it on small.png unless told otherwise; [(pixels, settings), …]."""
    Image.fromarray(PICTURE).save("small.png")

    def drawn(*flags, out, picture="small.png", model=model):
        flags = ["--init-img", picture, "--ddim_steps", 2, *flags]
        return draw(lambda *given: run(*given, model=model, script=upscale), *flags, out=out)

    return drawn


@pytest.fixture
def seen(monkeypatch):
    """What the network is shown at each call: (x, c_concat, c_crossattn, c_adm)."""
    calls, apply = [], LatentUpscaleDiffusion.apply_model

    def spy(self, x, t, cond):
        adm = cond["c_adm"]
        calls.append((x, cond["c_concat"][0], cond["c_crossattn"][0], adm if torch.is_tensor(adm) else adm[0]))
        return apply(self, x, t, cond)

    monkeypatch.setattr(LatentUpscaleDiffusion, "apply_model", spy)
    return calls


def noise_in(concat, level):
    """What was added to the small picture: x_t = √ᾱ x + √(1 − ᾱ) noise."""
    return (concat - ALPHA_BAR[level] ** 0.5 * X) / (1 - ALPHA_BAR[level]) ** 0.5


def test_the_small_picture_stands_beside_the_latents_with_the_text_and_without(drawn, seen):
    drawn("--noise_level", 0, "--n_samples", 2, out="a")
    assert len(seen) == 2
    for x, concat, text, level in seen:  # both halves of guidance in one call
        assert x.shape == (4, 4, 6, 8) and concat.shape == (4, 3, 6, 8) and level.tolist() == [0] * 4
        assert (concat - X).abs().max() < 0.06  # 1 % of noise
        assert torch.equal(concat[:2], concat[2:]) and not torch.equal(text[0], text[2])


def test_its_noise_is_that_of_the_level_and_the_network_is_told(drawn, seen):
    drawn("--noise_level", 200, "--n_samples", 40, out="a")
    x, concat, _, level = seen[0]
    noise = noise_in(concat[:40], 200)
    assert level.tolist() == [200] * 80
    assert noise.mean().abs() < 0.05 and noise.std().item() == pytest.approx(1, abs=0.05)
    # its own: of no other picture, and not what the latents begin with
    flat, begun = noise.flatten(1), x[:40, :3].flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(40)).abs().max() < 0.5
    assert torch.corrcoef(torch.stack([flat.flatten(), begun.flatten()]))[0, 1].abs() < 0.1


def test_the_noise_belongs_to_the_pictures_seed(drawn, seen):
    together = drawn("--noise_level", 200, "--n_samples", 3, "--seed", 7, out="a")
    torch.manual_seed(123)
    alone = drawn("--noise_level", 200, "--seed", 9, out="b")
    torch.testing.assert_close(seen[0][1][2], seen[-1][1][0], rtol=0, atol=0)
    assert difference(together[2], alone[0]) <= 1 < difference(together[1], together[2])


def test_the_globals_generator_is_left_alone(drawn):
    torch.manual_seed(5)
    due = torch.rand(1)
    torch.manual_seed(5)
    drawn(out="a")
    assert torch.equal(torch.rand(1), due)


def test_level_picture_and_prompt_each_change_what_is_drawn(drawn):
    Image.fromarray(255 - PICTURE).save("other.png")
    one, by_default = drawn("--noise_level", 20, out="a")[0], drawn(out="b")[0]
    assert difference(one, by_default) == 0 and one[1]["noise_level"] == 20 and one[1]["init_img"] == "small.png"
    assert one[1]["scale"] == 2.0  # the config's
    for k, flags in enumerate((["--noise_level", 300], ["--prompt", "a blue square"])):
        assert difference(one, drawn(*flags, out=f"{k}")[0]) > 1
    assert difference(one, drawn(out="c", picture="other.png")[0]) > 1


def test_only_the_level_that_is_told_changes_the_picture_too(drawn, monkeypatch):
    """With the same numbers beside the latents."""
    monkeypatch.setattr(ImageConcatWithNoiseAugmentation, "q_sample", lambda self, x, t, noise: x)
    assert difference(*(drawn("--noise_level", level, out=f"{level}")[0] for level in (10, 300))) > 1


def test_any_size_is_padded_and_cut_back(drawn, seen):
    Image.fromarray(PICTURE[:5, :7]).save("odd.png")
    assert drawn("--noise_level", 0, out="a", picture="odd.png")[0][0].shape == (10, 14, 3)
    whole = torch.nn.functional.pad(X[..., :5, :7], (0, 1, 0, 1), mode="replicate")
    assert seen[0][0].shape[2:] == (6, 8) and (seen[0][1][:1] - whole).abs().max() < 0.06


def test_a_model_without_added_noise_knows_level_0_alone(run, tmp_path, drawn, seen):
    model = written(tmp_path, of_upscaling_without_noise, target="LatentUpscaleDiffusion")
    assert drawn(out="a", model=model)[0][1]["noise_level"] == 0
    torch.testing.assert_close(seen[0][1][:1], X)
    status, _, err = run("--init-img", "small.png", "--noise_level", 1, model=model, script=upscale)
    assert status == 2 and "--noise_level 1: this model knows the levels from 0 to 0" in err[0]


def test_half_precision_comes_close(drawn):
    assert 0 < difference(drawn(out="a")[0], drawn("--precision", "bf16", out="b")[0]) < 40


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--init-img is missing"),
        (["--init-img", "nowhere.png"], "--init-img 'nowhere.png' does not exist"),
        (["--init-img", "text.png"], "--init-img 'text.png' is no picture that can be read"),
        (["--init-img", "vast.png"], "--init-img 'vast.png' is too large (400 megapixels)"),
        (["--init-img", "one.png"], "the picture 'one.png' is 1x1 pixels; give one of at least 2x2"),
        (["--init-img", "large.png"], "is 512x513 pixels, and at most 262144 are enlarged at once, such as 512x512"),
        (
            ["--init-img", "small.png", "--noise_level", 351],
            "--noise_level 351: this model knows the levels from 0 to 350",
        ),
        (["--init-img", "small.png", "--noise_level", -1], "--noise_level: '-1': give an integer of at least 0"),
        (["--init-img", "small.png", "--noise_level", 1.5], "--noise_level: '1.5': give an integer"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(flags, said, run, model, no_model):
    Image.fromarray(PICTURE).save("small.png")
    Image.fromarray(PICTURE[:1, :1]).save("one.png")
    Image.new("L", (512, 513)).save("large.png")
    Path("text.png").write_text("a picture")
    vast_png(Path("vast.png"))
    status, out, err = run(*flags, model=model, script=upscale)
    assert status == 2 and not out and len(err) == 1 and said in err[0], err


def test_the_least_of_both_limits_of_the_level_counts(run, tmp_path, no_model):
    def short(params):
        of_upscaling(params)
        params["low_scale_config"]["params"]["noise_schedule_config"]["timesteps"] = 100

    Image.fromarray(PICTURE).save("small.png")
    model = written(tmp_path, short, target="LatentUpscaleDiffusion")
    status, _, err = run("--init-img", "small.png", "--noise_level", 100, model=model, script=upscale)
    assert status == 2 and "from 0 to 99" in err[0]


def test_the_released_models_config_is_one():
    """All that can be known before its weights are there."""
    config = _config.load_config("stable-diffusion/x4-upscaling")
    _model.check_class(config, "LatentUpscaleDiffusion")
    assert _model.told_by(config, ("hybrid-adm",)) == "text"
    assert upscale.noise_level(config, None) == 20 and upscale.noise_level(config, 350) == 350
    with pytest.raises(ValueError, match="from 0 to 350"):
        upscale.noise_level(config, 351)
    canvas = upscale.canvas_of(Image.new("RGB", (100, 128)), config, upscale.parse(["--init-img", "x"]))
    assert canvas.shape == (4, 128, 104) and canvas.tensor().shape == (1, 3, 128, 104)
    assert canvas.cut(torch.zeros(1, 3, 512, 416)).shape == (1, 3, 512, 400)


@pytest.mark.parametrize("change, target", [(of_depth, "LatentDepth2ImageDiffusion"), (None, "LatentDiffusion")])
def test_a_model_of_another_kind_is_named_before_it_is_loaded(change, target, run, no_model, tmp_path):
    Image.fromarray(PICTURE).save("small.png")
    model = written(tmp_path, change, target=target) if change else ()
    status, out, err = run("--init-img", "small.png", model=model, script=upscale)
    assert status == 2 and not out and len(err) == 1
    assert f"models of the class LatentUpscaleDiffusion, and this one's is {target}:" in err[0]
    assert "x4-upscaler-ema.ckpt" in err[0] and "stable-diffusion/x4-upscaling" in err[0]
