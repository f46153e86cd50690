"""What a sampler's step costs when the network costs nothing: a null model, and the loop of each side round it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import sqrt
from statistics import median
from typing import Any

from bench.clock import timed_once

SHORT, LONG = 20, 120  # steps


class NullModel:
    """ldm.sampling.DiffusionModel that answers at once, with the same tensor each time."""

    num_timesteps = 1000

    def __init__(self, batch: int, latents: int, device: str = "cpu"):
        import torch

        self.betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device=device) ** 2
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        self.alphas_cumprod_prev = torch.cat([torch.ones_like(self.betas[:1]), self.alphas_cumprod[:-1]])
        self.outputs = {n: torch.randn(n, 4, latents, latents, device=device) for n in (batch, 2 * batch)}

    def apply_model(self, x, t, c):
        return self.outputs[len(x)]


def rounds(walk: Callable[[int], object], device: str, repeats: int) -> Callable[..., dict[str, Any]]:
    """The task's run. Without `steps`, seconds a step: the slope between a short and a long run, so that what a run
    costs once (`start`) is apart. With `steps`, seconds of a whole run of so many."""

    def run(steps: int | None = None) -> dict[str, Any]:
        if steps is not None:
            return {"times": [timed_once(lambda: walk(steps), device)[0] for _ in range(repeats)]}
        slopes, starts = [], []
        for _ in range(repeats):
            short, long = (timed_once(lambda n=n: walk(n), device)[0] for n in (SHORT, LONG))
            slopes.append((long - short) / (LONG - SHORT))
            starts.append(short - SHORT * slopes[-1])
        return {"times": [median(slopes)], "start": median(starts)}

    return run


def drain(steps: Iterable) -> None:
    for _ in steps:
        pass


def _tensors(batch: int, latents: int, device: str):
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, batch, 77, 768, generator=generator).to(device)


def ours(batch: int, latents: int, guidance: float, seeds: bool, repeats: int, device: str = "cpu"):
    """DDIMSampler.sample, with a seed for each picture or drawing from the global generator as CompVis' does."""
    from ldm.sampling import DDIMSampler

    cond, uncond = _tensors(batch, latents, device)
    sampler = DDIMSampler(NullModel(batch, latents, device))
    more = {"seeds": list(range(batch))} if seeds else {}
    if guidance != 1:
        more |= {"unconditional_guidance_scale": guidance, "unconditional_conditioning": uncond}
    shape = (4, latents, latents)
    return rounds(lambda n: sampler.sample(n, batch, shape, cond, verbose=False, **more), device, repeats)


def diffusers(batch: int, latents: int, guidance: float, repeats: int, device: str = "cpu"):
    """Its DDIMScheduler in the loop that its pipelines have."""
    import torch

    from bench.theirs import denoising, scheduler

    cond, uncond = _tensors(batch, latents, device)
    model, stepper = NullModel(batch, latents, device), scheduler()
    context = torch.cat([uncond, cond]) if guidance != 1 else cond

    def unet(x, t, encoder_hidden_states, return_dict):
        return (model.apply_model(x, t, encoder_hidden_states),)

    def walk(n: int):
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(batch, 4, latents, latents, generator=generator, device=device)
        drain(denoising(unet, stepper, n, x, context, guidance, generator))

    return rounds(torch.no_grad()(walk), device, repeats)


def bare(batch: int, latents: int, guidance: float, repeats: int, device: str = "cpu"):
    """The floor: the fewest tensor operations that make a deterministic DDIM step, into memory that is there."""
    import torch

    _tensors(batch, latents, device)
    model = NullModel(batch, latents, device)
    x = torch.randn(batch, 4, latents, latents, device=device)
    both, x0, eps = torch.cat([x, x]), torch.empty_like(x), torch.empty_like(x)
    alpha_bar = model.alphas_cumprod.tolist()

    def walk(n: int):
        for i in reversed(range(n)):
            a, a_prev = alpha_bar[i * 1000 // n], alpha_bar[max(i - 1, 0) * 1000 // n]
            if guidance != 1:
                torch.cat((x, x), out=both)
                uncond, cond = model.apply_model(both, None, None).chunk(2)
                torch.lerp(uncond, cond, guidance, out=eps)
            else:
                eps.copy_(model.apply_model(x, None, None))
            torch.add(x, eps, alpha=-sqrt(1 - a), out=x0).mul_(1 / sqrt(a))
            torch.mul(x0, sqrt(a_prev), out=x).add_(eps, alpha=sqrt(1 - a_prev))
        return x

    return rounds(torch.no_grad()(walk), device, repeats)


def original(batch: int, latents: int, guidance: float, repeats: int, device: str = "cpu"):
    """The operations that CompVis' step has, in our words: coefficients as tensors, and noise drawn in each step."""
    import torch

    cond, uncond = _tensors(batch, latents, device)
    model = NullModel(batch, latents, device)
    shape = (batch, 4, latents, latents)

    def walk(n: int):
        drain(original_steps(model, torch.randn(shape, device=device), cond, uncond, guidance, n))

    return rounds(torch.no_grad()(walk), device, repeats)


def original_steps(model, x, cond, uncond, guidance: float, n: int):
    """(x, eps) after each of n steps with eta 0."""
    import torch

    alpha_bar = model.alphas_cumprod.float()
    for i in reversed(range(n)):
        now, before = i * 1000 // n + 1, max((i - 1) * 1000 // n + 1, 0)
        t = torch.full((len(x),), now, device=x.device, dtype=torch.long)
        if guidance == 1:
            eps = model.apply_model(x, t, cond)
        else:
            twice = model.apply_model(torch.cat([x] * 2), torch.cat([t] * 2), torch.cat([uncond, cond]))
            without, given = twice.chunk(2)
            eps = without + guidance * (given - without)
        size = (len(x), 1, 1, 1)
        a = torch.full(size, alpha_bar[now], device=x.device)
        a_prev = torch.full(size, alpha_bar[before], device=x.device)
        sigma = torch.full(size, 0.0, device=x.device)
        rest = torch.full(size, (1 - alpha_bar[now]).sqrt(), device=x.device)
        x0 = (x - rest * eps) / a.sqrt()
        noise = sigma * torch.randn(x.shape, device=x.device) * 1.0
        x = a_prev.sqrt() * x0 + (1.0 - a_prev - sigma**2).sqrt() * eps + noise
        yield x, eps
