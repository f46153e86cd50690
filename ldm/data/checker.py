"""Reads a 64×64 scene back: which shapes, of which colour and size, where; and scores it against its caption.

Nothing here is learned. A pixel belongs to the nearest colour it could have been drawn in, connected pixels are one
thing, and a thing's shape is the one whose drawing, fitted to its extent, covers it best (intersection over union).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .shapes import (
    BACKGROUNDS,
    COLOURS,
    MARGIN,
    RADII,
    SHADE,
    SHAPES,
    SIZE,
    TILT,
    TONES,
    Description,
    background_pattern,
    coverage,
)

LEAST_PIXELS = 40  # the smallest thing that is drawn, a small star, covers about 80
LEAST_OVERLAP = 0.65  # of a thing with its best shape; drawings reach 0.9, small stars, whose tips vanish, 0.73
_LIMIT = sum(r for pair in RADII.values() for r in pair) / 4  # between a small radius and a large one


@dataclass(frozen=True)
class Seen:
    """A thing that was read off a picture; x, y, radius in pixels, `overlap` in [0, 1]: how well the shape fits."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    overlap: float

    @property
    def size(self) -> str:
        return "small" if self.radius < _LIMIT else "large"


def _colour_of_pixels(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) → (H, W): the index of the nearest object colour, -1 where a background tone is nearer."""
    tones = [np.array(t) * shade for t in TONES.values() for shade in (1.0, (1 + SHADE) / 2, SHADE)]
    palette = np.array([*COLOURS.values(), *tones], np.float32)
    distance = ((picture[..., None, :].astype(np.float32) - palette) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    return np.where(nearest < len(COLOURS), nearest, -1)


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected parts of a mask, by spreading the largest label until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        spread = np.where(mask, np.maximum.reduce(around), 0)
        if (spread == labels).all():
            return [labels == label for label in np.unique(labels[mask])]
        labels = spread


@lru_cache(maxsize=256)
def _extent(shape: str, degrees: float) -> tuple[float, ...]:
    """Left, right, top, bottom of a shape of radius 1 about its centre.

    Measured at a usual size, in mean over positions within a pixel: tips thinner than a pixel show nowhere.
    """
    radius, sides = 11.0, []
    for x, y in itertools.product((16.0, 16.25, 16.5, 16.75), repeat=2):
        rows, columns = np.nonzero(coverage(shape, x, y, radius, degrees, size=33) > 0.5)
        sides.append((columns.min() - x, columns.max() + 1 - x, rows.min() - y, rows.max() + 1 - y))
    return tuple(float(side) for side in np.mean(sides, axis=0) / radius)


def _fit(mask: np.ndarray, shape: str, degrees: float) -> tuple[float, float, float, float]:
    """The drawing of a shape with the extent of a mask: (overlap, x, y, radius)."""
    rows, columns = np.nonzero(mask)
    left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    l1, r1, t1, b1 = _extent(shape, degrees)
    radius = ((right - left) + (bottom - top)) / ((r1 - l1) + (b1 - t1))
    x = (left + right) / 2 - radius * (l1 + r1) / 2
    y = (top + bottom) / 2 - radius * (t1 + b1) / 2
    drawn = coverage(shape, x, y, radius, degrees, size=mask.shape[0]) > 0.5
    return float((drawn & mask).sum() / max((drawn | mask).sum(), 1)), x, y, radius


def _inner(mask: np.ndarray) -> np.ndarray:
    """A mask without its rim, where colours mix; the mask itself if nothing would be left."""
    padded = np.pad(mask, 1)
    inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else mask


def _read_thing(mask: np.ndarray, colours: np.ndarray) -> Seen:
    colour = list(COLOURS)[np.bincount(colours[_inner(mask)], minlength=len(COLOURS)).argmax()]
    fits = [(*_fit(mask, shape, angle), shape) for shape in SHAPES for angle in (-TILT, -TILT / 2, 0, TILT / 2, TILT)]
    overlap, x, y, radius, shape = max(fits)
    return Seen(colour, shape, x, y, radius, overlap)


def read_things(picture: np.ndarray) -> list[Seen]:
    """The things in a picture (64, 64, 3) uint8, those that fit no shape included (their `overlap` is low)."""
    if picture.shape != (SIZE, SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"picture: expected ({SIZE}, {SIZE}, 3) uint8, got {picture.shape} {picture.dtype}")
    colours = _colour_of_pixels(picture)
    return [_read_thing(mask, colours) for mask in _components(colours >= 0) if mask.sum() >= LEAST_PIXELS]


def read_background(picture: np.ndarray) -> str:
    """Which of BACKGROUNDS lies behind the things: the one that explains the background's brightness best."""
    mask = _inner(_colour_of_pixels(picture) < 0)
    light = picture.astype(np.float32).mean(-1)[mask]
    errors = {}
    for kind in BACKGROUNDS:
        pattern = background_pattern(kind)[mask]
        design = np.stack([np.ones_like(pattern), pattern], -1)
        darker = np.linalg.lstsq(design, light, rcond=None)[0] if len(light) else np.zeros(2)
        explained = design @ darker if darker[1] < -10 else np.full_like(light, light.mean() if len(light) else 0)
        errors[kind] = float(((light - explained) ** 2).sum())
    return min(BACKGROUNDS, key=lambda kind: errors[kind] * (1 if kind == "plain" else 1.0001))


def _place_is(seen: Seen, place: str) -> bool:
    """Whether a thing stands where "on the left", "in the middle"… puts it."""
    low, high = MARGIN + seen.radius, SIZE - MARGIN - seen.radius
    x, y = (seen.x - low) / (high - low), (seen.y - low) / (high - low)
    central = abs(x - 0.5) <= 0.25, abs(y - 0.5) <= 0.25
    return {
        "middle": all(central), "left": x < 0.25 and central[1], "right": x > 0.75 and central[1],
        "top": y < 0.25 and central[0], "bottom": y > 0.75 and central[0],
    }[place]  # fmt: skip


def score(picture: np.ndarray, description: Description) -> dict[str, bool]:
    """What of a description a picture shows: "count", "colour", "shape", "size", "place", "background" → right or not.

    Things are compared in the order of the layout, so a blue star to the right of a red ring, where the caption has it
    to the left, is wrong in colour and shape. What the caption does not say is right however it is drawn. All but the
    background is wrong if the count is.
    """
    seen = read_things(picture)
    background = description.background in (None, read_background(picture))
    things = description.things
    if len(seen) != len(things) or any(s.overlap < LEAST_OVERLAP for s in seen):
        return dict.fromkeys(("count", "colour", "shape", "size", "place"), False) | {"background": background}
    across = description.layout == "row"
    seen = sorted(seen, key=lambda s: s.x if across else s.y)
    pairs = list(zip(seen, things, strict=True))
    spread = [np.ptp([getattr(s, axis) for s in seen]) for axis in "xy"]
    in_line = description.layout == "single" or (spread[0] > spread[1]) == across
    return {
        "count": True,
        "colour": all(s.colour == t.colour for s, t in pairs),
        "shape": all(s.shape == t.shape for s, t in pairs),
        "size": all(t.size in (None, s.size) for s, t in pairs),
        "place": in_line and (description.place is None or _place_is(seen[0], description.place)),
        "background": background,
    }
