"""A picture, its depth and a text to pictures that stand in space as it does: of Stable Diffusion 2's depth model.

    python scripts/depth2img.py --ckpt 512-depth-ema.ckpt --init-img room.jpg --depth room-depth.png --prompt "a cave"
    python scripts/depth2img.py --ckpt 512-depth-ema.ckpt --depth depth.npy --strength 1 --prompt "a statue of a cat"

The depth map is yours, of MiDaS or of a renderer: the estimator is not here.
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

SCALE = 9.0  # Stability's for this model, as the strength


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("depth2img", doc=__doc__)
    group = parser.add_argument_group("picture")
    _pictures.add_picture_flag(group, "the picture to begin from; not needed with --strength 1")
    group.add_argument(
        "--depth",
        type=_cli.a_path,
        metavar="MAP",
        help="its depth map, of the same size: a grey picture, of which 16 bits are kept, or a .npy of numbers (H, W), "
        "in any unit; larger is nearer",
    )
    group.add_argument(
        "--invert_depth",
        action="store_true",
        help="smaller is nearer in it. The signs are turned round; of distances in metres, MiDaS would rather give 1/d",
    )
    group.add_argument(
        "--strength",
        type=_cli.a_strength,
        default=0.9,
        help="how much is drawn anew, above 0 and up to 1: the share of the steps that are taken. At 1 the depth alone "
        "guides, and nothing of the picture does (default: 0.9)",
    )
    _cli.add_prompt_flags(parser, "nothing in particular")
    _cli.add_sampling_flags(parser, n_iter=1, n_samples=1, scale=SCALE)
    _cli.add_size_flags(parser, own="the picture's; of one alone, the other in proportion")
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/depth2img-samples")
    return parser.parse_intermixed_args(argv)


def read(opt: argparse.Namespace):
    """(the picture, blank where there is none; the depth, (1, 1, H, W) float32), both of the size to draw at."""
    import torch
    import torch.nn.functional as F
    from PIL import Image

    from ldm.depth_files import read_depth

    if opt.depth is None:
        raise ValueError(
            "--depth is missing: MiDaS, which estimates the depth of a picture, is not here; give a depth map, a grey "
            "picture or a .npy of (H, W), in which larger is nearer (--invert_depth: smaller)"
        )
    if opt.init_img is None and opt.strength < 1:
        raise ValueError("--init-img is missing: give the picture to begin from, or --strength 1 for the depth alone")
    picture = None if opt.init_img is None else _pictures.read(opt.init_img)
    size = None if picture is None else picture.size
    values = read_depth(opt.depth, size, flag="--depth", of=f"the picture {opt.init_img!r}")
    blank = Image.new("RGB", values.shape[::-1])
    picture = _pictures.resized(picture or blank, opt.H, opt.W)
    depth = torch.from_numpy(values)[None, None]
    if picture.size != blank.size:
        depth = F.interpolate(depth, picture.size[::-1], mode="bilinear", antialias=True)
    depth = depth - depth.amin()  # to MiDaS' magnitude, for the model's guard against flat maps is an absolute one
    depth = depth * (1000 / depth.amax()) if depth.amax() > 0 else depth
    return picture, -depth if opt.invert_depth else depth


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    picture, depth = read(opt)
    lines = None if opt.from_file is None else _cli.read_prompts(opt.from_file)
    gallery = Gallery(opt.outdir, save=not opt.skip_save, grid=not opt.skip_grid, twins=opt.save_json)
    defaults = {"unconditional_guidance_scale": SCALE}
    session = Session(opt, only="LatentDepth2ImageDiffusion", shown=("hybrid",), defaults=defaults)
    canvas = _pictures.Canvas.of(picture, session.config, opt.C, opt.f, name=opt.init_img or opt.depth)
    prompts = session.prompts(lines, "")
    told = {name: Path(path).name for name in ("init_img", "depth") if (path := getattr(opt, name))}
    told |= {"invert_depth": opt.invert_depth, "strength": opt.strength}
    with session.loaded() as model, gallery:
        from ldm.picture_files import padded

        batch = {model.depth_stage_key: padded(depth, canvas.multiple)}
        beside = model.concat_conditioning(batch, canvas.shape[1:])
        latents = None if opt.strength == 1 else _machine.encode(model, canvas.tensor())
        for jobs in session.batches(prompts):
            shown = {"c_concat": [beside.expand(len(jobs), *beside.shape[1:])]}
            given = {} if latents is None else {"init": latents.expand(len(jobs), *canvas.shape)}
            given |= {"strength": opt.strength} if given else {}
            images = session.sample(jobs, canvas.shape, shown=shown, **given)
            gallery.add(canvas.cut(images), session.settings(jobs, **told), steps=session.steps(canvas.cut))
    print(gallery.finish(opt.n_rows or opt.n_samples))


if __name__ == "__main__":
    _cli.run(main, "depth2img")
