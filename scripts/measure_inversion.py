"""How well the bundled model's pictures come back from noise: encode with S steps, decode with S steps, compare.

    python scripts/measure_inversion.py                                    # docs/inversion.md's table, without guidance
    python scripts/measure_inversion.py --scale 3 --steps 10 50 200        # where guidance pulls

Prints a row for each S, a column for each number of refinements: the mean square of the error of a pixel's channel,
with channels from 0 to 1, as in table 2 of DDIM (Song et al. 2021). What is compared is the picture of the latents
before and after, so that what the autoencoder loses is left out. No caption of the scenes was in training.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import _cli
import _config
import _machine
import _model
import _pictures

SEED = 2021  # of the test scenes, as in score_shapes.py


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("measure_inversion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = _cli.number(int, 1)
    parser.add_argument("--steps", type=count, nargs="+", default=[10, 20, 50, 100, 200, 500, 1000], metavar="S")
    parser.add_argument("--refine", type=_cli.number(int, 0), nargs="+", default=[0, 2], metavar="N")
    parser.add_argument("--n", type=count, default=2, help="pictures (default: 2)")
    parser.add_argument("--scale", type=_cli.number(float, -1e6), default=1.0, help="guidance (default: 1, none)")
    _cli.add_model_flags(parser, low_mem=False)
    return parser.parse_intermixed_args(argv)


def scenes(n: int):
    """(pictures (n, 3, 64, 64) in [-1, 1], their captions), none of them in training."""
    import numpy as np
    import torch

    from ldm.data.shapes import Shapes

    test = Shapes(SEED, test=True)
    pictures, descriptions = zip(*(test[i] for i in range(n)), strict=True)
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x, [description.caption for description in descriptions]


def error(model, sampler, z, cond, guidance: dict, steps: int, refine: int) -> float:
    """The mean square error of the pictures of latents `z`, (B, …), after they went to noise and back."""
    sampler.make_schedule(steps, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it diverges is in the table
        noise, _ = sampler.encode(z, cond, steps, refine=refine, **guidance)
    back = sampler.decode(noise, cond, steps, **guidance)
    return _pictures.mean_square(_machine.decode(model, z), _machine.decode(model, back))


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    config, checkpoint, _ = _model.open_model(opt)
    if _model.told_by(config) != "text":
        raise ValueError("this model is not told text, and what is measured here are captioned scenes")

    import torch

    from ldm.checkpoint import load_model

    device = _machine.pick_device(opt.device)
    dtype = _machine.pick_dtype(opt.precision or config.get("precision", "auto"), device)
    model = load_model(config, checkpoint, device=device, dtype=dtype, ema=opt.ema)
    sampler = _config.sampler_class(config)(model)
    pictures, captions = scenes(opt.n)
    print("| S | " + " | ".join(f"refine={n}" for n in opt.refine) + " |")
    print("|" + "---|" * (1 + len(opt.refine)))
    with torch.no_grad(), model.ema_scope():
        posterior = model.encode_first_stage(pictures.to(device, dtype))
        z = model.get_first_stage_encoding(posterior.mode()).float()
        guided = opt.scale != 1
        cond, uncond = _model.conditionings(model, "text", captions, "", guided)
        guidance = {"unconditional_guidance_scale": opt.scale, "unconditional_conditioning": uncond} if guided else {}
        for s in opt.steps:
            cells = [f"{error(model, sampler, z, cond, guidance, s, n):.1e}" for n in opt.refine]
            print(f"| {s} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    _cli.run(main, "measure_inversion")
