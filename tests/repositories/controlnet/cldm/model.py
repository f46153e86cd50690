import os

import torch
from omegaconf import OmegaConf

from ldm.util import allow_targets, instantiate_from_config

allow_targets("cldm")  # ldm: a config may name only what is allowed by name


def get_state_dict(d):
    return d.get("state_dict", d)


def load_state_dict(ckpt_path, location="cpu"):
    _, extension = os.path.splitext(ckpt_path)
    if extension.lower() == ".safetensors":
        import safetensors.torch

        return get_state_dict(safetensors.torch.load_file(ckpt_path, device=location))
    return get_state_dict(torch.load(ckpt_path, map_location=torch.device(location)))


def create_model(config_path):
    config = OmegaConf.load(config_path)
    return instantiate_from_config(config.model).cpu()
