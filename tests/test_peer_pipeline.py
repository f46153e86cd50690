"""Pipelines of diffusers load here, and ours there: networks agree to 1e-5, pictures to one grey level."""

import copy

import _diffusers as peer
import numpy as np
import pytest
import torch
from _ddpm_pipeline import BETAS, SMALL, generators, quiet, small_pipeline
from _networks import randn

from ldm.checkpoint.diffusers_options import Options
from ldm.checkpoint.diffusers_unet2d import params_of, unet2d_params, unet2d_weights
from ldm.modules.diffusionmodules.model import Model
from ldm.pipeline import DDIMPipeline
from ldm.sampling import DDIMScheduler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

DDPM = {  # what all networks of the DDPM paper have
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
SHAPES = {  # sample_size, block_out_channels, the level with attention
    "cifar10": (32, (128, 256, 256, 256), 1),
    "church": (256, (128, 128, 256, 256, 512, 512), 4),
    "small": (16, (32, 64, 64, 64), 1),
}
STEPS = 10


def unet2d(shape, **options):
    size, widths, attends = SHAPES[shape]
    down = ["AttnDownBlock2D" if i == attends else "DownBlock2D" for i in range(len(widths))]
    return diffusers.UNet2DModel(
        sample_size=size, block_out_channels=widths, down_block_types=down,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)], **DDPM | options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    unet = peer.randomized(unet2d("small"), 1)
    return quiet(diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(**BETAS)))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    theirs.save_pretrained(folder)
    return folder


def assert_networks_agree(ours, theirs):
    x, t = randn(2, ours.in_channels, ours.resolution, ours.resolution), torch.tensor([3, 901])
    with torch.no_grad():
        out, expected = ours(x, t), theirs(x, t).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def assert_pictures_agree(ours, theirs, seeds=(1, 2), **run):
    """Two pictures, with a generator each, or one for both."""
    run |= {"batch_size": 2, "num_inference_steps": STEPS, "output_type": "np"}
    pair = []
    for pipe in (ours, theirs):
        sources = generators(*seeds)
        pair.append(quiet(pipe)(generator=sources if len(sources) > 1 else sources[0], **run).images)
    levels = [(images * 255).round() for images in pair]
    assert levels[1].std() > 20  # pictures of something
    assert pair[0].shape == pair[1].shape and pair[0].dtype == pair[1].dtype
    assert np.abs(levels[0] - levels[1]).max() <= 1


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_pipeline_of_diffusers_draws_the_same_here(theirs, tmp_path, safe, eta):
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    ours = DDIMPipeline.from_pretrained(tmp_path)
    assert_networks_agree(ours.unet, theirs.unet)
    assert_pictures_agree(ours, theirs, eta=eta, seeds=(0,))
    assert_pictures_agree(ours, theirs, eta=eta, seeds=(1, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"clip_sample": False, "prediction_type": "v_prediction"},
        {"set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "squaredcos_cap_v2"},
        {"thresholding": True, "sample_max_value": 1.5, "prediction_type": "sample"},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=lambda options: "-".join(options),
)
def test_the_schedulers_options_are_heeded(theirs, tmp_path, options):
    other = quiet(diffusers.DDIMPipeline(theirs.unet, diffusers.DDIMScheduler(**BETAS | options)))
    other.save_pretrained(tmp_path)
    ours = DDIMPipeline.from_pretrained(tmp_path)
    assert_pictures_agree(ours, other, eta=0.5, use_clipped_model_output=True)


@pytest.mark.parametrize("kind", ["DDPM", "PNDM"])
def test_a_pipeline_of_another_scheduler_becomes_ddim_as_in_diffusers(theirs, tmp_path, kind):
    other = getattr(diffusers, f"{kind}Scheduler")(**BETAS)
    getattr(diffusers, f"{kind}Pipeline")(theirs.unet, other).save_pretrained(tmp_path)
    assert_pictures_agree(DDIMPipeline.from_pretrained(tmp_path), diffusers.DDIMPipeline.from_pretrained(tmp_path))
    assert_pictures_agree(DDIMPipeline(theirs.unet, other), diffusers.DDIMPipeline(theirs.unet, other))


def test_parts_of_diffusers_are_used_as_they_are(theirs, tmp_path):
    mixed = DDIMPipeline(copy.deepcopy(theirs.unet), copy.deepcopy(theirs.scheduler))
    assert isinstance(mixed.scheduler, diffusers.DDIMScheduler)
    assert_pictures_agree(mixed, theirs, eta=1.0)
    mixed.save_pretrained(tmp_path)
    assert_pictures_agree(DDIMPipeline.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("kind, grey", [("pil", 1), ("pt", 1 / 255)])
def test_pictures_have_the_same_form(theirs, folder, kind, grey):
    run = {"batch_size": 2, "num_inference_steps": 3, "output_type": kind}
    pair = [quiet(p)(generator=generators(0)[0], **run) for p in (DDIMPipeline.from_pretrained(folder), theirs)]
    ours, expected = (p.images for p in pair)
    if kind == "pt" and isinstance(expected, np.ndarray):
        pytest.skip("this diffusers gives arrays for 'pt'")
    assert type(ours) is type(expected) and type(ours[0]) is type(expected[0])
    for a, b in zip(ours, expected):
        assert np.shape(a) == np.shape(b)
        assert np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).max() <= grey


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ours_saved_draws_the_same_in_diffusers(tmp_path, eta):
    ours = small_pipeline(DDIMScheduler(**BETAS, clip_sample=False))
    ours.save_pretrained(tmp_path)
    theirs = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    assert type(theirs.scheduler) is diffusers.DDIMScheduler and not theirs.scheduler.config.clip_sample
    assert_networks_agree(ours.unet, theirs.unet)
    assert_pictures_agree(ours, theirs, eta=eta)


def test_a_network_goes_there_and_back_unchanged(theirs, folder, tmp_path):
    DDIMPipeline.from_pretrained(folder).save_pretrained(tmp_path)
    back = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    expected = theirs.unet.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in back.state_dict().items())
    config = {k: v for k, v in theirs.unet.config.items() if not k.startswith("_")}
    config["block_out_channels"] = list(config["block_out_channels"])
    assert {k: back.config[k] for k in config} == config


