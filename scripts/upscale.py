"""A small picture to one with four times its sides: of Stable Diffusion's upscaler.

    python scripts/upscale.py --ckpt x4-upscaler-ema.ckpt --init-img small.png --prompt "a white cat" --noise_level 20

The network sees the small picture with noise on it, of a level that it is told: it keeps what the noise leaves, and
draws the rest. The picture may have any sides; what comes out has as many times more as the model's autoencoder makes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _cli
import _config
import _pictures
from _gallery import Gallery
from _session import Jobs, Session

SCALE = 9.0  # Stability's for this model, as the noise level
LEVEL = 20
MOST = 512 * 512  # pixels of the small picture: 2048x2048 come out of it
OTHER = 0x9E3779B9  # a picture's seed is turned into another by these bits, for the noise on the small picture


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("upscale", doc=__doc__)
    group = parser.add_argument_group("picture")
    _pictures.add_picture_flag(group, f"the small picture, of at most {MOST} pixels, such as 512x512")
    group.add_argument(
        "--noise_level",
        type=_cli.number(int, 0),
        help="how much noise the small picture gets, from 0 to the config's max_noise_level, Stability's 350: more "
        f"leaves more to the network, and is for worse pictures (default: {LEVEL})",
    )
    _cli.add_prompt_flags(parser, "nothing in particular")
    _cli.add_sampling_flags(parser, n_iter=1, n_samples=1, scale=SCALE)
    _cli.add_size_flags(parser, own=None)
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/upscaled")
    return parser.parse_intermixed_args(argv)


def noise_level(config, given: int | None) -> int:
    """The level of the flag, or the default; ValueError for one that the network has not seen."""
    most = 0  # of SimpleImageConcat, which adds no noise
    if not (_config.of_model(config, "low_scale_config.target", str) or "").endswith("SimpleImageConcat"):
        most = _config.of_model(config, "low_scale_config.params.max_noise_level", int)
        T = _config.of_model(config, "low_scale_config.params.noise_schedule_config.timesteps", int) or 1000
        most = min(1000 if most is None else most, T - 1)
    if given is not None and given > most:
        raise ValueError(f"--noise_level {given}: this model knows the levels from 0 to {most}")
    return min(LEVEL, most) if given is None else given


def canvas_of(picture, config, opt: argparse.Namespace) -> _pictures.Canvas:
    """One pixel of the small picture is one latent. ValueError for a picture that is too small, or too large."""
    C, f = _config.scales(config, opt.C, opt.f)
    multiple = _config.multiple(config, f) // f
    width, height = picture.size
    name = f"the picture {opt.init_img!r}"
    if min(width, height) < multiple:
        raise ValueError(f"{name} is {width}x{height} pixels; give one of at least {multiple}x{multiple}")
    if width * height > MOST:
        raise ValueError(
            f"{name} is {width}x{height} pixels, and at most {MOST} are enlarged at once, such as 512x512; make it "
            "smaller, or enlarge its parts"
        )
    shape = (C, *(-(-side // multiple) * multiple for side in (height, width)))
    return _pictures.Canvas(picture, multiple, shape, factor=f)


def shown(model, small, jobs: Jobs, level: int) -> dict[str, Any]:
    """What the network is shown: the small picture (1, 3, h, w), with each picture's own noise, and how much it is."""
    import torch

    from ldm.modules.diffusionmodules.upscaling import SimpleImageConcat
    from ldm.sampling.noise import noise_source

    low, n = model.low_scale_model, len(jobs)
    small = small.to(model.device).expand(n, *small.shape[1:])
    if isinstance(low, SimpleImageConcat):
        noisy, levels = low(small)
    else:
        source = noise_source(n, seeds=[seed ^ OTHER for _, seed in jobs])
        levels = torch.full((n,), level, device=small.device)
        noisy, levels = low(small, levels, noise=source.normal(small.shape, small.device))
    return {"c_concat": [noisy], "c_adm": levels}


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    picture = _pictures.read(opt.init_img)
    lines = None if opt.from_file is None else _cli.read_prompts(opt.from_file)
    defaults = {"unconditional_guidance_scale": SCALE}
    session = Session(opt, only="LatentUpscaleDiffusion", shown=("hybrid-adm",), defaults=defaults)
    level = noise_level(session.config, opt.noise_level)
    canvas = canvas_of(picture, session.config, opt)
    prompts = session.prompts(lines, "")
    gallery = Gallery(opt.outdir, save=not opt.skip_save, grid=not opt.skip_grid, twins=opt.save_json)
    told = {"init_img": Path(opt.init_img).name, "noise_level": level}
    with session.loaded() as model, gallery:
        small = canvas.tensor()
        for jobs in session.batches(prompts):
            images = session.sample(jobs, canvas.shape, shown=shown(model, small, jobs, level))
            gallery.add(canvas.cut(images), session.settings(jobs, **told), steps=session.steps(canvas.cut))
    print(gallery.finish(opt.n_rows or opt.n_samples))


if __name__ == "__main__":
    _cli.run(main, "upscale")
