"""--save_steps: what the sampler takes for the picture, x0, along the way, as a contact sheet and as an animation."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Frames = list[tuple[str, Any]]  # (label, the pictures of a batch)
LEAST_SIDE = 256  # pixels of the animation: smaller ones are enlarged, without smoothing
FRAME, LAST = 120, 1500  # milliseconds


def add_flag(group: argparse._ActionsContainer, number: Callable[..., Callable[[str], Any]]) -> None:
    group.add_argument(
        "--save_steps",
        metavar="N",
        type=number(int, 2, 1000),
        help="save N looks at what the sampler takes for the picture along the way, to OUTDIR/steps: a sheet (.png) "
        "and an animation (.gif) of each",
    )


class Trajectory:
    """A sampler's `img_callback`, and what it saw: x0, (B, C, h, w), after each step."""

    def __init__(self) -> None:
        self._seen: list[Any] = []

    def __call__(self, x0: Any, step: int) -> None:
        self._seen.append(x0)

    def frames(self, count: int, decode: Callable[[Any], Any]) -> Frames:
        """`count` of them, or all if they are fewer, evenly from the first to the last, decoded."""
        total = len(self._seen)
        count = min(count, total)
        chosen = [round(k * (total - 1) / max(count - 1, 1)) for k in range(count)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # early ones may well be of one colour
            return [(f"step {k + 1} of {total}", decode(self._seen[k])) for k in chosen]


def save(folder: Path, name: str, labels: Sequence[str], pictures: Sequence[Any]) -> None:
    """FOLDER/NAME.png, pictures side by side with their labels, and FOLDER/NAME.gif, one after the other."""
    from PIL import Image

    from ldm.image import grid

    folder.mkdir(parents=True, exist_ok=True)
    columns = min(len(pictures), 6)
    grid(pictures, columns, labels).save(folder / f"{name}.png")
    zoom = max(1, -(-LEAST_SIDE // min(pictures[0].size)))
    size = tuple(side * zoom for side in pictures[0].size)
    frames = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
    times = [FRAME] * (len(frames) - 1) + [LAST]
    frames[0].save(folder / f"{name}.gif", save_all=True, append_images=frames[1:], duration=times, loop=0)
