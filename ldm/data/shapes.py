"""Captioned 64×64 scenes, drawn from a seed: one to three coloured shapes on a plain or patterned background.

A scene is made in three steps, each of which is useful alone:

    description = describe(rng)             what the scene shows and what its caption says of it
    caption     = describe(...).caption     one of several wordings
    picture     = draw(description, rng)    (64, 64, 3) uint8

`Shapes(seed)[i]` does all three; scene i of a seed is always the same. A caption belongs to the training or to the test
side for good (`is_test_caption`), so a test caption has never been seen in training, in any run. `HELD_OUT` pairs of
colour and shape are in no training scene.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

SIZE = 64
COLOURS = {
    "red": (214, 36, 36), "orange": (250, 135, 20), "yellow": (245, 212, 20), "green": (36, 150, 62),
    "blue": (36, 82, 214), "purple": (128, 44, 168), "pink": (250, 110, 190), "black": (24, 24, 28),
}  # fmt: skip
TONES = {"grey": (205, 205, 208), "cream": (246, 236, 214), "mint": (204, 234, 214), "sky": (198, 222, 246)}
SHADE = 0.86  # the darker tone of a pattern, relative to the lighter
BACKGROUNDS = ("plain", "striped", "checked", "dotted")
RADII = {"small": (8.8, 10.0), "large": (12.4, 13.9)}  # pixels; two large ones and a gap fit between the margins
TILT = 6.0  # degrees, either way
GAP = 4.0  # pixels between two shapes, at least
MARGIN = 2.0  # pixels between a shape and the edge
PLACES = {"middle": (0.5, 0.5), "left": (0.0, 0.5), "right": (1.0, 0.5), "top": (0.5, 0.0), "bottom": (0.5, 1.0)}
HELD_OUT = frozenset({("red", "star"), ("blue", "heart"), ("green", "triangle"), ("yellow", "ring")})

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_PLACE_WORDS = {
    "middle": ("in the middle", "in the centre"), "left": ("on the left",), "right": ("on the right",),
    "top": ("at the top",), "bottom": ("at the bottom",),
}  # fmt: skip
_OPENINGS = ("", "", "a picture of ", "there is ")
_ROW2 = ("{0} to the left of {1}", "{1} to the right of {0}", "{0} left of {1}", "{0} on the left and {1} on the right")
_COLUMN2 = ("{0} above {1}", "{1} below {0}", "{1} under {0}", "{0} at the top and {1} at the bottom")
_ROW3 = ("from left to right {0}, {1} and {2}", "{0}, {1} and {2} side by side")
_COLUMN3 = ("from top to bottom {0}, {1} and {2}", "{0} above {1} above {2}")
_BACKGROUND_WORDS = ("on a {} background", "in front of a {} background")


# ---------------------------------------------------------------------------------------------------------- shapes
# Each takes coordinates in units of the shape's radius (v points down) and returns a signed distance, negative inside.


def _circle(u, v):
    return np.hypot(u, v) - 0.98


def _box(u, v, a, b):
    return np.maximum(np.abs(u) - a, np.abs(v) - b)


def _square(u, v):
    return _box(u, v, 0.86, 0.86)


def _diamond(u, v):
    return (np.abs(u) + np.abs(v) * 0.85 - 1.0) / 1.31


def _triangle(u, v):
    return np.maximum(v - 0.78, (np.abs(u) * 1.72 - v - 1.0) / 1.99)


def _ring(u, v):
    return np.abs(np.hypot(u, v) - 0.72) - 0.28


def _cross(u, v):
    return np.minimum(_box(u, v, 1.0, 0.33), _box(u, v, 0.33, 1.0))


def _star(u, v):
    """Five points, inner radius 0.45: folded onto one half of one point, where the edge is a straight line."""
    angle = np.mod(np.arctan2(u, -v - 0.05) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5
    r = np.hypot(u, v + 0.05)
    x, y = r * np.cos(angle), r * np.abs(np.sin(angle))
    ix, iy = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    nx, ny = iy, 1.05 - ix
    return ((x - 1.05) * nx + y * ny) / np.hypot(nx, ny)


def _heart(u, v):
    """Two discs on a square that stands on its corner."""
    u, v = np.abs(u), v + 0.1
    disc = np.hypot(u - 0.45, v + 0.33) - 0.52
    body = np.maximum((u + v - 1.02) / np.sqrt(2), np.maximum(-v - 0.38, u - 0.86))
    return np.minimum(disc, body)


SHAPES = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star,
    "heart": _heart, "ring": _ring, "cross": _cross, "diamond": _diamond,
}  # fmt: skip


def coverage(shape: str, x: float, y: float, radius: float, degrees: float = 0.0, size: int = SIZE) -> np.ndarray:
    """How much of each pixel the shape covers: (size, size) in [0, 1], edges one pixel soft; x, y in pixels."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    dx, dy = (columns - x) / radius, (rows - y) / radius
    return np.clip(0.5 - radius * SHAPES[shape](cos * dx + sin * dy, cos * dy - sin * dx), 0.0, 1.0)


