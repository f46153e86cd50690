"""A small diffusion model that attends to a text, in float64, and one call of the sampler on it."""

import torch
from _networks import golden_weights, randn

from ldm.models.diffusion.base import DDPM
from ldm.sampling import DDIMSampler

UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": [2], "channel_mult": [1, 2], "num_heads": 2, "use_spatial_transformer": True,
    "context_dim": 12,
}  # fmt: skip
SHAPE = (4, 8, 8)
X_T = randn(2, *SHAPE).double()


def text(seed, batch=2):
    return randn(batch, 5, 12, seed=seed).double()


def text_model(key="crossattn", kind=DDPM, **unet):
    config = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": UNET | unet}
    model = kind(config, timesteps=100, use_ema=False, conditioning_key=key)
    golden_weights(model.model)
    return model.eval().double()


def sampled(model, s=3, sampler=None, **options):
    """With guidance, unless told; float64."""
    options = {
        "conditioning": text(1), "unconditional_conditioning": text(2), "unconditional_guidance_scale": 3.0,
        "x_T": X_T, "progress": False,
    } | options  # fmt: skip
    batch = len(X_T if options["x_T"] is None else options["x_T"])
    return (sampler or DDIMSampler(model)).sample(s, batch, SHAPE, **options)[0]


def apart(model, **options):
    """As `sampled`, with nothing shared between the conditionings."""
    model.share_latents = lambda conds: None
    try:
        return sampled(model, **options)
    finally:
        del model.share_latents


def counted(model, monkeypatch):
    """The batch that the U-Net's first convolution sees in each of its calls; nothing is there that could be seen."""
    batches, first = [], model.model.diffusion_model.input_blocks[0][0]
    convolve = torch.nn.functional.conv2d

    def conv2d(x, weight, *rest):
        if weight is first.weight:
            batches.append(len(x))
        return convolve(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    return batches


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
