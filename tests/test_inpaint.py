"""scripts/inpaint.py: what is kept comes out bit for bit, the hole is drawn, and each kind of model sees what it was
trained to see."""

from pathlib import Path

import _inpainting
import inpaint
import numpy as np
import pytest
import torch
from _picture_files import far, scene
from _script_models import beside_a_picture, of_filling_by_concat, written
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import load_model
from ldm.image import read_settings, to_pil
from ldm.picture_files import to_tensor
from ldm.sampling import DDIMSampler

PROMPT = ["--prompt", "a red circle"]


@pytest.fixture(scope="session")
def models(tiny, tmp_path_factory):
    """The flags of a tiny model of each way."""
    folder = tmp_path_factory.mktemp("inpainting")
    hybrid = written(folder, beside_a_picture, "hybrid", target="LatentInpaintDiffusion")
    return {"masking": tiny, "concat": written(folder, of_filling_by_concat, "concat"), "hybrid": hybrid}


@pytest.fixture
def fill(run, tiny):
    """Run the script, expect success: (pixels, settings) of the pictures in a folder by name, and what is said."""

    def fill(*flags, model=tiny, out="out"):
        status, _, said = run(*flags, "--outdir", out, model=model, script=inpaint)
        assert status == 0, said
        files = sorted(Path(out).glob("*.png"), key=lambda path: path.stem)
        return {path.stem: (np.asarray(Image.open(path)), read_settings(path)) for path in files}, said

    return fill


