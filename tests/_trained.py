"""A small model to train, batches for it, and its loss where nothing is drawn."""

import torch
from _networks import randn
from test_conditioning import CAPTIONS, IDENTITY

from ldm.models.diffusion.ddpm import LatentDiffusion

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 4, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [1],
        "num_res_blocks": 1, "channel_mult": [1], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 8,
    },
}  # fmt: skip
SETTINGS = {
    "first_stage_config": IDENTITY, "cond_stage_config": CAPTIONS, "unet_config": UNET, "timesteps": 100,
    "conditioning_key": "crossattn", "cond_stage_key": "txt", "first_stage_key": "jpg", "image_size": 4, "channels": 3,
}  # fmt: skip
BATCHES = [{"jpg": randn(4, 4, 4, 3, seed=k).tanh(), "txt": ["a", "star", "a star", ""]} for k in range(3)]


def build(cls=LatentDiffusion, **settings):
    torch.manual_seed(0)
    return cls(**{**SETTINGS, **settings})


@torch.no_grad()
def fixed_loss(model):
    """On one batch, at fixed timesteps, with fixed noise."""
    z, c = model.get_input(BATCHES[0], "jpg", force_c_encode=True)
    return model.p_losses(z, c, torch.tensor([5, 30, 60, 95]), randn(4, 3, 4, 4, seed=9))[0].item()
