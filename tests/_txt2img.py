"""What the tests of scripts/txt2img.py share: the config of a tiny model, and how to draw with it."""

from pathlib import Path

import numpy as np
from PIL import Image

from ldm.image import read_settings

WORDS = "a red blue green circle square above".split()
CONFIG = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 100, "image_size": 4, "channels": 4,
            "conditioning_key": "crossattn", "use_ema": False,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    "image_size": 4, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
                    "attention_resolutions": [1], "channel_mult": [1, 2], "num_heads": 2, "legacy": False,
                    "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 16,
                },
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {
                        "double_z": True, "z_channels": 4, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32,
                        "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
                    },
                },
            },
            "cond_stage_config": {
                "target": "ldm.modules.encoders.caption.CaptionEncoder",
                "params": {"vocabulary": WORDS, "width": 16, "layers": 1, "heads": 2, "max_length": 8},
            },
        },
    },
    "precision": "full",
    "sampler": {"target": "ldm.sampling.DDIMSampler", "params": {"S": 4, "unconditional_guidance_scale": 2.0}},
}  # fmt: skip


def draw(run, *flags, out="out"):
    """Run it, expect success, and return (pixels, settings) of each picture in order."""
    prompt = [] if "--from-file" in flags else ["--prompt", "a red circle"]
    status, _, said = run(*prompt, "--skip_grid", "--outdir", out, *flags)
    assert status == 0, said
    paths = sorted(Path(out, "samples").glob("*.png"))
    return [(np.asarray(Image.open(path)).astype(int), read_settings(path)) for path in paths]


def difference(one, other):
    """The largest, in grey levels, between two (pixels, settings)."""
    return abs(one[0] - other[0]).max()
