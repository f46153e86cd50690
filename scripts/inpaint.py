"""A picture with a hole to pictures without: draw what a mask covers anew, and keep the rest bit for bit.

    python scripts/inpaint.py --init-img scene.png --mask hole.png --prompt "a red circle above a blue square"
    python scripts/inpaint.py --ckpt sd-v1-5-inpainting.ckpt --init-img room.jpg --mask hole.png --prompt "a sofa"
    python scripts/inpaint.py --ckpt inpainting_big/last.ckpt --indir FOLDER --outdir RESULTS

A folder holds pictures and their masks as NAME.png and NAME_mask.png (or .jpg, …). Models made for it are shown the
picture; with any other, what is kept is put back at each step. Results are OUTDIR/NAME.png, NAME-1.png, ….
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import _cli
import _inpainting
import _pictures
from _gallery import Gallery
from _session import Session

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("inpaint", doc=__doc__)
    group = parser.add_argument_group("picture")
    sources = group.add_mutually_exclusive_group()
    _pictures.add_picture_flag(sources, "a picture with something to draw anew; with --mask")
    sources.add_argument("--indir", type=_cli.a_path, help="a folder of NAME.png and NAME_mask.png, all of them")
    group.add_argument("--mask", type=_cli.a_path, help="the file of its mask, black and white, of the same size")
    group.add_argument(
        "--white", choices=("hole", "keep"), default="hole", help="what white in a mask is (default: hole, CompVis')"
    )
    group.add_argument(
        "--strength",
        type=_cli.a_strength,
        default=1.0,
        help="below 1, begin from what is in the hole: the share of the steps that are taken (default: 1, from noise)",
    )
    _cli.add_prompt_flags(parser, "nothing in particular")
    _cli.add_sampling_flags(parser, n_iter=1, n_samples=1)
    _cli.add_size_flags(parser, own=None)
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/inpaint-samples", grid=False)
    return parser.parse_intermixed_args(argv)


def sources(opt: argparse.Namespace) -> list[tuple[str, str]]:
    """The files of (picture, mask) that the flags name; ValueError where one is missing."""
    if opt.indir is not None:
        if opt.mask is not None:
            raise ValueError("--mask goes with --init-img; in --indir each picture has its own, NAME_mask.png")
        return pairs(Path(opt.indir))
    if None in (opt.init_img, opt.mask):
        missing = "--mask" if opt.init_img is not None else "--init-img"
        raise ValueError(f"{missing} is missing: give --init-img and --mask, or --indir, a folder of both")
    return [(opt.init_img, opt.mask)]


def pairs(folder: Path) -> list[tuple[str, str]]:
    """(NAME.png, NAME_mask.png) of a folder, sorted; the two may be files of different kinds."""
    if not folder.is_dir():
        raise NotADirectoryError(f"--indir {str(folder)!r} is no folder; one picture is given by --init-img and --mask")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    found = {mask: _picture_of(mask, files) for mask in files if mask.stem.endswith("_mask")}
    if lonely := [mask.name for mask, picture in found.items() if picture is None]:
        raise ValueError(
            f"--indir {str(folder)!r} has no picture, or several, for {', '.join(lonely)}; NAME_mask.png is for "
            "NAME.png"
        )
    for picture in set(found.values()):
        if len(masks := [mask.name for mask in found if found[mask] == picture]) > 1:
            several = f"several masks for {picture.name}: {', '.join(masks)}"
            raise ValueError(f"--indir {str(folder)!r} has {several}; keep one")
    if not found:
        names = ", ".join(path.name for path in files[:10]) or "no pictures"
        raise ValueError(f"--indir {str(folder)!r} has no pair NAME.png and NAME_mask.png (it has: {names})")
    if idle := [path.name for path in files if path not in found and path not in found.values()]:
        warnings.warn(f"no masks, so left out: {', '.join(idle[:10])}{', …' * (len(idle) > 10)}", stacklevel=2)
    return [(str(picture), str(mask)) for mask, picture in found.items()]


def _picture_of(mask: Path, files: Sequence[Path]) -> Path | None:
    alike = [path for path in files if path.stem == mask.stem.removesuffix("_mask")]
    same = [path for path in alike if path.suffix == mask.suffix]
    return same[0] if same else alike[0] if len(alike) == 1 else None


def read(source: tuple[str, str], opt: argparse.Namespace):
    """(the picture, where its hole is: bool, (H, W)); ValueError for a mask that leaves nothing to do, or nothing."""
    from ldm.picture_files import read_mask

    path, mask = source
    of_picture, of_mask = ("--init-img", "--mask") if opt.indir is None else ("--indir", "--indir")
    picture = _pictures.read(path, of_picture)
    white = read_mask(mask, picture.size, flag=of_mask, of=f"the picture {path!r}")
    hole = white if opt.white == "hole" else ~white
    if not hole.any():
        is_, other = ("white", "keep") if opt.white == "hole" else ("black", "hole")
        raise ValueError(
            f"{of_mask} {mask!r} keeps all of the picture, so there is nothing to draw: with --white {opt.white} the "
            f"hole is {is_}; paint one, or turn it round with --white {other}"
        )
    if hole.all():
        raise ValueError(
            f"{of_mask} {mask!r} keeps nothing of the picture; give one that covers a part, or draw with txt2img.py"
        )
    return picture, hole


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    files = sources(opt)
    sizes = [read(source, opt)[0].size for source in files]  # again when its turn comes: a folder may be large
    lines = None if opt.from_file is None else _cli.read_prompts(opt.from_file)
    gallery = Gallery(opt.outdir, grid=False, folder="", twins=opt.save_json)
    session = Session(opt, shown=_inpainting.SHOWN)
    way = _inpainting.way_of(session.config)
    for (path, _), size in zip(files, sizes, strict=True):
        _pictures.fit(size, session.config, opt.C, opt.f, path)
    prompts = session.prompts(lines, "")
    turn = {"hole": "--white keep", "keep": "--white hole"}[opt.white]
    print(f"inpaint: white in a mask is {'the hole, drawn anew' if opt.white == 'hole' else 'kept'} ({turn} turns that "
          "round)", file=sys.stderr)  # fmt: skip
    with session.loaded(), gallery:
        for source in files:
            fill(session, way, source, prompts, gallery)
    print(gallery.finish(1))


def fill(session: Session, way: str, source: tuple[str, str], prompts: list[str], gallery: Gallery) -> None:
    """Draw one picture's hole for each prompt."""
    import torch

    from ldm.image import to_pil
    from ldm.picture_files import padded

    opt, (path, mask) = session.opt, source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to warn of was said when all were read at first
        picture, hole = read(source, opt)
        canvas = _pictures.Canvas.of(picture, session.config, opt.C, opt.f, name=path)
    holes = padded(torch.from_numpy(hole)[None, None].float(), canvas.multiple)
    shown, given = _inpainting.shown_and_given(session.model, way, canvas.tensor(), holes, opt.strength)
    told = {"init_img": Path(path).name, "mask": Path(mask).name, "white": opt.white, "strength": opt.strength}
    for jobs in session.batches(prompts):
        n = len(jobs)
        more = _inpainting.expanded(given, n)
        images = session.sample(jobs, canvas.shape, shown=_inpainting.expanded(shown, n), **more)

        def filled(drawn):
            return _inpainting.composite(picture, to_pil(canvas.cut(drawn)), hole)

        gallery.add(filled(images), session.settings(jobs, **told), Path(path).stem, steps=session.steps(filled))


if __name__ == "__main__":
    _cli.run(main, "inpaint")
