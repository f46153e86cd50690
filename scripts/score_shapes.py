"""Score the bundled model: sample captions that were never in training and read every picture back.

    python scripts/score_shapes.py                   # 500 unseen captions and 100 of the held-out pairs, 50 steps
    python scripts/score_shapes.py --n 60 --ddim_steps 20 --wrong outputs/wrong    # quicker; saves what went wrong

Prints one row for scenes of one, two and three things, and one for single things of a colour and shape that no training
scene paired. A row tells how often the picture has what the caption says: the number of things, their colours, their
shapes, sizes, places and the background; "pair" is colour and shape, "all" is every part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import _cli
import _config
import _gallery
import _model
import _session
from _session import guided, sample

PARTS = ("count", "colour", "shape", "size", "place", "background")
GROUPS = ("one thing", "two things", "three things", "held-out pair")
A_KIND = {"class": "a class number", "nothing": "nothing"}
SEED = 2021  # of the test scenes; the training uses others


def unseen(n: int, **options) -> list:
    """`n` descriptions with different captions, none of them a training caption."""
    from ldm.data.shapes import Shapes

    scenes, found = Shapes(SEED, test=True, **options), {}
    for k in range(50 * n):
        if len(found) == n:
            break
        description = scenes.describe(k)
        found.setdefault(description.caption, description)
    if len(found) < n:
        raise ValueError(f"{n} captions were asked for, but only {len(found)} unseen ones were found: ask for fewer")
    return list(found.values())


def draw(model, sampler, descriptions: Sequence, shape: tuple, options: dict, batch: int, seed: int) -> list:
    """A picture (H, W, 3) uint8 for each description; picture i has the seed `seed` + i."""
    import numpy as np
    from tqdm import tqdm

    from ldm.image import to_pil

    jobs = [(description.caption, seed + i) for i, description in enumerate(descriptions)]
    pictures = []
    for start in tqdm(range(0, len(jobs), batch), desc="sampling", mininterval=5):
        part = jobs[start : start + batch]
        cond, uncond = _model.conditionings(model, "text", [caption for caption, _ in part], "", guided(options))
        images = sample(model, sampler, part, shape, cond, uncond, options, progress=False)
        pictures += [np.asarray(picture) for picture in to_pil(images)]
    return pictures


def table(scores: dict[str, list[dict[str, bool]]]) -> list[dict]:
    """One row a group of scenes: how many, and the share of each part that is right, in per cent."""
    rows = []
    for name, group in scores.items():
        if group:
            columns = {part: [s[part] for s in group] for part in PARTS}
            columns["pair"] = [s["colour"] and s["shape"] for s in group]
            columns["all"] = [all(s.values()) for s in group]
            rows.append({"scenes": name, "n": len(group)} | {k: 100 * sum(v) / len(v) for k, v in columns.items()})
    return rows


def show(rows: list[dict]) -> None:
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{v:.1f} %" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("score_shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=_cli.number(int, 1), default=500, help="unseen captions (default: 500)")
    parser.add_argument("--n_held_out", type=_cli.number(int, 0), default=100, help="of the held-out pairs, besides")
    parser.add_argument("--ddim_steps", type=_cli.number(int, 1), help="(default: the config's)")
    parser.add_argument("--ddim_eta", type=_cli.number(float, 0), help="(default: the config's)")
    parser.add_argument("--scale", type=_cli.number(float, -1e6), help="guidance (default: the config's)")
    parser.add_argument("--seed", type=_cli.number(int, 0), default=0)
    parser.add_argument("--batch", type=_cli.number(int, 1), default=50)
    parser.add_argument("--wrong", type=Path, help="save the pictures that are wrong in this folder, as one sheet")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    _cli.add_model_flags(parser, low_mem=False)
    return parser.parse_intermixed_args(argv)


def check(config, opt: argparse.Namespace) -> None:
    """What would be found too late, after the sampling: a model that reads no captions, and a table without a place."""
    if (kind := _model.told_by(config)) != "text":
        raise ValueError(f"the scenes are asked for by captions, but this model is told {A_KIND[kind]}; score another")
    if opt.json:
        _gallery.check_writable(opt.json.parent, "--json")
        if opt.json.is_dir():
            raise IsADirectoryError(f"--json {opt.json} is a folder; give a file's name")


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    config, checkpoint, _ = _model.open_model(opt)
    check(config, opt)

    import torch

    from ldm.data.checker import score

    model, sampler, options = _session.measured(config, checkpoint, opt)
    shape = _config.latent_shape(config, None, None, None, None)
    descriptions = unseen(opt.n) + unseen(opt.n_held_out, count=1, held_out=True)
    with torch.no_grad(), model.ema_scope():
        pictures = draw(model, sampler, descriptions, shape, options, opt.batch, opt.seed)

    scores: dict[str, list] = {name: [] for name in GROUPS}
    wrong = []
    for k, (picture, description) in enumerate(zip(pictures, descriptions, strict=True)):
        result = score(picture, description)
        scores[GROUPS[-1] if k >= opt.n else GROUPS[len(description.things) - 1]].append(result)
        if not all(result.values()):
            failed = ", ".join(part for part in PARTS if not result[part])
            wrong.append((picture, f"{description.caption} [{failed}]"))
    rows = table(scores)
    show(rows)
    if opt.json:
        opt.json.write_text(json.dumps({"options": options, "seed": opt.seed, "rows": rows}, indent=1))
    if opt.wrong and wrong:
        save_wrong(wrong, opt.wrong)


def save_wrong(wrong: list, folder: Path) -> None:
    from PIL import Image

    from ldm.image import grid

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wrong.png"
    pictures, captions = zip(*wrong, strict=True)
    grid([Image.fromarray(picture) for picture in pictures], 8, captions).save(path)
    print(f"{len(wrong)} wrong pictures: {path}", file=sys.stderr)


if __name__ == "__main__":
    _cli.run(main, "score_shapes")
