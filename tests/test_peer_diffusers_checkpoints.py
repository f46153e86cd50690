"""A checkpoint saved here loads with diffusers and computes the same: networks to 1e-4, a picture to one grey level."""

import shutil

import _diffusers as peer
import pytest
import torch
from _networks import randn
from omegaconf import OmegaConf

from ldm.checkpoint import load_model, save_checkpoint
from ldm.checkpoint.diffusers_folder import load_folder
from ldm.util import instantiate_from_config

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:the prompt .* was cut:UserWarning")  # a long one is cut, as there


def config(version):
    """As a YAML of CompVis', small."""
    name, text = {
        "v1": ("FrozenCLIPEmbedder", {"text_config": {
            "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}}),
        "v2-v": ("FrozenOpenCLIPEmbedder", {"layer": "penultimate", "text_config": {
            "width": 32, "heads": 2, "layers": 24, "embed_dim": 32}}),
    }[version]  # fmt: skip
    heads = {"v1": {"num_heads": 4}, "v2-v": {"num_head_channels": 16, "use_linear_in_transformer": True}}[version]
    unet = {
        "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1, 2],
        "num_res_blocks": 1, "channel_mult": [1, 2, 2], **heads, "use_spatial_transformer": True,
        "transformer_depth": 1, "context_dim": 32, "use_checkpoint": False, "legacy": False,
    }  # fmt: skip
    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    params = {
        "parameterization": "v" if version == "v2-v" else "eps", "linear_start": 0.00085, "linear_end": 0.012,
        "timesteps": 1000, "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 8, "channels": 4,
        "conditioning_key": "crossattn", "scale_factor": 0.2, "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": ddconfig}
        },
        "cond_stage_config": {"target": f"ldm.modules.encoders.modules.{name}", "params": text},
    }  # fmt: skip
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


@pytest.fixture(scope="module")
def template(folder, tmp_path_factory):
    """The pipeline folder without its weights: diffusers takes CLIP's size, the tokenizer and the scheduler from it."""
    template = tmp_path_factory.mktemp("template")
    shutil.copytree(folder, template, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    return template


def from_single_file(path, config, template):
    OmegaConf.save(OmegaConf.create(config), path.with_suffix(".yaml"))
    return diffusers.StableDiffusionPipeline.from_single_file(
        str(path), original_config=str(path.with_suffix(".yaml")), config=str(template), local_files_only=True,
        safety_checker=None, feature_extractor=None,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_checkpoint_saved_here_loads_with_diffusers(pipe, template, tmp_path, suffix):
    ours = config(pipe.version)
    model = peer.randomized(instantiate_from_config(ours["model"]), 5)
    save_checkpoint(model, tmp_path / f"model{suffix}")
    theirs = from_single_file(tmp_path / f"model{suffix}", ours, template)
    assert theirs.vae.config.scaling_factor == 0.2
    peer.assert_networks_agree(model, theirs)
    peer.assert_pictures_agree(model, theirs)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_networks_load_from_a_checkpoint_saved_here(pipe, tmp_path, suffix):
    ours = config(pipe.version)
    model = peer.randomized(instantiate_from_config(ours["model"]), 5)
    path = str(tmp_path / f"model{suffix}")
    save_checkpoint(model, path)
    unet = diffusers.UNet2DConditionModel.from_single_file(path, original_config=ours)
    x, t, context = randn(2, 4, 8, 8), torch.tensor([3, 901]), randn(2, 77, 32, seed=1)
    peer.close(model.apply_model(x, t, context), unet(x, t, context).sample)
    vae = diffusers.AutoencoderKL.from_single_file(path, original_config=ours)
    peer.close(model.first_stage_model.decode(x), vae.decode(x).sample)


def test_a_pipeline_survives_the_way_here_and_back(pipe, folder, template, tmp_path):
    """diffusers' folder → this library → a checkpoint in CompVis' layout → diffusers."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(load_model(None, folder), path)
    back = from_single_file(path, load_folder(folder)[0], template)
    for name in ("unet", "vae", "text_encoder"):
        peer.assert_same_weights(getattr(back, name).state_dict(), getattr(pipe, name).state_dict())
