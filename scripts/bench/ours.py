"""Our side: the library, called as its scripts do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from bench import clock, weights
from bench.theirs import GUIDANCE


def model(folder: str, dtype: str, device: str, prepare: bool, compile: bool, only: str | None = None):
    """A LatentDiffusion with the folder's weights. `only`: the attribute of the one part that is measured.

    The two others are let go, as the peer's side has not loaded them.
    """
    import torch

    from ldm.checkpoint import load_model

    made = load_model(None, folder, device=device, dtype=getattr(torch, dtype)).requires_grad_(False)
    for part in ("model", "first_stage_model", "cond_stage_model"):
        if only not in (None, part):
            setattr(made, part, torch.nn.Identity())
    if prepare or compile:
        from ldm.checkpoint.mapped import release
        from ldm.modules.inference import prepare_for_inference

        prepare_for_inference(made, compile=compile, release=release)
    return made


def unet(folder: str, dtype: str, device: str = "cpu", prepare: bool = False, compile: bool = False):
    """Seconds of each guided step inside a run of the sampler, and the first step's prediction."""
    from ldm.sampling import DDIMSampler

    made = model(folder, dtype, device, prepare, compile, "model")
    sampler = DDIMSampler(made)

    def run(latents: int, batch: int, steps: int) -> dict[str, Any]:
        x, cond, uncond = (y.to(device) for y in weights.inputs(batch, latents, _context_width(made)))
        walk = sampler.steps(
            50, batch, x.shape[1:], cond.to(_dtype(dtype)), x_T=x, unconditional_guidance_scale=GUIDANCE,
            unconditional_conditioning=uncond.to(_dtype(dtype)),
        )  # fmt: skip
        found, first = clock.walked(walk, steps, device)
        walk.close()
        alpha_bar = float(made.alphas_cumprod[first.timestep])
        eps = (first.x_t - alpha_bar**0.5 * first.x0) / (1 - alpha_bar) ** 0.5
        return found | {"output": eps}

    return run


def original(folder: str, dtype: str, device: str = "cpu"):
    """As `unet`, but as CompVis' code computes: its loop, no fused attention, contiguous memory; our network's layers.

    An approximation of it, for want of the code itself: what else it does (einops' copies, gradient checkpointing) is
    left out, so that it is slower than this.
    """
    import torch

    from bench.overhead import original_steps

    made = model(folder, dtype, device, False, False, "model")

    @torch.no_grad()
    def run(latents: int, batch: int, steps: int) -> dict[str, Any]:
        x, cond, uncond = (y.to(device) for y in weights.inputs(batch, latents, _context_width(made)))
        with attention_written_out():
            walk = original_steps(made, x, cond, uncond, GUIDANCE, 50)
            found, first = clock.walked(walk, steps, device)
        return found | {"output": first[1]}

    return run


@contextmanager
def attention_written_out():
    """Inside, attention is softmax(q kᵀ) v with all of its matrix in memory."""
    import torch.nn.functional as F

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v

    fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def _dtype(name: str):
    import torch

    return getattr(torch, name)


def _context_width(made) -> int:
    """What the network's cross-attention reads a token as."""
    return made.model.diffusion_model.context_dim


def vae(folder: str, dtype: str, device: str = "cpu", prepare: bool = False, compile: bool = False):
    """Seconds of one decoding."""
    made = model(folder, dtype, device, prepare, compile, "first_stage_model")

    def run(latents: int, batch: int) -> dict[str, Any]:
        z = weights.inputs(batch, latents, 8)[0].to(device)
        seconds, pictures = clock.timed(lambda: made.decode_first_stage(z.to(_dtype(dtype))), device)
        return {"times": [seconds], "output": pictures}

    return run


def text(folder: str, dtype: str, device: str = "cpu", prepare: bool = False):
    """Seconds of encoding prompts that are tokens already."""
    import torch

    made = model(folder, dtype, device, prepare, False, "cond_stage_model")

    @torch.no_grad()
    def run(prompts: int) -> dict[str, Any]:
        tokens = weights.tokens(prompts).to(device)
        seconds, vectors = clock.timed(lambda: made.get_learned_conditioning(tokens), device)
        return {"times": [seconds], "output": vectors}

    return run


def txt2img(folder: str, dtype: str, device: str = "cpu", prepare: bool = False, compile: bool = False):
    """Seconds of a picture, from tokens on, as scripts/_session.py draws it."""
    import torch

    from ldm.sampling import DDIMSampler

    made = model(folder, dtype, device, prepare, compile)
    sampler = DDIMSampler(made)

    def draw(latents: int, batch: int, steps: int):
        cond, uncond = made.get_learned_conditioning(weights.tokens(2 * batch).to(device)).chunk(2)
        x = weights.inputs(batch, latents, 8)[0].to(device)
        z, _ = sampler.sample(
            steps, batch, x.shape[1:], cond, x_T=x, unconditional_guidance_scale=GUIDANCE,
            unconditional_conditioning=uncond, progress=False,
        )  # fmt: skip
        return (made.decode_first_stage(z.to(_dtype(dtype))) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def run(**params: int) -> dict[str, Any]:
        seconds, pictures = clock.timed(lambda: draw(**params), device)
        return {"times": [seconds], "output": pictures}

    return run
