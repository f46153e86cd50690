"""Text to pictures: sample a latent-diffusion model for a prompt, or for a file of prompts.

    python scripts/txt2img.py --prompt "a red circle above a blue square"
    python scripts/txt2img.py --from-file prompts.txt --n_samples 8 --n_iter 1
    python scripts/txt2img.py --ckpt sd-v1-4.ckpt --prompt "a photo of an astronaut"
    python scripts/txt2img.py --config CONFIG.yaml --ckpt WEIGHTS --prompt "…" sampler.params.eta=0.5

Every picture has a seed of its own, so it is the same alone, in a batch, and in another batch size; its PNG tells it
with the other settings. The last line printed says where the pictures are.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

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
    text, prompts = _cli.a_text, group.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", type=text, help=f"what to draw; of a class-conditional model, a number (default: {PROMPT})"
    )
    prompts.add_argument(
        "--from-file",
        type=_cli.a_path,
        help="draw each line of this file once in each iteration, instead of --prompt",
    )
    group.add_argument(
        "--negative_prompt", type=text, default="", help="what to keep out: takes the place of the empty prompt"
    )
    _cli.add_sampling_flags(parser)
    _cli.add_size_flags(parser)
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/txt2img-samples")
    return parser.parse_intermixed_args(argv)


def plan(prompts: Sequence[str], opt: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(prompt, seed) of every picture in its order: `prompts` once in each iteration."""
    for iteration in range(opt.n_iter):
        for k, prompt in enumerate(prompts):
            offset = k % opt.n_samples if opt.fixed_code else iteration * len(prompts) + k
            yield prompt, opt.seed + offset


def batches(jobs: Iterator[tuple[str, int]], size: int) -> Iterator[list[tuple[str, int]]]:
    """`size` jobs at a time, and at last those that are left."""
    while batch := list(itertools.islice(jobs, size)):
        yield batch


def guided(options: dict) -> bool:
    return options["unconditional_guidance_scale"] != 1 or options.get("ucg_schedule") is not None


def sample(model, sampler, jobs: Sequence[tuple[str, int]], shape: tuple, cond, uncond, options: dict, progress=True):
    """The pictures of a batch of (prompt, seed), (B, 3, H, W) in about [-1, 1]."""
    try:
        latents, _ = sampler.sample(
            batch_size=len(jobs),
            shape=shape,
            conditioning=cond,
            unconditional_conditioning=uncond,
            seeds=[seed for _, seed in jobs],
            progress=progress,
            **options,
        )
    except FloatingPointError as error:  # its remedy is the library's; here there is a flag
        raise ValueError(_machine.overflow(model, str(error).partition(",")[0])) from error
    return _machine.decode(model, latents)


def settings(opt: argparse.Namespace, sampler: type, options: dict, model: dict[str, Any], dtype) -> dict:
    """What a picture's file tells beside its prompt and seed; of the model, what `_model.open_model` says."""
    names = {"S": "steps", "unconditional_guidance_scale": "scale"}
    return {
        "negative_prompt": opt.negative_prompt,
        "sampler": sampler.__name__.removesuffix("Sampler"),
        **model,
        "precision": str(dtype).removeprefix("torch."),
        **{names.get(key, key): value for key, value in options.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    lines = None if opt.from_file is None else _cli.read_prompts(opt.from_file)
    gallery = _cli.Gallery(opt.outdir, save=not opt.skip_save, grid=not opt.skip_grid)
    config, checkpoint, source = _model.open_model(opt)
    kind = _model.told_by(config)
    shape = _config.latent_shape(config, opt.H, opt.W, opt.C, opt.f)

    import torch
    from tqdm import tqdm

    from ldm.checkpoint import load_model

    device = _machine.pick_device(opt.device)
    dtype = _machine.pick_dtype(opt.precision or config.precision, device)
    sampler_class = _config.sampler_class(config)
    built, options = _config.sampler_options(config, sampler_class, opt)
    prompts = lines or [PROMPT if opt.prompt is None else opt.prompt] * opt.n_samples
    if kind == "nothing":
        options, prompts = _model.unguided(options, opt), [""] * opt.n_samples
    if kind == "class":
        _model.check_classes(config, lines or [opt.prompt], opt.negative_prompt, guided(options))
    if opt.negative_prompt and not guided(options):
        warnings.warn("--negative_prompt has no effect with --scale 1, which is no guidance", stacklevel=1)
    model = load_model(config, checkpoint, device=device, dtype=dtype, ema=opt.ema)
    del checkpoint  # where the model has copies of its weights, the file need not stay in memory
    sampler = sampler_class(model, **built)
    made = settings(opt, sampler_class, {**built, **options}, source, dtype)

    count = -(-opt.n_iter * len(prompts) // opt.n_samples)
    parts = tqdm(batches(plan(prompts, opt), opt.n_samples), desc="batches", total=count, disable=count == 1)
    with torch.no_grad(), model.ema_scope(), gallery:
        for batch in parts:
            told = [prompt for prompt, _ in batch]
            cond, uncond = _model.conditionings(model, kind, told, opt.negative_prompt, guided(options))
            images = sample(model, sampler, batch, shape, cond, uncond, options)
            gallery.add(images, [{"prompt": prompt, "seed": seed, **made} for prompt, seed in batch])
    print(gallery.finish(opt.n_rows or opt.n_samples))


if __name__ == "__main__":
    _cli.run(main, "txt2img")
