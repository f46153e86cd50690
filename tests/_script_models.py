"""Tiny models of every kind that the scripts know, with random weights, in files as a user has them."""

import copy
import struct
import zlib

import torch
from _txt2img import CONFIG
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ldm.util import instantiate_from_config


def written(folder, change, name="other", target="LatentDiffusion"):
    """The flags that choose a tiny model that differs from CONFIG in its params, with random weights."""
    config = copy.deepcopy(CONFIG)
    config["model"]["target"] = f"ldm.models.diffusion.ddpm.{target}"
    change(config["model"]["params"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = instantiate_from_config(config["model"]).state_dict()
        # Where the original starts at zero, noise: else neither the caption nor the noise level would change anything.
        weights = {k: torch.randn_like(v) * 0.1 if v.ndim > 1 and not v.any() else v for k, v in weights.items()}
    OmegaConf.save(OmegaConf.create(config), folder / f"{name}.yaml")
    save_file(weights, folder / f"{name}.safetensors")
    return ["--config", str(folder / f"{name}.yaml"), "--ckpt", str(folder / f"{name}.safetensors"), "--device", "cpu"]


def unconditional(params):
    params["cond_stage_config"] = "__is_unconditional__"
    del params["conditioning_key"]
    unet = params["unet_config"]["params"]
    for key in ("use_spatial_transformer", "transformer_depth", "context_dim"):
        del unet[key]


def of_classes(params):
    target = "ldm.modules.encoders.modules.ClassEmbedder"
    params["cond_stage_config"] = {"target": target, "params": {"n_classes": 1001, "embed_dim": 16}}


def of_as_many_classes_as_imagenet(params):
    of_classes(params)
    del params["cond_stage_config"]["params"]["n_classes"]


def beside_a_picture(params):
    params["conditioning_key"] = "hybrid"
    params["unet_config"]["params"]["in_channels"] = 9


def of_filling_by_concat(params):
    """As LDM's inpainting model: a VQ autoencoder, which also encodes the picture with the hole."""
    unconditional(params)
    params |= {"concat_mode": True, "cond_stage_config": "__is_first_stage__", "cond_stage_key": "masked_image"}
    params["unet_config"]["params"]["in_channels"] = 9
    stage = params["first_stage_config"]
    stage["target"] = "ldm.models.autoencoder.VQModelInterface"
    stage["params"] |= {"n_embed": 64}
    stage["params"]["ddconfig"]["double_z"] = False


def of_depth(params):
    params["conditioning_key"] = "hybrid"
    params["unet_config"]["params"]["in_channels"] = 5


def of_upscaling(params):
    params["conditioning_key"] = "hybrid-adm"
    params["unet_config"]["params"] |= {"in_channels": 7, "num_classes": 1000}
    params["low_scale_config"] = {
        "target": "ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation",
        "params": {"noise_schedule_config": {"linear_start": 1e-4, "linear_end": 2e-2}, "max_noise_level": 350},
    }


def vast_png(path, width=20000, height=20000):
    """A PNG of which only the header is there: what looks at the size first needs no more."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
