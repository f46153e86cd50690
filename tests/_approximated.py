"""What the tests of the approximations share: a small network, a small model, and a guided run of it."""

import copy

import torch
from _networks import golden_weights, randn
from _txt2img import CONFIG

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.sampling import DDIMSampler
from ldm.util import instantiate_from_config

UNET = CONFIG["model"]["params"]["unet_config"]["params"]
SHAPE = (4, 8, 8)
X, CONTEXT = randn(2, 4, 8, 8), randn(2, 5, 16, seed=1)


@torch.no_grad()
def small_network(**changes):
    return golden_weights(UNetModel(**{**UNET, **changes}))


@torch.no_grad()
def small_model():
    model = instantiate_from_config(copy.deepcopy(CONFIG["model"])).eval()
    golden_weights(model.model)
    return model


def ask(network, t, x=X, context=CONTEXT):
    return network(x, torch.full((len(x),), t), context)


def sample(model, sampler=DDIMSampler, steps=6, **options):
    cond, uncond = randn(2, 5, 16, seed=3), randn(2, 5, 16, seed=4)
    return sampler(model).sample(
        steps, 2, SHAPE, cond, unconditional_conditioning=uncond, unconditional_guidance_scale=3.0, x_T=X, eta=0.0,
        progress=False, **options,
    )[0]  # fmt: skip
