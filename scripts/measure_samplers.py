"""How near each sampler comes, in few steps, to where its flow ends: the bundled model's latents, guided.

    python scripts/measure_samplers.py                          # docs/options.md's table, some minutes on two cores
    python scripts/measure_samplers.py --steps 10 20 --n 2      # quicker

Prints a row for each sampler and spacing, a column for each S: the distance (root mean square over a latent, the median
over the captions; latents have about unit variance) to what DPM-Solver++ draws in 300 steps from the same noise at the
last timestep. The last column is PLMS' in 200 steps, which says how far the reference itself can be trusted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _cli
import _config
import _machine
import _model
from score_shapes import check, unseen

SPACINGS = ("time_uniform", "logsnr")  # which begin at the last timestep: one noise is one picture
REFERENCE, CHECK = 300, 200  # steps of DPM-Solver++, and of PLMS


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("measure_samplers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = _cli.number(int, 1, 1000)
    parser.add_argument("--steps", type=count, nargs="+", default=[5, 10, 20, 50], metavar="S")
    parser.add_argument("--n", type=count, default=8, help="captions, none of the training's (default: 8)")
    parser.add_argument("--scale", type=_cli.number(float, -1e6), default=3.0, help="guidance (default: 3)")
    _cli.add_model_flags(parser, low_mem=False)
    opt = parser.parse_intermixed_args(argv)
    opt.json = None
    return opt


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    config, checkpoint, _ = _model.open_model(opt)
    check(config, opt)
    shape = _config.latent_shape(config, None, None, None, None)

    import torch

    from ldm.checkpoint import load_model
    from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler

    device = _machine.pick_device(opt.device)
    dtype = _machine.pick_dtype(opt.precision or config.precision, device)
    model = load_model(config, checkpoint, device=device, dtype=dtype, ema=opt.ema)
    captions = [description.caption for description in unseen(opt.n)]
    with torch.no_grad(), model.ema_scope():
        cond, uncond = _model.conditionings(model, "text", captions, "", opt.scale != 1)

        def draw(sampler: type, steps: int, spacing: str):
            latents, _ = sampler(model).sample(
                steps, opt.n, shape, cond, seeds=range(opt.n), ddim_discretize=spacing, progress=False,
                unconditional_guidance_scale=opt.scale, unconditional_conditioning=uncond,
            )  # fmt: skip
            return latents

        reference = draw(DPMSolverSampler, REFERENCE, SPACINGS[0])

        def distance(*how) -> str:
            return f"{(draw(*how) - reference).flatten(1).square().mean(1).sqrt().median():.3f}"

        print("| sampler | `ddim_discretize` | " + " | ".join(f"S = {s}" for s in opt.steps) + f" | PLMS, {CHECK} |")
        print("|" + "---|" * (3 + len(opt.steps)))
        trust = distance(PLMSSampler, CHECK, SPACINGS[0])
        for spacing in SPACINGS:
            for sampler in (DDIMSampler, PLMSSampler, DPMSolverSampler):
                cells = [distance(sampler, s, spacing) for s in opt.steps]
                print(f"| `{sampler.__name__}` | `{spacing}` | {' | '.join(cells)} | {trust} |", flush=True)


if __name__ == "__main__":
    _cli.run(main, "measure_samplers")