def background_pattern(kind: str, size: int = SIZE) -> np.ndarray:
    """Where the darker tone of a pattern lies: (size, size) in [0, 1]; 0 everywhere for "plain"."""
    rows, columns = np.mgrid[0:size, 0:size]
    if kind == "striped":
        return (rows // 8 % 2).astype(np.float32)
    if kind == "checked":
        return ((rows // 8 + columns // 8) % 2).astype(np.float32)
    if kind == "dotted":
        return np.clip(3.5 - np.hypot(rows % 16 - 7.5, columns % 16 - 7.5), 0.0, 1.0).astype(np.float32)
    if kind == "plain":
        return np.zeros((size, size), np.float32)
    raise ValueError(f"background {kind!r} is unknown; choose one of {', '.join(BACKGROUNDS)}")


# ------------------------------------------------------------------------------------------------------ descriptions


@dataclass(frozen=True)
class Thing:
    """One shape. `size` is None where the caption does not say it."""

    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says. `things` stand from left to right ("row") or from top to bottom ("column").

    `place` (of a "single" thing) and `background` are None where the caption does not say them.
    """

    things: tuple[Thing, ...]
    layout: str
    place: str | None
    background: str | None
    caption: str


def is_test_caption(caption: str) -> bool:
    """Whether a caption is kept for testing: one in sixteen, decided by its text alone."""
    return zlib.crc32(caption.encode()) % 16 == 0


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _thing(rng, count: int, held_out: bool) -> Thing:
    """A random thing, of a held-out pair of colour and shape or of another."""
    while True:
        pair = _pick(rng, sorted(HELD_OUT)) if held_out else (_pick(rng, list(COLOURS)), _pick(rng, list(SHAPES)))
        if not held_out and pair in HELD_OUT:
            continue
        sizes = ("small", None) if count == 3 else ("small", "large", None, None)  # three large ones would not fit
        return Thing(*pair, _pick(rng, sizes))


def _noun(thing: Thing, rng) -> str:
    size = f"{_pick(rng, _SIZE_WORDS[thing.size])} " if thing.size else ""
    article = "an" if not size and thing.colour == "orange" else "a"
    return f"{article} {size}{thing.colour} {thing.shape}"


def _wording(things, layout, place, background, rng) -> str:
    nouns = [_noun(thing, rng) for thing in things]
    if layout == "single":
        text = nouns[0] + (f" {_pick(rng, _PLACE_WORDS[place])}" if place else "")
    else:
        forms = {("row", 2): _ROW2, ("column", 2): _COLUMN2, ("row", 3): _ROW3, ("column", 3): _COLUMN3}
        text = _pick(rng, forms[layout, len(things)]).format(*nouns)
    opening = "" if text.startswith("from") else _pick(rng, _OPENINGS)
    return opening + text + (" " + _pick(rng, _BACKGROUND_WORDS).format(background) if background else "")


def describe(
    rng: np.random.Generator, *, count: int | None = None, test: bool = False, held_out: bool = False
) -> Description:
    """A random description with `count` things (None: one to three) and its caption.

    `test` chooses the side of the captions; `held_out` makes the first thing a held-out pair (only with `test`).
    """
    if held_out and not test:
        raise ValueError("held_out=True goes with test=True: held-out pairs are not for training")
    wanted = count or int(rng.choice([1, 2, 3], p=[0.4, 0.45, 0.15]))
    if wanted not in (1, 2, 3):
        raise ValueError(f"count={count}: a scene holds 1, 2 or 3 things")
    while True:
        things = tuple(_thing(rng, wanted, held_out and k == 0) for k in range(wanted))
        layout = "single" if wanted == 1 else _pick(rng, ("row", "column"))
        place = _pick(rng, (None, None, *PLACES)) if wanted == 1 else None
        background = _pick(rng, (None, None, None, *BACKGROUNDS))
        caption = _wording(things, layout, place, background, rng)
        if is_test_caption(caption) == test:
            return Description(things, layout, place, background, caption)


def changed(description: Description, index: int, rng: np.random.Generator) -> Description:
    """The same scene with another thing in the place of thing `index`, of another colour or shape, or both; its size
    stays, and the caption, of the same side (training or test), is worded anew."""
    test, old = is_test_caption(description.caption), description.things[index]
    while True:
        new = _thing(rng, len(description.things), held_out=False)
        if (new.colour, new.shape) == (old.colour, old.shape):
            continue
        things = list(description.things)
        things[index] = replace(new, size=old.size)
        parts = (tuple(things), description.layout, description.place, description.background)
        caption = _wording(*parts, rng)
        if is_test_caption(caption) == test:
            return Description(*parts, caption)


# ----------------------------------------------------------------------------------------------------------- drawing


def _positions(description: Description, radii, rng) -> list[tuple[float, float]]:
    """Centres in pixels: in order along the layout's axis, close to one line across it."""
    low, high = [MARGIN + r for r in radii], [SIZE - MARGIN - r for r in radii]
    if description.layout == "single":
        jitter = rng.uniform(-2.5, 2.5, 2)
        at = PLACES[description.place or _pick(rng, list(PLACES))]
        x, y = (low[0] + f * (high[0] - low[0]) + j for f, j in zip(at, jitter, strict=True))
        return [(float(np.clip(x, low[0], high[0])), float(np.clip(y, low[0], high[0])))]
    need = 2 * sum(radii) + GAP * (len(radii) - 1)
    slack = np.diff(np.sort(rng.uniform(0, SIZE - 2 * MARGIN - need, len(radii) + 1)), prepend=0)
    along, edge = [], MARGIN
    for r, extra in zip(radii, slack, strict=False):
        along.append(edge + extra + r)
        edge = along[-1] + r + GAP
    middle = rng.uniform(26, 38)
    across = [float(np.clip(middle + rng.uniform(-3, 3), lo, hi)) for lo, hi in zip(low, high, strict=True)]
    pairs = list(zip(along, across, strict=True))
    return pairs if description.layout == "row" else [(y, x) for x, y in pairs]


def draw(description: Description, rng: np.random.Generator) -> np.ndarray:
    """The picture of a description, (64, 64, 3) uint8; what the caption leaves open is drawn at random."""
    tone = np.array(_pick(rng, list(TONES.values())), np.float32)
    pattern = background_pattern(description.background or _pick(rng, BACKGROUNDS))
    picture = tone * (1 - (1 - SHADE) * pattern[..., None])
    three = len(description.things) == 3
    sizes = [t.size or ("small" if three else _pick(rng, list(RADII))) for t in description.things]
    radii = [float(rng.uniform(*RADII[s])) for s in sizes]
    if three:  # three of the largest small ones and their gaps are as wide as the picture
        radii = [min(r, 8.6) for r in radii]
    for thing, r, (x, y) in zip(description.things, radii, _positions(description, radii, rng), strict=True):
        inside = coverage(thing.shape, x, y, r, float(rng.uniform(-TILT, TILT)))[..., None]
        picture = picture * (1 - inside) + np.array(COLOURS[thing.colour], np.float32) * inside
    return np.round(picture).astype(np.uint8)


class Shapes:
    """Endless scenes of one seed: `Shapes(seed)[i]` is (picture (64, 64, 3) uint8, Description), always the same."""

    def __init__(self, seed: int = 0, *, count: int | None = None, test: bool = False, held_out: bool = False):
        self.seed, self.options = seed, {"count": count, "test": test, "held_out": held_out}

    def __getitem__(self, index: int) -> tuple[np.ndarray, Description]:
        rng = np.random.default_rng((self.seed, index))
        description = describe(rng, **self.options)
        return draw(description, rng), description

    def describe(self, index: int) -> Description:
        """The description of scene `index`, without the picture."""
        return describe(np.random.default_rng((self.seed, index)), **self.options)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = [*COLOURS, *SHAPES, *BACKGROUNDS, *_OPENINGS, *_ROW2, *_COLUMN2, *_ROW3, *_COLUMN3, *_BACKGROUND_WORDS]
    texts += [word for words in (*_SIZE_WORDS.values(), *_PLACE_WORDS.values()) for word in words] + ["a", "an", "and"]
    words = " ".join(texts).replace(",", " ").split()
    return sorted({word for word in words if "{" not in word})
