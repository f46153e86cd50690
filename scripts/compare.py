"""One prompt under many settings: a table of pictures, one setting across and one down, all from the same noise.

    python scripts/compare.py --across steps=5,10,20,50 --down eta=0,0.5,1
    python scripts/compare.py --across sampler=ddim,plms,dpm_solver --down scale=1,3,6 --ddim_steps 10
    python scripts/compare.py --across "prompt=a red ring;a blue ring" --down seed=1,2,3

Settings: steps, eta, scale, seed, sampler, prompt, negative_prompt, and any other option of the sampler by its name in
the config, such as guidance_rescale=0,0.7. Values are parted by commas, texts by semicolons.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import _cli
import _config
import _gallery
import _sheet
from _session import Session

PROMPT = "a red circle above a blue square"
NAMES = {"steps": "ddim_steps", "eta": "ddim_eta", "scale": "scale", "seed": "seed"}
NUMBERS = {"steps": _cli.number(int, 1), "eta": _cli.number(float, 0), "scale": _cli.number(float, -1e6),
           "seed": _cli.number(int, 0, 2**63 - 1)}  # fmt: skip
SAMPLERS = {"ddim": "DDIMSampler", "plms": "PLMSSampler", "dpm_solver": "DPMSolverSampler"}
TEXTS = ("prompt", "negative_prompt")
MOST = 400  # pictures

Axis = tuple[str, list[str]]


def an_axis(text: str) -> Axis:
    """An argparse type: NAME=VALUE,VALUE → (name, values)."""
    name, equals, values = _cli.a_text(text).partition("=")
    found = [value.strip() for value in values.split(";" if name in TEXTS else ",")]
    if not equals or not name or "" in found and name not in TEXTS:
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=VALUE,VALUE, as in steps=5,10,20")
    if name == "sampler" and (unknown := [value for value in found if value not in SAMPLERS]):
        raise argparse.ArgumentTypeError(f"sampler {unknown[0]!r} is unknown; choose {', '.join(SAMPLERS)}")
    for value in found:
        NUMBERS.get(name, str)(value)
    return name, found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("compare", doc=__doc__)
    group = parser.add_argument_group("what is compared")
    group.add_argument("--across", type=an_axis, required=True, metavar="NAME=V,V", help="a column for each value")
    group.add_argument("--down", type=an_axis, default=("", [""]), metavar="NAME=V,V", help="a row for each value")
    _sheet.add_flags(parser, PROMPT, "outputs/compare.png")
    return parser.parse_intermixed_args(argv)


def changed(opt: argparse.Namespace, settings: dict[str, str]) -> argparse.Namespace:
    """The flags with these settings instead."""
    opt = copy.copy(opt)
    for name, value in settings.items():
        if name == "sampler":
            opt.sampler = f"ldm.sampling.{SAMPLERS[value]}"
        elif name in TEXTS:
            setattr(opt, name, value)
        elif name in NAMES:
            setattr(opt, NAMES[name], NUMBERS[name](value))
        elif name:
            opt.overrides = [*opt.overrides, f"sampler.params.{name}={value}"]
    return opt


def labels(name: str, values: Sequence[str]) -> list[str]:
    """What stands beside the pictures: texts by themselves, numbers with what they are of."""
    return [value or "(nothing)" if name in TEXTS else f"{name} {value}".strip() for value in values]


def cells(opt: argparse.Namespace) -> list[argparse.Namespace]:
    """The flags of every picture, row by row."""
    (across, columns), (down, rows) = opt.across, opt.down
    if across == down:
        raise ValueError(f"--across and --down are both {across}; compare two settings, or leave --down out")
    if len(columns) * len(rows) > MOST:
        raise ValueError(f"{len(columns)} times {len(rows)} pictures; at most {MOST} are drawn")
    return [changed(opt, {across: column, down: row}) for row in rows for column in columns]


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    out = _gallery.png_to_write(opt.out, "--out")
    sessions = [Session(each) for each in cells(opt)]  # their errors come before a model is loaded
    pictures = drawn(sessions, opt)

    from ldm.image import table

    (across, columns), (down, rows) = opt.across, opt.down
    table(pictures, labels(across, columns), labels(down, rows)).save(out)
    print(f"{len(pictures)} picture{'s' * (len(pictures) > 1)}: {out}")


def drawn(sessions: Sequence[Session], opt: argparse.Namespace) -> list[Any]:
    """A picture of each session, with one model."""
    from tqdm import tqdm

    from ldm.image import to_pil

    first, pictures = sessions[0], []
    shape = _config.latent_shape(first.config, opt.H, opt.W, opt.C, opt.f)
    prompts = [session.prompts(None, PROMPT)[0] for session in sessions]
    with first.loaded(), contextlib.closing(tqdm(sessions, desc="pictures")) as bar:
        for session, prompt in zip(bar, prompts, strict=True):
            session.share(first)
            pictures += to_pil(session.sample([(prompt, session.opt.seed)], shape, progress=False))
    return pictures


if __name__ == "__main__":
    _cli.run(main, "compare")
