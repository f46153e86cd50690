"""Text to pictures: sample a latent-diffusion model for a prompt, or for a file of prompts.

    python scripts/txt2img.py --prompt "a red circle above a blue square"
    python scripts/txt2img.py --from-file prompts.txt --n_samples 8 --n_iter 1
    python scripts/txt2img.py --config CONFIG.yaml --ckpt WEIGHTS --prompt "…" sampler.params.eta=0.5

Every picture has a seed of its own, so it is the same alone, in a batch, and in another batch size; its PNG tells it
with the other settings. The last line printed says where the pictures are.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import _cli
import _config
import _machine
import _model

PROMPT = "a red circle above a blue square"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser(
        "txt2img", description=__doc__.partition("\n\n")[0], epilog=_config.__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompt", help=f"what to draw; of a class-conditional model, a number (default: {PROMPT})")
    group.add_argument("--from-file", help="draw each line of this file once in each iteration, instead of --prompt")
    group.add_argument("--negative_prompt", default="", help="what to keep out: takes the place of the empty prompt")
    _cli.add_sampling_flags(parser)
    _cli.add_size_flags(parser)
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/txt2img-samples")
    return parser.parse_intermixed_args(argv)


def plan(prompts: Sequence[str], opt: argparse.Namespace) -> list[tuple[str, int]]:
    """(prompt, seed) of every picture in its order: `prompts` once in each iteration."""
    jobs = []
    for iteration in range(opt.n_iter):
        for k, prompt in enumerate(prompts):
            offset = k % opt.n_samples if opt.fixed_code else iteration * len(prompts) + k
            jobs.append((prompt, opt.seed + offset))
    return jobs


def guided(options: dict) -> bool:
    return options["unconditional_guidance_scale"] != 1 or options.get("ucg_schedule") is not None


def sample(model, sampler, jobs: Sequence[tuple[str, int]], shape: tuple, cond, uncond, options: dict, progress=True):
    """The pictures of a batch of (prompt, seed), (B, 3, H, W) in about [-1, 1]."""
    latents, _ = sampler.sample(
        batch_size=len(jobs),
        shape=shape,
        conditioning=cond,
        unconditional_conditioning=uncond,
        seeds=[seed for _, seed in jobs],
        progress=progress,
        **options,
    )
    return _machine.decode(model, latents)


def settings(opt: argparse.Namespace, sampler: type, options: dict, ckpt: str, dtype) -> dict:
    """What a picture's file tells beside its prompt and seed."""
    names = {"S": "steps", "unconditional_guidance_scale": "scale"}
    return {
        "negative_prompt": opt.negative_prompt,
        "sampler": sampler.__name__.removesuffix("Sampler"),
        "model": Path(ckpt).stem,
        "precision": str(dtype).removeprefix("torch."),
        **{names.get(key, key): value for key, value in options.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    prompts = _cli.read_prompts(opt.from_file) if opt.from_file else [opt.prompt or PROMPT] * opt.n_samples
    config, checkpoint, ckpt = _model.open_model(opt)
    kind = _model.told_by(config)
    shape = _config.latent_shape(config, opt.H, opt.W, opt.C, opt.f)

    import torch
    from tqdm import tqdm

    from ldm.checkpoint import load_model

    device = _machine.pick_device(opt.device)
    precision = opt.precision or config.get("precision", "auto")
    dtype = _machine.pick_dtype(precision, device)
    sampler_class = _config.sampler_class(config)
    built, options = _config.sampler_options(config, sampler_class, opt)
    if kind == "nothing":
        options, prompts = _model.unguided(options, opt), [""] * opt.n_samples
    if opt.negative_prompt and not guided(options):
        warnings.warn("--negative_prompt has no effect with --scale 1, which is no guidance", stacklevel=1)
    gallery = _cli.Gallery(opt.outdir, save=not opt.skip_save, grid=not opt.skip_grid)
    model = load_model(config, checkpoint, device=device, dtype=dtype, ema=opt.ema)
    del checkpoint  # where the model has copies of its weights, the file need not stay in memory
    sampler = sampler_class(model, **built)
    made = settings(opt, sampler_class, {**built, **options}, ckpt, dtype)

    jobs = plan(prompts, opt)
    batches = [jobs[k : k + opt.n_samples] for k in range(0, len(jobs), opt.n_samples)]
    with torch.no_grad(), model.ema_scope(), gallery:
        for batch in tqdm(batches, desc="batches", disable=len(batches) == 1):
            told = [prompt for prompt, _ in batch]
            cond, uncond = _model.conditionings(model, kind, told, opt.negative_prompt, guided(options))
            images = sample(model, sampler, batch, shape, cond, uncond, options)
            gallery.add(images, [{"prompt": prompt, "seed": seed, **made} for prompt, seed in batch])
    print(gallery.finish(opt.n_rows or opt.n_samples))


if __name__ == "__main__":
    _cli.run(main, "txt2img")
