"""scripts/img2img.py: what is drawn from a picture, at which size, and what of it is left."""

from pathlib import Path

import _config
import img2img
import numpy as np
import pytest
import torch
from _picture_files import far, scene
from _script_models import of_classes, unconditional, written
from _txt2img import difference, draw
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import load_model
from ldm.data.checker import read_things
from ldm.image import to_pil
from ldm.sampling import DDIMSampler

ONE = ["--n_samples", 1]


@pytest.fixture
def i2i(run):
    """`run`, of this script, on a picture `a.png` unless another is given."""
    Image.fromarray(scene(12, 8)).save("a.png")

    def i2i(*flags, **how):
        picture = [] if "--init-img" in flags else ["--init-img", "a.png"]
        return run(*picture, *flags, script=img2img, **how)

    return i2i


def by_hand(tiny, picture, steps, taken, seed, prompt="a red circle"):
    """The same in plain words: encode, noise to the level of the step, walk the rest, decode. Sides are multiples."""
    model = load_model(OmegaConf.load(tiny[1]), tiny[3])
    x = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        z = model.encode_first_stage(x).mode()
        sampler = DDIMSampler(model)
        sampler.make_schedule(steps, verbose=False)
        noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed))
        z = sampler.stochastic_encode(z, torch.tensor([taken - 1]), noise=noise[None])
        cond, uncond = (model.get_learned_conditioning([text]) for text in (prompt, ""))
        z = sampler.decode(z, cond, taken, 2.0, uncond)
        return to_pil(model.decode_first_stage(z))[0]


@pytest.mark.parametrize("strength, taken", [(0.8, 8), (0.75, 7), (0.29, 2), (1, 10), (0.01, 1)])
def test_the_last_steps_are_taken_from_the_noised_picture(strength, taken, i2i, tiny):
    drawn = draw(i2i, *ONE, "--strength", strength, "--steps", 10, "--seed", 5)[0]
    assert far(drawn[0], by_hand(tiny, scene(12, 8), 10, taken, 5)) <= 1
    assert drawn[1]["strength"] == strength and drawn[1]["init_img"] == "a.png" and drawn[1]["steps"] == 10


def test_the_command_line_of_compvis_runs(run, tiny):
    Image.fromarray(scene()).save("sketch.jpg")
    flags = ["--prompt", "A fantasy landscape, trending on artstation", "--init-img", "sketch.jpg", "--strength", 0.8]
    status, out, said = run(*flags, script=img2img)
    assert status == 0 and out[-1].startswith("2 pictures: in outputs/img2img-samples/samples, side by side in "), said
    assert len(list(Path("outputs/img2img-samples/samples").iterdir())) == 2


def test_flags_of_compvis_mean_what_they_meant():
    opt = img2img.parse([])
    assert (opt.strength, opt.n_iter, opt.n_samples, opt.seed, opt.n_rows) == (0.75, 1, 2, 42, 0)
    given = "--prompt p --init-img i --outdir o --skip_grid --skip_save --ddim_steps 20 --plms --fixed_code "
    given += "--ddim_eta 0 --n_iter 3 --C 4 --f 8 --n_samples 5 --n_rows 6 --scale 3 --strength 0.3 "
    given += "--config c --ckpt k --seed 1"
    opt = img2img.parse([*given.split(), "--precision", "autocast"])
    assert (opt.init_img, opt.strength, opt.ddim_steps, opt.sampler) == ("i", 0.3, 20, "ldm.sampling.PLMSSampler")


def test_the_scale_is_compvis_own_for_this_script_unless_the_config_says_one(i2i, tiny, tmp_path):
    config = OmegaConf.load(tiny[1])
    del config.sampler.params.unconditional_guidance_scale
    OmegaConf.save(config, "plain.yaml")
    plain = draw(lambda *flags: i2i(*flags, model=["--config", "plain.yaml", *tiny[2:]]), *ONE, out="a")[0][1]
    assert (plain["scale"], draw(i2i, *ONE, out="b")[0][1]["scale"]) == (5.0, 2.0)


def test_a_picture_is_the_same_alone_in_a_batch_and_in_another_batch_size(i2i):
    together = draw(i2i, "--seed", 10, "--n_samples", 3, "--n_iter", 2, "--ddim_eta", 1, out="together")
    alone = draw(i2i, "--seed", 14, *ONE, "--ddim_eta", 1, out="alone")
    assert len(together) == 6 and difference(together[4], alone[0]) <= 1 < difference(together[3], together[4])


# --------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("width, height", [(12, 8), (13, 9), (5, 30), (2, 2)])
def test_a_picture_of_any_size_comes_out_at_that_size(width, height, i2i):
    Image.fromarray(scene(width, height)).save("b.png")
    drawn = draw(i2i, "--init-img", "b.png", *ONE)[0]
    assert drawn[0].shape == (height, width, 3) and (drawn[1]["width"], drawn[1]["height"]) == (width, height)


