"""diffusers' and transformers' side: its networks, loaded and called as its pipelines do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import clock, weights

GUIDANCE = 7.5


def scheduler():
    """DDIM as Stable Diffusion 1's pipelines configure it."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1,
        clip_sample=False,
    )  # fmt: skip


def denoising(unet, stepper, steps: int, x, context, guidance: float, generator=None):
    """The loop of its pipelines, step by step: (latents, the guided prediction). `context`: uncond and cond, joined."""
    import torch

    stepper.set_timesteps(steps, device=x.device)
    for t in stepper.timesteps:
        both = torch.cat([x] * 2) if guidance != 1 else x
        both = stepper.scale_model_input(both, t)
        eps = unet(both, t, encoder_hidden_states=context, return_dict=False)[0]
        if guidance != 1:
            uncond, cond = eps.chunk(2)
            eps = uncond + guidance * (cond - uncond)
        x = stepper.step(eps, t, x, eta=0.0, generator=generator, return_dict=False)[0]
        yield x, eps


def _options(folder: str, dtype: str) -> dict[str, Any]:
    import torch

    return {"pretrained_model_name_or_path": folder, "torch_dtype": getattr(torch, dtype), "local_files_only": True}


def _ready(network, channels_last: bool, compile: str | None, device: str, fused: bool = False):
    """A network as a user of diffusers makes it fast; `compile`: "default", "frozen", or another mode."""
    import torch

    network = network.eval().requires_grad_(False).to(device)
    if fused:
        network.fuse_qkv_projections()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    if compile:
        import torch._inductor.config

        torch._inductor.config.freezing = compile != "default" and not device.startswith("cuda")
        mode = None if compile in ("default", "frozen") else compile
        network.forward = torch.compile(network.forward, fullgraph=True, mode=mode)
    return network


def unet(
    folder: str, dtype: str, device: str = "cpu", channels_last: bool = False, fused: bool = False,
    compile: str | None = None,
):  # fmt: skip
    """Seconds of each guided step, and the first step's prediction."""
    import torch
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel.from_pretrained(**_options(str(Path(folder, "unet")), dtype))
    network, stepper = _ready(network, channels_last, compile, device, fused), scheduler()

    @torch.no_grad()
    def run(latents: int, batch: int, steps: int) -> dict[str, Any]:
        x, cond, uncond = weights.inputs(batch, latents, network.config.cross_attention_dim)
        x, context = (y.to(device, getattr(torch, dtype)) for y in (x, torch.cat([uncond, cond])))
        walk = denoising(network, stepper, 50, x, context, GUIDANCE)
        found, first = clock.walked(walk, steps, device)
        return found | {"output": first[1]}

    return run


def vae(folder: str, dtype: str, device: str = "cpu", channels_last: bool = False, compile: str | None = None):
    """Seconds of one decoding."""
    import torch
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(**_options(str(Path(folder, "vae")), dtype))
    network.decoder = _ready(network.decoder, channels_last, compile, device)
    network = network.eval().to(device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def run(latents: int, batch: int) -> dict[str, Any]:
        z = weights.inputs(batch, latents, 8)[0].to(device, getattr(torch, dtype))
        seconds, pictures = clock.timed(
            lambda: network.decode(z / network.config.scaling_factor, return_dict=False)[0], device
        )
        return {"times": [seconds], "output": pictures}

    return run


def text(folder: str, dtype: str, device: str = "cpu"):
    """Seconds of encoding prompts that are tokens already."""
    import torch
    from transformers import CLIPTextModel

    path, name = str(Path(folder, "text_encoder")), "sdpa"
    network = CLIPTextModel.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation=name)
    network = network.eval().to(device)

    @torch.no_grad()
    def run(prompts: int) -> dict[str, Any]:
        tokens = weights.tokens(prompts).to(device)
        seconds, vectors = clock.timed(lambda: network(tokens)[0], device)
        return {"times": [seconds], "output": vectors}

    return run


def pipeline(folder: str, dtype: str):
    from diffusers import StableDiffusionPipeline

    none = {"tokenizer": None, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline.from_pretrained(**_options(folder, dtype), **none)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def txt2img(
    folder: str, dtype: str, device: str = "cpu", channels_last: bool = False, fused: bool = False,
    compile: str | None = None,
):  # fmt: skip
    """Seconds of a picture by StableDiffusionPipeline, from tokens on."""
    import torch

    pipe = pipeline(folder, dtype).to(device)
    pipe.unet = _ready(pipe.unet, channels_last, compile, device, fused)
    if channels_last:
        pipe.vae = pipe.vae.to(memory_format=torch.channels_last)

    def draw(latents: int, batch: int, steps: int):
        encoded = pipe.text_encoder(weights.tokens(2 * batch).to(device))[0]
        x = weights.inputs(batch, latents, 8)[0].to(device, getattr(torch, dtype))
        return pipe(
            prompt_embeds=encoded[:batch], negative_prompt_embeds=encoded[batch:], latents=x, guidance_scale=GUIDANCE,
            num_inference_steps=steps, output_type="pt", height=latents * pipe.vae_scale_factor,
            width=latents * pipe.vae_scale_factor,
        ).images  # fmt: skip

    @torch.no_grad()
    def run(**params: int) -> dict[str, Any]:
        seconds, pictures = clock.timed(lambda: draw(**params), device)
        return {"times": [seconds], "output": pictures}

    return run
