"""Copies of what the released checkpoints hold, and which config is for which."""

import gzip
import json
from pathlib import Path

FACTS = Path(__file__).parent / "golden" / "checkpoint_keys"
SD, LDM = "stable-diffusion", "latent-diffusion"
RELEASED = {  # our config → the checkpoint whose keys are known
    f"{SD}/v1-inference": "sd-v1",
    f"{SD}/v2-inference": "sd-v2-v",
    f"{SD}/v2-inference-v": "sd-v2-v",
    f"{SD}/v2-inpainting-inference": "sd-v2-inpainting",
    f"{LDM}/txt2img-1p4B-eval": "ldm-text2img-large",
    f"{LDM}/celebahq-ldm-vq-4": "ldm-celebahq-vq-4",
    f"{LDM}/lsun_bedrooms-ldm-vq-4": "ldm-lsun-beds",
    f"{LDM}/lsun_churches-ldm-kl-8": "ldm-lsun-churches-kl-8",
    f"{LDM}/cin256-v2": "ldm-cin256-v2",
    f"{LDM}/inpainting_big": "ldm-inpainting-big",
}


def facts(name):
    """{key: shape} of a released checkpoint, or with "configs" {name: config}."""
    with gzip.open(FACTS / f"{name}.json.gz") as file:
        return json.load(file)