def a_hole(width, height):
    hole = np.zeros((height, width), bool)
    hole[height // 4 : height // 2 + 1, width // 3 : width // 2 + 2] = True
    return hole


def write(name, width=12, height=8, hole=None):
    """NAME.png and NAME_mask.png, white in the hole; returns (pixels, hole)."""
    hole = a_hole(width, height) if hole is None else hole
    Image.fromarray(scene(width, height)).save(f"{name}.png")
    Image.fromarray(hole).save(f"{name}_mask.png")
    return scene(width, height), hole


def flags_of(name):
    return ["--init-img", f"{name}.png", "--mask", f"{name}_mask.png"]


@pytest.mark.parametrize("way", ["masking", "concat", "hybrid"])
@pytest.mark.parametrize("width, height", [(12, 8), (13, 9), (5, 17)])
def test_what_is_kept_is_identical_and_the_hole_is_drawn(way, width, height, fill, models):
    pixels, hole = write("a", width, height)
    drawn, said = fill(*flags_of("a"), model=models[way])
    assert list(drawn) == ["a"] and drawn["a"][0].shape == (height, width, 3)
    assert np.array_equal(drawn["a"][0][~hole], pixels[~hole])
    assert far(drawn["a"][0][hole], pixels[hole]) > 2
    assert said == ["inpaint: white in a mask is the hole, drawn anew (--white keep turns that round)"]


@pytest.mark.parametrize("flag", ["--plms", "--dpm_solver"])
def test_other_samplers_keep_it_too(flag, fill):
    pixels, hole = write("a")
    drawn, ddim = fill(*flags_of("a"), *PROMPT, flag, out="a")[0]["a"], fill(*flags_of("a"), *PROMPT, out="b")[0]["a"]
    assert np.array_equal(drawn[0][~hole], pixels[~hole]) and far(drawn[0][hole], ddim[0][hole]) > 0


def test_the_picture_of_a_rotated_transparent_file_is_kept_as_it_is_seen(fill):
    from ldm.picture_files import read_picture

    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.concatenate([scene(12, 8), np.full((8, 12, 1), 90, np.uint8)], -1)
    Image.fromarray(pixels).save("a.png", exif=exif)
    Image.fromarray(a_hole(8, 12)).save("m.png")
    drawn = fill("--init-img", "a.png", "--mask", "m.png")[0]["a"][0]
    assert np.array_equal(drawn[~a_hole(8, 12)], np.asarray(read_picture("a.png"))[~a_hole(8, 12)])


# ----------------------------------------------------------------------------------------- what each kind of model sees


def loaded(flags):
    return load_model(OmegaConf.load(flags[1]), flags[3])


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_masking_all_cells_without_a_pixel_of_the_hole_are_kept_and_others_by_their_share_of_it(tiny):
    """Relative to the cell with the most of it, which is free at all steps."""
    model, hole = loaded(tiny), a_hole(12, 8)
    x, holes = to_tensor(Image.fromarray(scene(12, 8))), torch.from_numpy(hole)[None, None].float()
    shown, given = _inpainting.shown_and_given(model, "masking", x, holes)
    free = [[hole[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(6)] for i in range(4)]
    assert not shown and given["gradual_mask"] and given["mask"].tolist() == [[(1 - np.array(free)).tolist()]]
    assert {0.0, 0.5, 1.0} == {float(m) for m in given["mask"].flatten()}
    thin = torch.zeros_like(holes)
    thin[..., 3, 4:7] = 1  # two pixels of a cell, and one of the next
    mask = _inpainting.shown_and_given(model, "masking", x, thin)[1]["mask"]
    assert mask[0, 0, 1].tolist() == [1, 1, 0, 0.5, 1, 1] and mask.sum() == 24 - 1.5
    torch.testing.assert_close(given["x0"], model.encode_first_stage(x).mode())


def test_by_masking_the_hole_is_what_the_sampler_draws_around_the_pictures_latents(fill, tiny):
    pixels, hole = write("a")
    drawn = fill(*flags_of("a"), *PROMPT, "--seed", 7)[0]["a"][0]
    model = loaded(tiny)
    free = torch.from_numpy(hole.reshape(4, 2, 6, 2).mean((1, 3))).float()[None, None]
    with torch.no_grad():
        x0 = model.encode_first_stage(to_tensor(Image.fromarray(pixels))).mode()
        cond, uncond = (model.get_learned_conditioning([text]) for text in ("a red circle", ""))
        z, _ = DDIMSampler(model).sample(
            4, 1, (4, 4, 6), cond, mask=1 - free / free.max(), x0=x0, gradual_mask=True, blend_final=True, seeds=[7],
            unconditional_guidance_scale=2.0, unconditional_conditioning=uncond, progress=False,
        )  # fmt: skip
        expected = np.asarray(to_pil(model.decode_first_stage(z))[0])
    assert far(drawn[hole], expected[hole]) <= 1


def test_concat_sees_black_in_the_hole_and_a_mask_from_minus_one_to_one(models):
    """LDM's conventions: the picture from 0 to 1 times (1 − mask), then both brought to [−1, 1]."""
    model, pixels, hole = loaded(models["concat"]), scene(12, 8), a_hole(12, 8)
    x, holes = to_tensor(Image.fromarray(pixels)), torch.from_numpy(hole)[None, None].float()
    shown, given = _inpainting.shown_and_given(model, "concat", x, holes)
    masked = torch.from_numpy(pixels / 255 * (1 - hole[..., None])).float().permute(2, 0, 1)[None] * 2 - 1
    (seen,) = shown["c_concat"]
    assert not given and seen.shape == (1, 5, 4, 6)
    torch.testing.assert_close(seen[:, :4], model.first_stage_model.encode(masked), atol=1e-5, rtol=1e-5)
    assert torch.equal(seen[:, 4:], holes[..., ::2, ::2] * 2 - 1)


def test_hybrid_sees_the_mask_from_zero_to_one_and_grey_in_the_hole_as_in_training(models):
    """Against the model's own `get_input`, whose autoencoder here has no variance, so that its sample is its mean."""
    model, pixels, hole = loaded(models["hybrid"]), scene(12, 8), a_hole(12, 8)
    model.first_stage_model.quant_conv.weight.data[4:] = 0
    model.first_stage_model.quant_conv.bias.data[4:] = -60
    x, holes = to_tensor(Image.fromarray(pixels)), torch.from_numpy(hole)[None, None].float()
    batch = {"image": x.permute(0, 2, 3, 1), "caption": ["a red circle"], "mask": holes.permute(0, 2, 3, 1)}
    batch["masked_image"] = batch["image"] * (batch["mask"] < 0.5)
    shown, given = _inpainting.shown_and_given(model, "hybrid", x, holes)
    (theirs,) = model.get_input(batch, "image", cond_key="caption")[1]["c_concat"]
    assert not given and theirs.shape == (1, 5, 4, 6)
    torch.testing.assert_close(shown["c_concat"][0], theirs)


@pytest.mark.parametrize("way", ["concat", "hybrid"])
def test_what_is_drawn_is_what_the_network_says_of_what_it_is_shown(way, fill, models):
    pixels, hole = write("a")
    drawn = fill(*flags_of("a"), *(PROMPT if way == "hybrid" else []), "--seed", 7, model=models[way])[0]["a"][0]
    model = loaded(models[way])
    x, holes = to_tensor(Image.fromarray(pixels)), torch.from_numpy(hole)[None, None].float()
    with torch.no_grad():
        shown, _ = _inpainting.shown_and_given(model, way, x, holes)
        guidance = {}
        if way == "hybrid":
            cond, uncond = (
                {**shown, "c_crossattn": [model.get_learned_conditioning([text])]} for text in ("a red circle", "")
            )
            guidance = {"unconditional_guidance_scale": 2.0, "unconditional_conditioning": uncond}
        else:
            cond = shown["c_concat"][0]  # as CompVis' script gives it
        z, _ = DDIMSampler(model).sample(4, 1, (4, 4, 6), cond, x_T=noise((1, 4, 4, 6), 7), progress=False, **guidance)
        expected = np.asarray(to_pil(model.decode_first_stage(z))[0])
    assert far(drawn[hole], expected[hole]) <= 1


def test_with_a_strength_the_hole_is_drawn_from_what_was_in_it(fill, tiny, models):
    pixels, hole = write("a")
    other = np.where(hole[..., None], 255 - pixels, pixels)  # the same around another hole
    Image.fromarray(other).save("b.png")
    for way in models:
        told = [] if way == "concat" else PROMPT

        def drawn(name, *flags, model=models[way], told=told):
            out = f"{model[3][-12:]}{name}{flags}"
            return fill("--init-img", f"{name}.png", "--mask", "a_mask.png", *told, *flags, model=model, out=out)[0][
                name
            ]

        weak = drawn("a", "--strength", 0.5)
        assert weak[1]["strength"] == 0.5
        assert far(weak[0][hole], drawn("b", "--strength", 0.5)[0][hole]) > 2
        if way != "masking":  # from noise, what was in the hole is no matter
            assert far(drawn("a")[0][hole], drawn("b")[0][hole]) == 0


def test_the_prompt_and_the_negative_prompt_reach_a_hybrid_model(fill, models):
    write("a")
    prompts = [[], PROMPT, [*PROMPT, "--negative_prompt", "a blue square"]]
    plain, red, other = (
        fill(*flags_of("a"), *prompt, model=models["hybrid"], out=f"{k}")[0]["a"][0] for k, prompt in enumerate(prompts)
    )
    assert far(plain, red) > 0 and far(red, other) > 0


def test_a_concat_model_says_that_a_prompt_has_no_effect(fill, models):
    write("a")
    for flags in (PROMPT, ["--scale", 3]):
        said = fill(*flags_of("a"), *flags, model=models["concat"])[1]
        assert any("warning: this model is told nothing" in line for line in said)


def test_a_hole_in_every_cell_is_warned_of(fill):
    write("a", hole=np.indices((8, 12)).sum(0) % 2 == 0)
    said = fill(*flags_of("a"))[1]
    assert any("warning: each latent holds a pixel of the hole" in line for line in said)


# -------------------------------------------------------------------------------------------------- masks, names, seeds


def test_a_picture_much_larger_than_the_models_is_warned_of_once(fill):
    write("b", 20, 16)  # five times 8x8
    said = fill(*flags_of("b"))[1]
    assert sum("times the area that this model was made for" in line for line in said) == 1


def test_white_may_mean_what_is_kept(fill):
    pixels, hole = write("a")
    Image.fromarray(~hole).save("turned.png")
    one = fill(*flags_of("a"), *PROMPT, out="1")[0]["a"]
    other, said = fill("--init-img", "a.png", "--mask", "turned.png", "--white", "keep", *PROMPT, out="2")
    assert np.array_equal(one[0], other["a"][0]) and (one[1]["white"], other["a"][1]["white"]) == ("hole", "keep")
    assert said == ["inpaint: white in a mask is kept (--white hole turns that round)"]


def test_results_are_named_by_their_picture_and_nothing_is_written_over(fill):
    write("a")
    Path("out").mkdir()
    for name in ("a", "a-2"):
        Image.new("RGB", (1, 1)).save(f"out/{name}.png")
    drawn, _ = fill(*flags_of("a"), "--n_samples", 2, "--n_iter", 2)
    assert list(drawn) == ["a", "a-1", "a-2", "a-3", "a-4", "a-5"]
    assert [made.get("seed") for _, made in drawn.values()] == [None, 42, None, 43, 44, 45]


def test_a_results_settings_make_it_again(fill):
    write("a")
    drawn = fill(*flags_of("a"), *PROMPT, "--n_samples", 3, "--ddim_eta", 0.5, "--strength", 0.8)[0]["a-2"]
    made = drawn[1]
    assert (made["init_img"], made["mask"], made["white"], made["strength"]) == ("a.png", "a_mask.png", "hole", 0.8)
    again = fill(
        "--init-img", made["init_img"], "--mask", made["mask"], "--white", made["white"], "--prompt", made["prompt"],
        "--strength", made["strength"], "--seed", made["seed"], "--steps", made["steps"], "--scale", made["scale"],
        "--ddim_eta", made["eta"], out="again",
    )[0]["a"]  # fmt: skip
    assert far(drawn[0], again[0]) <= 1 and made == again[1]


# ------------------------------------------------------------------------------------------------------------- a folder


def test_the_command_line_of_compvis_runs(run, models):
    folder = Path("data/inpainting_examples")
    folder.mkdir(parents=True)
    for name, size in (("bench2", (12, 8)), ("photo", (9, 13))):
        write(f"{folder}/{name}", *size)
    flags = ["--indir", "data/inpainting_examples/", "--outdir", "outputs/inpainting_results"]
    status, out, said = run(*flags, model=models["concat"], script=inpaint)
    assert (status, out) == (0, ["2 pictures: in outputs/inpainting_results"]) and len(said) == 1
    assert [path.name for path in sorted(Path("outputs/inpainting_results").iterdir())] == ["bench2.png", "photo.png"]
    opt = inpaint.parse([*flags, "--steps", "7"])
    assert opt.ddim_steps == 7


def test_a_picture_comes_out_of_a_folder_as_it_does_alone(fill):
    Path("in").mkdir()
    for name, size in (("in/a", (12, 8)), ("in/b", (9, 13))):
        write(name, *size)
    together = fill("--indir", "in", *PROMPT, out="1")[0]
    alone = fill(*flags_of("in/b"), *PROMPT, out="2")[0]
    assert list(together) == ["a", "b"] and np.array_equal(together["b"][0], alone["b"][0])
    assert together["b"][1] == alone["b"][1]


def test_a_mask_may_be_a_file_of_another_kind_and_pictures_without_one_are_named(fill):
    Path("in").mkdir()
    write("in/a")
    Path("in/a.png").rename("in/x.png")
    Image.open("in/x.png").save("in/a.JPG", quality=95)
    drawn, said = fill("--indir", "in")
    assert list(drawn) == ["a"] and drawn["a"][1]["init_img"] == "a.JPG"
    assert "inpaint: warning: no masks, so left out: x.png" in said


def test_of_two_pictures_of_one_name_each_has_the_mask_of_its_kind(fill):
    Path("in").mkdir()
    write("in/a")
    for name in ("a", "a_mask"):
        Image.open(f"in/{name}.png").convert("RGB").save(f"in/{name}.bmp")
    drawn, _ = fill("--indir", "in")
    told = {(made["init_img"], made["mask"]) for _, made in drawn.values()}
    assert told == {("a.bmp", "a_mask.bmp"), ("a.png", "a_mask.png")} and list(drawn) == ["a", "a-1"]
