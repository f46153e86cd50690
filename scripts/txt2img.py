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
from collections.abc import Sequence

import _cli
import _config
from _gallery import Gallery
from _session import Session

PROMPT = "a red circle above a blue square"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("txt2img", doc=__doc__)
    _cli.add_prompt_flags(parser, PROMPT)
    _cli.add_sampling_flags(parser)
    _cli.add_size_flags(parser)
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/txt2img-samples")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    lines = None if opt.from_file is None else _cli.read_prompts(opt.from_file)
    gallery = Gallery(opt.outdir, save=not opt.skip_save, grid=not opt.skip_grid, twins=opt.save_json)
    session = Session(opt)
    shape = _config.latent_shape(session.config, opt.H, opt.W, opt.C, opt.f)
    prompts = session.prompts(lines, PROMPT)
    with session.loaded(), gallery:
        for jobs in session.batches(prompts):
            gallery.add(session.sample(jobs, shape), session.settings(jobs), steps=session.steps())
    print(gallery.finish(opt.n_rows or opt.n_samples))


if __name__ == "__main__":
    _cli.run(main, "txt2img")
