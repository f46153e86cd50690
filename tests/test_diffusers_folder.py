"""A diffusers pipeline folder, without diffusers: the config that its files say, and what is wrong with a bad one."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing.pipeline_folder import SD2, UPSCALER, write
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ldm.checkpoint.diffusers_folder import load_folder
from ldm.checkpoint.diffusers_keys import autoencoder_weights, unet_weights
from ldm.sampling.schedule import rescale_zero_terminal_snr
from ldm.util import instantiate_from_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def without_diffusers(monkeypatch):
    """A folder is read by its files alone."""
    for name in ("diffusers", "transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)


def load(folder, *changes):
    """The config's target and params."""
    config, _ = load_folder(write(folder, *changes) if changes else folder)
    return config["model"]["target"].rpartition(".")[2], config["model"]["params"]


def released(name):
    return OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "stable-diffusion" / f"{name}.yaml"))["model"]


# ------------------------------------------------------------------------------------------------- what the JSON says


@pytest.mark.parametrize(
    "name, files", [("v1-inference", {}), ("v2-inference-v", SD2), ("x4-upscaling", UPSCALER)], ids=["v1", "v2-v", "x4"]
)
def test_the_config_is_that_of_the_released_model(tmp_path, name, files):
    target, params = load(tmp_path, files)
    expected = released(name)
    assert target == expected["target"].rpartition(".")[2]
    for key in (
        "linear_start",
        "linear_end",
        "timesteps",
        "conditioning_key",
        "scale_factor",
        "image_size",
        "channels",
    ):
        assert params[key] == expected["params"][key], key
    assert params["parameterization"] == expected["params"].get("parameterization", "eps")
    unet, theirs = params["unet_config"]["params"], expected["params"]["unet_config"]["params"]
    unet = {"disable_middle_self_attn": False, **unet, "attention_resolutions": sorted(unet["attention_resolutions"])}
    for key in theirs.keys() - {"image_size", "use_checkpoint", "use_fp16", "attention_resolutions"}:
        assert unet[key] == theirs[key], key
    assert unet["attention_resolutions"] == sorted(theirs["attention_resolutions"])
    vae, theirs = (p["first_stage_config"]["params"] for p in (params, expected["params"]))
    assert vae["embed_dim"] == theirs["embed_dim"]
    assert {**vae["ddconfig"], "resolution": 256} == theirs["ddconfig"]
    assert params["cond_stage_config"]["target"] == expected["params"]["cond_stage_config"]["target"]


@pytest.mark.parametrize("name, files", [("sd-v1", {}), ("sd-v2-v", SD2)], ids=["v1", "v2-v"])
def test_the_model_has_the_released_keys_and_shapes(tmp_path, name, files):
    config, _ = load_folder(write(tmp_path, files))
    with torch.device("meta"):
        model = instantiate_from_config(config["model"])
    own = {k: list(v.shape) for k, v in model.state_dict().items() if "model." in k}
    keys = json.loads(gzip.decompress((ROOT / "tests/golden/checkpoint_keys" / f"{name}.json.gz").read_bytes()))
    assert own == {k: v for k, v in keys.items() if not k.endswith("position_ids")}


def test_the_picture_beside_the_latent_says_which_model_it_is(tmp_path):
    targets = {4: "LatentDiffusion", 9: "LatentInpaintDiffusion", 8: "LatentDiffusion", 5: "LatentDepth2ImageDiffusion"}
    for channels, target in targets.items():
        found, params = load(tmp_path, {"unet/config.json": {"in_channels": channels}})
        assert (found, params["conditioning_key"]) == (target, "crossattn" if channels == 4 else "hybrid")


@pytest.mark.parametrize("theirs, ours", [("linear", "sqrt_linear"), ("squaredcos_cap_v2", "cosine")])
def test_beta_schedules_have_other_names(tmp_path, theirs, ours):
    _, params = load(tmp_path, {"scheduler/scheduler_config.json": {"beta_schedule": theirs}})
    assert params["beta_schedule"] == ours


