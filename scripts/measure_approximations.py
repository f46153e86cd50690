"""What --reuse_features and --merge_tokens cost and gain: the bundled model's pictures of unseen captions.

    python scripts/measure_approximations.py                        # docs/speed_approximate.md's table, some minutes
    python scripts/measure_approximations.py --n 8 --ddim_steps 20  # quicker
    python scripts/measure_approximations.py --stable_diffusion 32  # a step's time with its shapes, random weights

A row for each setting, all from the same captions and seeds: the CPU time relative to the exact pictures', the distance
to them (root mean square, in grey levels), and how many pictures have all that their caption says, as score_shapes.py
counts it. Random weights draw nothing that could be judged, so with --stable_diffusion SIZE (of the latents) there is
only the time, of one guided step, the median of --rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Sequence

import _approximate
import _cli
import _config
import _machine
import _model
import _session
from score_shapes import check, draw, unseen

SETTINGS = ((1, 0), (2, 0), (3, 0), (5, 0), (10, 0), (1, 0.25), (1, 0.5), (1, 0.75), (3, 0.5))  # N and R; exact first


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    about = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _cli.Parser("measure_approximations", **about)
    count = _cli.number(int, 1)
    parser.add_argument("--n", type=count, default=100, help="captions, none of the training's (default: 100)")
    parser.add_argument("--batch", type=count, default=25)
    parser.add_argument("--ddim_steps", type=count, help="(default: the config's)")
    parser.add_argument("--scale", type=_cli.number(float, -1e6), help="guidance (default: the config's)")
    parser.add_argument("--stable_diffusion", type=_cli.number(int, 8), metavar="SIZE", help="measure its step instead")
    parser.add_argument("--rounds", type=count, default=3, help="of --stable_diffusion (default: 3)")
    _cli.add_model_flags(parser, low_mem=False)
    opt = parser.parse_intermixed_args(argv)
    opt.json = None
    return opt


def approximately(model, n: int, ratio: float) -> contextlib.AbstractContextManager:
    return _approximate.applied(model, argparse.Namespace(reuse_features=n, merge_tokens=ratio))


def cpu_seconds(function: Callable, *args) -> tuple[float, object]:
    before = time.process_time()
    result = function(*args)
    return time.process_time() - before, result


def measure_pictures(opt: argparse.Namespace) -> None:
    config, checkpoint, _ = _model.open_model(opt)
    check(config, opt)

    import torch

    model, sampler, options = _session.measured(config, checkpoint, opt)
    shape = _config.latent_shape(config, None, None, None, None)
    descriptions = unseen(opt.n)
    seconds, pictures = [0.0] * len(SETTINGS), [[] for _ in SETTINGS]
    with torch.no_grad():
        _machine.prepare(model)
        draw(model, sampler, descriptions[:1], shape, options, 1, 0)  # what is done once is nobody's
        for start in range(0, opt.n, opt.batch):  # each setting in turn, so that a busy machine is so for all
            part = descriptions[start : start + opt.batch]
            for k, setting in enumerate(SETTINGS):
                with approximately(model, *setting):
                    took, drawn = cpu_seconds(draw, model, sampler, part, shape, options, opt.batch, start)
                seconds[k] += took
                pictures[k] += drawn
    show_pictures(seconds, pictures, descriptions)


def show_pictures(seconds: list[float], pictures: list[list], descriptions: list) -> None:
    import numpy as np

    from ldm.data.checker import score

    print("| `--reuse_features` | `--merge_tokens` | CPU time | rms, grey levels | all right |\n|---|---|---|---|---|")
    exact = np.stack(pictures[0]).astype(float)
    for (n, ratio), took, drawn in zip(SETTINGS, seconds, pictures, strict=True):
        rms = np.sqrt(np.square(np.stack(drawn) - exact).mean())
        right = sum(all(score(*pair).values()) for pair in zip(drawn, descriptions, strict=True))
        print(f"| {n} | {ratio:g} | {took / seconds[0]:.2f} | {rms:.1f} | {right} of {len(drawn)} |")
    print(f"\nExact: {seconds[0] / len(descriptions):.2f} CPU seconds for each picture.")


def measure_step(opt: argparse.Namespace) -> None:
    import torch
    from omegaconf import OmegaConf

    from ldm.modules.inference import prepare_for_inference
    from ldm.modules.kept import keeping
    from ldm.util import instantiate_from_config

    config = OmegaConf.load(_config.find("stable-diffusion/v1-inference"))
    network = instantiate_from_config(config.model.params.unet_config)
    prepare_for_inference(network)
    x, context = torch.randn(1, 4, opt.stable_diffusion, opt.stable_diffusion), torch.randn(2, 77, network.context_dim)
    context = keeping(context)
    rows = {"exact": (1, 0), "between full steps": (2, 0), **{f"merging {r:g}": (1, r) for r in (0.25, 0.5, 0.75)}}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    with torch.no_grad():
        network(x, torch.tensor([900]), context)  # packs the weights
        for _ in range(opt.rounds):
            for name, setting in rows.items():
                with approximately(network, *setting):
                    if setting[0] > 1:
                        network(x, torch.tensor([900]), context)
                    seconds[name].append(cpu_seconds(network, x, torch.tensor([800]), context)[0])
    exact = statistics.median(seconds["exact"])
    print("| a step | CPU seconds | relative |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {statistics.median(taken):.2f} | {statistics.median(taken) / exact:.2f} |")


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    measure_pictures(opt) if opt.stable_diffusion is None else measure_step(opt)


if __name__ == "__main__":
    _cli.run(main, "measure_approximations")
