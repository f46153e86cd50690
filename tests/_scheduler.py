"""A smooth denoiser whose answers are formulas, and runs of a scheduler on it: diffusers' or ours."""

import torch
from _mixture import randn

from ldm.sampling import DDIMScheduler

B, SHAPE = 2, (1, 2, 2)
MEAN = torch.tensor([[[1.4, -0.6], [0.3, -1.1]]], dtype=torch.float64)
STD = 0.5
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = {**SD, "clip_sample": False}
KINDS = ("epsilon", "sample", "v_prediction")


def denoiser(x, a, kind):
    """Nearly the exact one for N(MEAN, STD²) at ᾱ = a; a ripple keeps eps from being exactly x at ᾱ = 0."""
    residual, variance = x - a**0.5 * MEAN.to(x), a * STD**2 + 1 - a
    ripple = 0.1 * torch.sin(2 * x + 0.3)
    x0 = MEAN.to(x) + a**0.5 * STD**2 / variance * residual + ripple
    eps = (1 - a) ** 0.5 / variance * residual + ripple
    return {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}[kind]


def start(dtype=torch.float64, seed=0):
    return randn(B, *SHAPE, seed=seed).to(dtype)


def scheduler(s=10, cls=DDIMScheduler, **options):
    """One of Stable Diffusion's noise levels, without clipping unless told, ready for S steps."""
    made = cls(**{**PLAIN, **options})
    made.set_timesteps(s)
    return made


def trajectory(scheduler, x, eta=0.0, alpha_bar=None, noise=None, **step):
    """The sample after each step, (S, *x.shape); the scheduler's timesteps are set. `noise`: (S, *x.shape)."""
    alpha_bar = scheduler.alphas_cumprod.tolist() if alpha_bar is None else alpha_bar
    taken = []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        output = denoiser(x, alpha_bar[t], scheduler.config.prediction_type)
        given = noise[i].to(x) if eta and noise is not None else None
        x = scheduler.step(output, t, x, eta=eta, variance_noise=given, **step).prev_sample
        taken.append(x)
    return torch.stack(taken)
