"""Score inpainting: cover one thing of a scene, ask for another in its place, and read every picture back.

    python scripts/score_inpainting.py                                # 200 scenes, 50 steps
    python scripts/score_inpainting.py --n 40 --ddim_steps 20 --sheet outputs/inpainted.png
    python scripts/score_inpainting.py --scenes 77001                 # other scenes

Prints one row for scenes of one, two and three things: how often the thing in the hole has the colour and the shape
that the caption asks for, and how often the picture has every part of the caption, with what was kept. The hole is a
square about the thing that was there. Captions are none of the training's. It is an error if a kept pixel has changed.
How masks are sampled was chosen in part on scenes like the default ones: numbers to be reported are those of --scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _cli
import _gallery
import _inpainting
import _model
import _session
from _session import guided, sample
from score_shapes import check, show

SEED = 2022  # of the scenes, unless told; the training and score_shapes.py use others
MARGIN = 3.0  # pixels between the thing and the edge of its hole


@dataclass(frozen=True)
class Task:
    """A picture (64, 64, 3) uint8, a hole in it (bool, (64, 64)), its centre, and what is to be there then."""

    picture: Any
    hole: Any
    centre: tuple[float, float]
    wanted: Any
    index: int  # of the thing that the hole is for, among those of the description


def tasks(n: int, seed: int = SEED) -> list[Task]:
    """Of the first `n` scenes of a seed; the same scene gets the same hole, and the same thing is asked for."""
    import numpy as np

    from ldm.data.checker import read_things
    from ldm.data.shapes import SIZE, Shapes, changed

    made, scenes = [], Shapes(seed, test=True)
    for i in range(n):
        picture, description = scenes[i]
        rng = np.random.default_rng((seed, i))
        index = int(rng.integers(len(description.things)))
        along = {"column": lambda seen: seen.y}.get(description.layout, lambda seen: seen.x)
        seen = sorted(read_things(picture), key=along)[index]
        reach = 1.05 * seen.radius + MARGIN  # of the widest shape of that size
        left, right, top, bottom = (
            int(np.clip(round(side), 0, SIZE))
            for side in (seen.x - reach, seen.x + reach, seen.y - reach, seen.y + reach)
        )
        hole = np.zeros((SIZE, SIZE), bool)
        hole[top:bottom, left:right] = True
        made.append(Task(picture, hole, (seen.x, seen.y), changed(description, index, rng), index))
    return made


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("score_inpainting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=_cli.number(int, 1), default=200, help="scenes (default: 200)")
    parser.add_argument(
        "--scenes", type=_cli.number(int, 0), default=SEED, metavar="SEED", help=f"their seed (default: {SEED})"
    )
    parser.add_argument("--ddim_steps", type=_cli.number(int, 1), help="(default: the config's)")
    parser.add_argument("--scale", type=_cli.number(float, -1e6), help="guidance (default: the config's)")
    parser.add_argument("--seed", type=_cli.number(int, 0), default=0, help="of the noise (default: 0)")
    parser.add_argument("--batch", type=_cli.number(int, 1), default=50)
    parser.add_argument("--sheet", type=Path, help="save the first 12 holes, and what was drawn in them, as this PNG")
    _cli.add_model_flags(parser, low_mem=False)
    opt = parser.parse_intermixed_args(argv)
    opt.json = None
    return opt


def check_sheet(path: Path) -> None:
    """What would be found too late, after the sampling: a sheet that cannot be saved under its name."""
    if path.is_dir():
        raise IsADirectoryError(f"--sheet {path} is a folder; give a file's name in it, such as {path / 'sheet.png'}")
    if path.suffix.lower() != ".png":
        better = path.with_suffix(".png")
        raise ValueError(f"--sheet {path} is no PNG's name; give one that ends in .png, such as {better}")
    _gallery.check_writable(path.parent, "--sheet")


def fill(model, sampler, part: Sequence[Task], options: dict, seed: int) -> list:
    """The pictures of some tasks, their holes filled as their captions say; picture i has the seed `seed` + i."""
    import numpy as np
    import torch
    from PIL import Image

    from ldm.image import to_pil

    images = torch.from_numpy(np.stack([t.picture for t in part])).permute(0, 3, 1, 2).float() / 127.5 - 1
    holes = torch.from_numpy(np.stack([t.hole for t in part]))[:, None].float()
    _, given = _inpainting.shown_and_given(model, "masking", images, holes)
    jobs = [(t.wanted.caption, seed + i) for i, t in enumerate(part)]
    cond, uncond = _model.conditionings(model, "text", [caption for caption, _ in jobs], "", guided(options))
    shape = tuple(given["x0"].shape[1:])
    drawn = to_pil(sample(model, sampler, jobs, shape, cond, uncond, {**options, **given}, progress=False))
    pairs = zip(part, drawn, strict=True)
    return [_inpainting.composite(Image.fromarray(t.picture), [each], t.hole)[0] for t, each in pairs]


def scored(task: Task, picture) -> dict[str, bool]:
    """Whether the thing in the hole is the one asked for, and whether all of the caption is true."""
    import numpy as np

    from ldm.data.checker import read_things, score

    pixels = np.asarray(picture)
    if (pixels != task.picture)[~task.hole].any():
        raise RuntimeError("a pixel that was to be kept has changed")
    x, y = task.centre
    there = min(read_things(pixels), key=lambda seen: (seen.x - x) ** 2 + (seen.y - y) ** 2, default=None)
    thing = task.wanted.things[task.index]
    right = there is not None and (there.colour, there.shape) == (thing.colour, thing.shape)
    return {"in the hole": right, "every part": all(score(pixels, task.wanted).values())}


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    if opt.sheet is not None:
        check_sheet(opt.sheet)
    config, checkpoint, _ = _model.open_model(opt)
    check(config, opt)

    import torch
    from tqdm import tqdm

    model, sampler, options = _session.measured(config, checkpoint, opt)
    todo, pictures = tasks(opt.n, opt.scenes), []
    with torch.no_grad(), model.ema_scope():
        for start in tqdm(range(0, len(todo), opt.batch), desc="sampling"):
            pictures += fill(model, sampler, todo[start : start + opt.batch], options, opt.seed + start)
    scores = [scored(*pair) for pair in zip(todo, pictures, strict=True)]
    show(table(todo, scores))
    print(f"all pixels outside of the {len(todo)} holes are as they were")
    if opt.sheet is not None:
        save_sheet(todo[:12], pictures[:12], opt.sheet)


def table(todo: Sequence[Task], scores: Sequence[dict[str, bool]]) -> list[dict]:
    """One row for each number of things, and one for all: how many, and the share that is right, in per cent."""
    rows = []
    for name, counts in {"one thing": {1}, "two things": {2}, "three things": {3}, "all": {1, 2, 3}}.items():
        group = [s for t, s in zip(todo, scores, strict=True) if len(t.wanted.things) in counts]
        if group:
            share = {part: 100 * sum(s[part] for s in group) / len(group) for part in group[0]}
            rows.append({"scenes": name, "n": len(group)} | share)
    return rows


def save_sheet(todo: Sequence[Task], pictures: Sequence, path: Path) -> None:
    """Each scene with its hole in grey, and beside it what was drawn, with the caption."""
    import numpy as np
    from PIL import Image

    from ldm.image import grid

    cells, captions = [], []
    for task, picture in zip(todo, pictures, strict=True):
        covered = np.where(task.hole[..., None], np.uint8(128), task.picture)
        cells += [Image.fromarray(covered), picture]
        captions += ["", task.wanted.caption]
    grid(cells, 8, captions).save(path)
    print(path)


if __name__ == "__main__":
    _cli.run(main, "score_inpainting")
