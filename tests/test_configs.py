"""Every config against the released checkpoint that it is for: the same keys and shapes, and the same numbers."""

import functools

import _config
import pytest
import torch
from _released import LDM, RELEASED, SD, facts
from omegaconf import OmegaConf

from ldm.checkpoint.recognise import config_path
from ldm.util import instantiate_from_config

NAMES = sorted(str(p.relative_to(_config.ROOT / "configs"))[:-5] for p in (_config.ROOT / "configs").glob("*/*.yaml"))
NUMBERS = {  # our config → the hyper-parameters that it must agree with
    **{name: fact for name, fact in RELEASED.items() if not name.startswith(f"{SD}/v2-inference")},
    f"{SD}/v2-inference": "sd-v2",
    f"{SD}/v2-inference-v": "sd-v2-v",
    f"{SD}/v2-midas-inference": "sd-v2-depth",
    f"{SD}/x4-upscaling": "sd-x4-upscaling",
    f"{LDM}/ffhq-ldm-vq-4": "ldm-ffhq-vq-4",
}
OF_THE_TRAINER = {"num_timesteps_cond", "log_every_t", "finetune_keys", "loss_type"}  # left out of our configs


@functools.cache
def load(name):
    return _config.load_config(config_path(name))


@functools.cache
def keys(name):
    """{key: shape} of the model's weights, without what checkpoints may lack (schedule, averages)."""
    with torch.device("meta"):
        model = instantiate_from_config(load(name).model)
    weights = ("model.", "first_stage_model.", "cond_stage_model.")
    return {k: list(v.shape) for k, v in model.state_dict().items() if k.startswith(weights)}


def flat(node, path=""):
    if not isinstance(node, dict):
        return {path: node}
    return {p: v for key, value in node.items() for p, v in flat(value, f"{path}.{key}").items()}


def weights_of(name):
    """A released checkpoint's, without the constant (0, 1, 2, …) that older text encoders saved."""
    return {k: shape for k, shape in facts(name).items() if not k.endswith(".position_ids")}


def differences(a, b):
    return {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}


def test_there_is_a_config_for_every_released_model():
    assert set(NAMES) == set(NUMBERS) | {f"{SD}/v1-inpainting-inference"}


@pytest.mark.parametrize("name", RELEASED)
def test_the_model_has_the_keys_and_shapes_of_the_released_checkpoint(name):
    assert differences(keys(name), weights_of(RELEASED[name])) == {}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_are_those_of_the_released_model(name):
    said = flat(OmegaConf.to_container(load(name).model))
    known = flat(facts("configs")[NUMBERS[name]])
    known = {path: value for path, value in known.items() if path.rpartition(".")[2] not in OF_THE_TRAINER}
    if name == f"{SD}/v2-inference-v":
        known[".params.image_size"] = 96  # ours says the size of the pictures that it was trained for
    assert differences(said, known) == {}


FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("name", "like", "channels"),
    [("v1-inpainting-inference", "sd-v1", 9), ("v2-midas-inference", "sd-v2-v", 5)],
)
def test_a_model_that_is_shown_a_picture_differs_in_its_first_layer_alone(name, like, channels):
    known = weights_of(like)
    assert differences(keys(f"{SD}/{name}"), known) == {FIRST: ([320, channels, 3, 3], known[FIRST])}


def test_the_upscaler_has_the_text_encoder_of_v2_and_embeds_its_noise_level():
    ours, v2 = keys(f"{SD}/x4-upscaling"), weights_of("sd-v2-v")
    text = {k: v for k, v in v2.items() if k.startswith("cond_stage_model.")}
    assert {k: v for k, v in ours.items() if k.startswith("cond_stage_model.")} == text
    assert ours["model.diffusion_model.label_emb.weight"] == [1000, 1024]
    assert ours[FIRST] == [256, 7, 3, 3]
    # Where self-attention is disabled, the transformer attends to the text twice.
    attention = "transformer_blocks.0.attn1.to_k.weight"
    assert ours[f"model.diffusion_model.input_blocks.4.1.{attention}"] == [512, 1024]
    assert ours[f"model.diffusion_model.middle_block.1.{attention}"] == [1024, 1024]
    assert not any("encoder.down.3." in k for k in ours)


def test_models_that_differ_in_their_pictures_alone_have_the_same_keys():
    assert keys(f"{LDM}/ffhq-ldm-vq-4") == keys(f"{LDM}/celebahq-ldm-vq-4")


@pytest.mark.parametrize("name", NAMES)
def test_scripts_read_the_sizes_and_the_samplers_options(name):
    config = load(name)
    channels, height, width = _config.latent_shape(config, None, None, None, None)
    params = config.model.params
    assert (channels, height, width) == (params.channels, params.image_size, params.image_size)
    levels = len(params.first_stage_config.params.ddconfig.ch_mult)
    side = {"v2-inference-v": 768, "x4-upscaling": 512}.get(name.split("/")[1], 512 if name.startswith(SD) else 256)
    assert height * 2 ** (levels - 1) == side
    options, none = config.sampler.params, {"unconditional_guidance_scale": 1.0}
    assert hasattr(_config.sampler_class(config), "sample") and set(options) <= set(none)
    assert params.cond_stage_config != "__is_unconditional__" or options == none  # there is nothing to guide by


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_says_which_file_a_config_is_for(name):
    first = config_path(name).read_text().splitlines()[0]
    assert first.startswith("# ") and (".ckpt" in first or ".safetensors" in first)
