"""A picture and a text to pictures: noise a picture in part, and sample from there (SDEdit, Meng et al. 2022).

    python scripts/img2img.py --init-img scene.png --prompt "a blue square above a red circle" --strength 0.6
    python scripts/img2img.py --ckpt sd-v1-4.ckpt --init-img sketch.jpg --prompt "A fantasy landscape" --strength 0.8

--strength is the share of the steps that are taken: near 0 the picture stays as it is, at 1 little of it is left. The
picture may have any size and be of any kind (rotated by its EXIF, transparent, 16 bits, CMYK …); pictures of its size
come out, or of --H and --W.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import _cli
import _machine
import _pictures
from _gallery import Gallery
from _session import Session

SCALE = 5.0  # CompVis' for this script


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("img2img", doc=__doc__)
    group = parser.add_argument_group("picture")
    _pictures.add_picture_flag(group, "the picture to begin from")
    group.add_argument(
        "--strength",
        type=_cli.a_strength,
        default=0.75,
        help="how much is drawn anew, above 0 and up to 1: the share of the steps that are taken (default: 0.75)",
    )
    _cli.add_prompt_flags(parser, "nothing in particular, which varies the picture")
    _cli.add_sampling_flags(parser, n_iter=1, n_samples=2, scale=SCALE)
    _cli.add_size_flags(parser, own="the picture's; of one alone, the other in proportion")
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/img2img-samples")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    picture = _pictures.resized(_pictures.read(opt.init_img), opt.H, opt.W)
    lines = None if opt.from_file is None else _cli.read_prompts(opt.from_file)
    gallery = Gallery(opt.outdir, save=not opt.skip_save, grid=not opt.skip_grid, twins=opt.save_json)
    session = Session(opt, defaults={"unconditional_guidance_scale": SCALE})
    canvas = _pictures.Canvas.of(picture, session.config, opt.C, opt.f, name=opt.init_img)
    prompts = session.prompts(lines, "")
    told = {"init_img": Path(opt.init_img).name, "strength": opt.strength}
    with session.loaded() as model, gallery:
        latents = _machine.encode(model, canvas.tensor())
        for jobs in session.batches(prompts):
            init = latents.expand(len(jobs), *canvas.shape)
            images = session.sample(jobs, canvas.shape, init=init, strength=opt.strength)
            gallery.add(canvas.cut(images), session.settings(jobs, **told), steps=session.steps(canvas.cut))
    print(gallery.finish(opt.n_rows or opt.n_samples))


if __name__ == "__main__":
    _cli.run(main, "img2img")
