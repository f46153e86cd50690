"""From one picture's noise to another's: a strip of pictures between two seeds, on the great circle between them.

    python scripts/interpolate.py --prompt "a big yellow star" --seed 1 --to 2
    python scripts/interpolate.py --prompt "a big yellow star" --seed 1 --to 2 --to 3 --n 7

The first and the last picture of a row are those that txt2img.py draws of these seeds. With eta at 0 nothing else is
drawn at random (DDIM, Song et al. 2021, section 5.3).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _cli
import _config
import _gallery
import _sheet
from _session import Session

PROMPT = "a big yellow star"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("interpolate", doc=__doc__)
    group = parser.add_argument_group("from --seed to another")
    group.add_argument(
        "--to", type=_cli.number(int, 0, 2**63 - 1), action="append", metavar="SEED",
        help="the seed at the other end; again: a row from there to the next (default: SEED + 1)",
    )  # fmt: skip
    group.add_argument("--n", type=_cli.number(int, 2, 100), default=7, help="pictures in a row (default: 7)")
    _sheet.add_flags(parser, PROMPT, "outputs/interpolated.png")
    return parser.parse_intermixed_args(argv)


def strip(session: Session, prompt: str, shape: tuple, seeds: tuple[int, int], n: int):
    """`n` pictures (n, 3, H, W) from one seed's noise to the other's."""
    import torch

    from ldm.sampling import slerp
    from ldm.sampling.noise import noise_source

    a, b = (noise_source(1, seeds=[seed]).normal((1, *shape), session.device) for seed in seeds)
    x_T = torch.cat([slerp(a, b, k / (n - 1)) for k in range(n)])
    return session.sample([(prompt, seeds[0])] * n, shape, x_T=x_T)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    out = _gallery.png_to_write(opt.out, "--out")
    session = Session(opt)
    if session.options["eta"]:
        raise ValueError(f"eta is {session.options['eta']}: noise on the way would hide what is between; leave it at 0")
    shape = _config.latent_shape(session.config, opt.H, opt.W, opt.C, opt.f)
    (prompt,) = session.prompts(None, PROMPT)
    seeds = [opt.seed, *(opt.to or [opt.seed + 1])]
    pictures = []
    with session.loaded():
        from ldm.image import table, to_pil

        for pair in zip(seeds, seeds[1:], strict=False):
            pictures += to_pil(strip(session, prompt, shape, pair, opt.n))
    rows = [f"seed {a} to {b}" for a, b in zip(seeds, seeds[1:], strict=False)]
    table(pictures, [f"{k / (opt.n - 1):.2f}" for k in range(opt.n)], rows).save(out)
    print(f"{len(pictures)} pictures: {out}")


if __name__ == "__main__":
    _cli.run(main, "interpolate")
