"""The networks that are measured, with random weights: written once as a pipeline folder, which both sides read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {  # Stable Diffusion 1.5
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},  # the others are the default
        "vae": {
            "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
            "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    },
    "tiny": {
        "unet": {
            "sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": 4, "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1,
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        "vae": {
            "block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 16,
            "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    },
}  # fmt: skip
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],  # named for the readers that look; prompts come as tokens here
    "scheduler": ["diffusers", "DDIMScheduler"],
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}


def write_folder(folder: str, shape: str) -> dict[str, int]:
    """Write the folder; for the worker of diffusers. Returns the number of weights of each part."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from bench.theirs import scheduler

    shapes, counts = SHAPES[shape], {}
    makers = {
        "unet": lambda: UNet2DConditionModel(**shapes["unet"]),
        "vae": lambda: AutoencoderKL(**shapes["vae"]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**shapes["text"])),
    }
    for seed, (name, make) in enumerate(makers.items()):
        with torch.device("meta"):  # weights are drawn once, below
            part = make()
        part.to_empty(device="cpu")
        counts[name] = randomize(part, seed)
        part.save_pretrained(Path(folder, name))
    scheduler().save_pretrained(Path(folder, "scheduler"))
    Path(folder, "model_index.json").write_text(json.dumps(_INDEX))
    return counts


def randomize(part, seed: int) -> int:
    """Draw all weights; none stays at zero or one, or what starts there would change nothing. Returns how many."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in part.named_parameters():
            p.normal_(generator=generator)
            if p.ndim > 1:
                p.mul_(0.02 if "embedding.weight" in name else p[0].numel() ** -0.5)
            else:
                p.mul_(0.1).add_(name.endswith("weight"))
    return sum(p.numel() for p in part.parameters())


def write_checkpoint(folder: str, path: str) -> int:
    """The folder's weights as a .ckpt in CompVis' layout, its config beside it; for our worker. Returns its size."""
    from ldm.checkpoint import save_checkpoint
    from ldm.checkpoint.diffusers_folder import load_folder

    config, weights = load_folder(folder)
    save_checkpoint(weights, path)
    Path(path).with_suffix(".json").write_text(json.dumps(config))
    return Path(path).stat().st_size


def tokens(prompts: int):
    """(prompts, 77) token numbers as of captions: begin, words, the end and padding with it."""
    import torch

    found = torch.full((prompts, 77), 49407)
    found[:, 0] = 49406
    found[:, 1:12] = torch.randint(0, 49000, (prompts, 11), generator=torch.Generator().manual_seed(2))
    return found


def inputs(batch: int, latents: int, width: int):
    """(x_T, cond, uncond) in float32 on the CPU, the same for both sides."""
    import torch

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 4, latents, latents, generator=generator)
    cond, uncond = torch.randn(2, batch, 77, width, generator=generator)
    return x, cond, uncond