@pytest.mark.parametrize("shape", ["cifar10", "church"])
def test_every_weight_of_a_published_shape_has_its_place(shape, tmp_path):
    with torch.device("meta"):
        theirs = unet2d(shape)
    theirs.save_config(tmp_path)
    params = unet2d_params(Options(tmp_path / "config.json"))
    assert params["attn_resolutions"] == [16]
    with torch.device("meta"):
        ours = Model(**params)
    weights = unet2d_weights(theirs.state_dict(), params)
    expected = ours.state_dict()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in expected.items()}
    assert params_of(ours) == params


def test_a_head_as_wide_as_the_layer_is_one_head(tmp_path):
    theirs = peer.randomized(unet2d("small", attention_head_dim=64), 1)
    theirs.save_pretrained(tmp_path)
    assert_networks_agree(DDIMPipeline.from_pretrained(wrap(tmp_path), scheduler=DDIMScheduler(**BETAS)).unet, theirs)


def wrap(folder):
    """A network alone, as the unet of a pipeline in the first layout."""
    (folder / "model_index.json").write_text('{"_class_name": "DDIMPipeline"}')
    return folder


@pytest.mark.parametrize("options", [{"dropout": 0.2}, {"in_channels": 1, "out_channels": 1}], ids=str)
def test_other_options_are_carried_over(tmp_path, options):
    theirs = peer.randomized(unet2d("small", **options), 1)
    theirs.save_pretrained(tmp_path)
    ours = DDIMPipeline.from_pretrained(wrap(tmp_path), scheduler=DDIMScheduler(**BETAS)).unet
    assert_networks_agree(ours, theirs)
    assert ours.mid.block_1.dropout.p == options.get("dropout", 0.0)


def test_the_embedding_is_diffusers_with_its_options_of_then():
    from diffusers.models.embeddings import get_timestep_embedding as expected

    from ldm.modules.diffusionmodules.model import get_timestep_embedding

    t = torch.tensor([0.0, 0.5, 1, 500, 999])
    torch.testing.assert_close(get_timestep_embedding(t, 32), expected(t, 32, False, 1), rtol=0, atol=0)


def test_a_larger_network_of_ours_is_one_of_theirs(tmp_path):
    """More levels with attention, and a width that does not double."""
    options = SMALL | {"ch_mult": (1, 3, 3), "attn_resolutions": [8, 2], "num_res_blocks": 3}
    ours = small_pipeline(**options)
    ours.save_pretrained(tmp_path)
    assert_networks_agree(ours.unet, diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet"))