def test_a_zero_terminal_snr_schedule_is_given_by_its_betas(tmp_path):
    betas = np.linspace(1e-4, 2e-2, 50)
    given = {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": True}
    _, params = load(tmp_path, {"scheduler/scheduler_config.json": given})
    np.testing.assert_allclose(params["given_betas"], rescale_zero_terminal_snr(betas))
    assert params["timesteps"] == 50 and params["given_betas"][-1] == 1


@pytest.mark.parametrize(
    "act, pad, embedder",
    [
        ("quick_gelu", "<|endoftext|>", "FrozenCLIPEmbedder"),
        ("gelu", "<|endoftext|>", "FrozenCLIPEmbedder"),
        ("gelu", {"content": "!", "special": True}, "FrozenOpenCLIPEmbedder"),
        ("quick_gelu", "!", "FrozenOpenCLIPEmbedder"),
        ("quick_gelu", None, "FrozenCLIPEmbedder"),
        ("gelu", None, "FrozenOpenCLIPEmbedder"),
    ],
)
def test_prompts_are_padded_as_the_tokenizer_pads_them(tmp_path, act, pad, embedder):
    tokenizer = {f"tokenizer/{name}.json": {"pad_token": pad} for name in ("special_tokens_map", "tokenizer_config")}
    write(tmp_path, {"text_encoder/config.json": {"hidden_act": act}, **tokenizer})
    _, params = load(tmp_path)
    encoder = params["cond_stage_config"]
    assert encoder["target"].endswith(f".{embedder}")
    with torch.device("meta"):
        built = instantiate_from_config(encoder)
    network = built.transformer if embedder == "FrozenCLIPEmbedder" else built.model
    assert network.config.activation == act


def test_added_words_are_loaded_and_named(tmp_path):
    with pytest.warns(UserWarning, match="2 words were added"):
        _, params = load(tmp_path, {"text_encoder/config.json": {"vocab_size": 49410}})
    assert params["cond_stage_config"]["params"]["text_config"]["vocab_size"] == 49410


# ---------------------------------------------------------------------------------------------------------- weights


def unet_weight(folder):
    return load_folder(folder)[1]["model.diffusion_model.input_blocks.0.0.weight"]


def put(folder, name, value):
    weights = {"conv_in.weight": torch.full((1,), float(value))}
    path = folder / "unet" / name
    save_file(weights, path) if name.endswith("safetensors") else torch.save(weights, path)


def test_plain_weights_go_before_variants_and_safetensors_before_bin(tmp_path):
    write(tmp_path)
    names = [  # worst first
        "diffusion_pytorch_model.non_ema.bin",
        "diffusion_pytorch_model.fp16.bin",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.safetensors",
    ]
    (tmp_path / "unet" / names[-1]).unlink()
    for value, name in enumerate(names):
        put(tmp_path, name, value)
        assert unet_weight(tmp_path) == value, name


@pytest.mark.parametrize("index", ["safetensors.index.json", "safetensors.index.fp16.json", "bin.index.json"])
def test_shards_are_joined(tmp_path, index):
    write(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    suffix = index.partition(".")[0]
    part = (
        "diffusion_pytorch_model.fp16-0000{}-of-00002." if "fp16" in index else "diffusion_pytorch_model-0000{}-of-2."
    )
    shards = {"conv_in.weight": part.format(1) + suffix, "conv_out.weight": part.format(2) + suffix}
    for value, (key, name) in enumerate(shards.items()):
        path = tmp_path / "unet" / name
        (save_file if suffix == "safetensors" else torch.save)({key: torch.full((1,), float(value))}, path)
    (tmp_path / "unet" / f"diffusion_pytorch_model.{index}").write_text(json.dumps({"weight_map": shards}))
    weights = load_folder(tmp_path)[1]
    assert weights["model.diffusion_model.input_blocks.0.0.weight"] == 0
    assert weights["model.diffusion_model.out.2.weight"] == 1


def test_weights_are_renamed_not_copied():
    params = {"channel_mult": [1, 2], "num_res_blocks": [1, 2], "attention_resolutions": [2]}
    theirs = {"up_blocks.0.upsamplers.0.conv.bias": torch.zeros(1), "up_blocks.1.resnets.1.conv1.bias": torch.ones(1)}
    ours = unet_weights(theirs, params)
    assert list(ours) == ["output_blocks.2.2.conv.bias", "output_blocks.4.0.in_layers.2.bias"]
    assert all(a is b for a, b in zip(ours.values(), theirs.values()))
    matrix = torch.zeros(3, 3)
    ours = autoencoder_weights(
        {"decoder.mid_block.attentions.0.query.weight": matrix}, {"ch_mult": [1], "num_res_blocks": 1}
    )
    ((key, value),) = ours.items()
    assert key == "decoder.mid.attn_1.q.weight" and value.shape == (3, 3, 1, 1)
    assert value.data_ptr() == matrix.data_ptr()