def test_the_padding_is_cut_off_at_the_right_and_the_bottom(i2i, tiny):
    Image.fromarray(scene(11, 7)).save("b.png")
    wide = np.pad(scene(11, 7), ((0, 1), (0, 1), (0, 0)), mode="edge")
    drawn = draw(i2i, "--init-img", "b.png", *ONE, "--strength", 0.5, "--steps", 4, "--seed", 1)[0]
    assert far(drawn[0], np.asarray(by_hand(tiny, wide, 4, 2, 1))[:7, :11]) <= 1


@pytest.mark.parametrize(
    "flags, shape",
    [(["--H", 16, "--W", 20], (16, 20)), (["--H", 16], (16, 24)), (["--W", 6], (4, 6)), (["--H", 5], (5, 8))],
)
def test_the_picture_is_resized_on_request_and_one_side_alone_keeps_its_proportions(flags, shape, i2i):
    assert draw(i2i, *ONE, *flags)[0][0].shape == (*shape, 3)


def test_a_photograph_that_lies_on_its_side_is_drawn_upright(i2i):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(12, 8)).save("b.jpg", exif=exif)
    assert draw(i2i, "--init-img", "b.jpg", *ONE)[0][0].shape == (12, 8, 3)


def test_a_picture_much_larger_than_the_models_is_warned_of(i2i):
    Image.fromarray(scene(20, 16)).save("b.png")  # five times 8x8
    _, _, said = i2i("--init-img", "b.png", *ONE)
    assert len(said) == 1 and "warning: the picture 'b.png' is drawn at 20x16 pixels, 5 times the area" in said[0]
    assert not i2i("--init-img", "b.png", "--W", 16, "--H", 16, *ONE)[2]  # four times


# ------------------------------------------------------------------------------------------- other samplers and models


@pytest.mark.parametrize("flag, name", [("--plms", "PLMS"), ("--dpm_solver", "DPMSolver"), ("--dpm", "DPMSolver")])
def test_other_samplers_by_a_flag(flag, name, i2i):
    drawn, ddim = draw(i2i, *ONE, flag, out="a")[0], draw(i2i, *ONE, out="b")[0]
    assert drawn[1]["sampler"] == name and difference(drawn, ddim) > 0


def of_codes(params):
    """An autoencoder with a codebook, whose latents are a tensor and no Gaussian."""
    params["first_stage_config"]["target"] = "ldm.models.autoencoder.VQModelInterface"
    params["first_stage_config"]["params"]["n_embed"] = 64
    params["first_stage_config"]["params"]["ddconfig"]["double_z"] = False


def test_models_of_classes_of_nothing_and_of_codes_draw_from_a_picture_too(i2i, tmp_path):
    classes, nothing = written(tmp_path, of_classes, "classes"), written(tmp_path, unconditional, "nothing")
    codes = written(tmp_path, of_codes, "codes")
    for model, flags in ((classes, ["--prompt", 3]), (nothing, []), (codes, [])):
        status, _, said = i2i(*flags, *ONE, "--outdir", "out", model=model)
        assert (status, said) == (0, []), said
    status, _, said = i2i(*ONE, model=classes)
    assert status == 2 and "give a class number with --prompt" in said[0]


@pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout")
def test_the_bundled_model_changes_what_the_prompt_changes_and_leaves_the_rest_in_its_place(i2i):
    from ldm.data.shapes import Shapes

    picture, description = Shapes(7, test=True)[0]
    assert [(t.colour, t.shape) for t in description.things] == [("blue", "cross"), ("yellow", "circle")]
    Image.fromarray(picture).save("scene.png")
    prompt = ["--prompt", "a small yellow circle to the right of a red cross in front of a plain background"]
    flags = [*ONE, "--init-img", "scene.png", "--steps", 20]

    def things(strength):
        pixels = draw(lambda *given: i2i(*given, model=()), *flags, *prompt, "--strength", strength, out=f"{strength}")
        return pixels[0][0].astype(np.uint8), sorted(read_things(pixels[0][0].astype(np.uint8)), key=lambda t: t.x)

    before = sorted(read_things(picture), key=lambda t: t.x)
    same, _ = things(0.05)
    changed, after = things(0.6)
    assert np.abs(same.astype(int) - picture).mean() < 5 < np.abs(changed.astype(int) - picture).mean()
    assert [(t.colour, t.shape) for t in after] == [("red", "cross"), ("yellow", "circle")]
    assert all(abs(a.x - b.x) < 3 and abs(a.y - b.y) < 3 for a, b in zip(after, before, strict=True))
