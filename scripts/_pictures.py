"""What the scripts share that begin from a picture: the flag, the size that is drawn at, and the way back to it."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from typing import Any

import _cli
import _config

LARGE = 4  # times the area that a model was made for: beyond it, pictures are slow, and things come twice


def add_picture_flag(group: argparse._ActionsContainer, what: str) -> None:
    group.add_argument("--init-img", type=_cli.a_path, metavar="PICTURE", help=f"the file of {what}")
    group.add_argument("--init_img", type=_cli.a_path, help=argparse.SUPPRESS)  # as other scripts call it


def read(path: str | None, flag: str = "--init-img"):
    """The picture that a flag names; ValueError where it does not."""
    from ldm.picture_files import read_picture

    if path is None:
        raise ValueError(f"{flag} is missing: give the file of a picture to begin from")
    return read_picture(path, flag=flag)


def fit(size: tuple[int, int], config, C: int | None, f: int | None, path: str) -> tuple[int, tuple[int, int, int]]:
    """(what to pad the sides to a multiple of, the latents' shape (C, h, w) then) for a picture of `size`, (W, H).

    ValueError for a picture that is smaller than one latent; a warning for one much larger than the model's.
    """
    C, f = _config.scales(config, C, f)
    step = _config.multiple(config, f)
    width, height = size
    if min(width, height) < f:
        raise ValueError(
            f"the picture {path!r} is {width}x{height} pixels, and one latent of this model covers {f}x{f}; give a "
            "larger one"
        )
    own = _config.own_size(config, f)
    if None not in own and width * height > LARGE * own[0] * own[1]:
        warnings.warn(
            f"the picture {path!r} is drawn at {width}x{height} pixels, {width * height / (own[0] * own[1]):.0f} times "
            f"the area that this model was made for ({own[1]}x{own[0]}): that takes time and memory, and things may "
            "come more than once; make it smaller",
            stacklevel=2,
        )
    return step, (C, *(-(-side // step) * step // f for side in (height, width)))


@dataclass(frozen=True)
class Canvas:
    """A picture to begin from, and what a model makes of its size."""

    picture: Any  # PIL's, RGB
    multiple: int  # of the sides that the model takes; the picture is padded to it
    shape: tuple[int, int, int]  # of the latents of the padded picture, (C, h, w)
    factor: int = 1  # by how much what is drawn is larger, a side

    @classmethod
    def of(cls, picture, config, C: int | None = None, f: int | None = None, *, name: str) -> Canvas:
        """As of `fit`; `name`: the picture's, for messages."""
        return cls(picture, *fit(picture.size, config, C, f, name))

    def tensor(self):
        """(1, 3, H, W) in [-1, 1], padded."""
        from ldm.picture_files import padded, to_tensor

        return padded(to_tensor(self.picture), self.multiple)

    def cut(self, images):
        """Pictures (B, C, H, W) that were drawn, of the padded size, without the padding."""
        return images[..., : self.picture.height * self.factor, : self.picture.width * self.factor]


def resized(picture, H: int | None, W: int | None):
    """The picture at H×W pixels; where one side is None, in its own proportions, and where both are, as it is.

    ValueError for more pixels than are read of a file.
    """
    from PIL import Image

    from ldm.picture_files import MEGAPIXELS

    if H is None and W is None:
        return picture
    width, height = picture.size
    size = W or max(1, round(width * H / height)), H or max(1, round(height * W / width))
    if size[0] * size[1] > MEGAPIXELS * 1e6:
        given = " ".join(f"--{flag} {side}" for flag, side in (("H", H), ("W", W)) if side is not None)
        raise ValueError(
            f"{given}: {size[0]}x{size[1]} are {size[0] * size[1] / 1e6:.0f} megapixels, and at most {MEGAPIXELS} are "
            "drawn; give a smaller size"
        )
    return picture.resize(size, Image.Resampling.LANCZOS)


def mean_square(images, others) -> float:
    """The mean square difference of pictures in [-1, 1], of a pixel's channel from 0 to 1, as in DDIM's table 2."""
    one, other = ((each.detach().float().cpu().clamp(-1, 1) + 1) / 2 for each in (images, others))
    return (one - other).square().mean().item()
