"""Pictures of what a model knows, without a text: of an unconditional model, or of classes; as CompVis' script.

    python scripts/sample_diffusion.py -r models/ldm/celeba256/model.ckpt -l logs -n 1000 --batch_size 20 -c 200 -e 1.0
    python scripts/sample_diffusion.py -r models/ldm/cin256-v2 -n 8 --classes 207 360 --scale 3
    python scripts/sample_diffusion.py -n 16                       # the bundled model, with the empty prompt

Models of classes draw each class in turn; those of text draw with the empty prompt. Picture i has the seed SEED + i, in
any batch size. All pictures are saved one by one, with their settings, and together in one .npz.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import _cli
import _config
import _model
from _gallery import Gallery
from _session import Session
from _stack import Stack

LOGDIR = "outputs/diffusion-samples"
# DDPM (Ho et al. 2020, algorithm 2) is DDIM through all T timesteps, with η = 1, to no noise at all.
VANILLA = {"eta": 1.0, "final_alpha": "one", "ddim_discretize": "uniform", "timesteps": None, "steps_offset": None}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("sample_diffusion", doc=__doc__)
    group = parser.add_argument_group("what is drawn")
    group.add_argument(
        "-r", "--resume", type=_cli.a_path, metavar="PATH",
        help="a checkpoint, or a log folder that holds model.ckpt or checkpoints/last.ckpt; its config is config.yaml "
        "or configs/…-project.yaml there, else what the weights show them to be (default: --ckpt)",
    )  # fmt: skip
    group.add_argument(
        "-n", "--n_samples", dest="total", metavar="N", type=_cli.number(int, 1, 10**7), default=16,
        help="how many pictures in all (default: 16; the original's is 50000, as many as FID takes)",
    )  # fmt: skip
    group.add_argument(
        "--batch_size", dest="n_samples", metavar="N", type=_cli.a_count, default=10, help="(default: 10)"
    )
    group.add_argument(
        "--classes", type=_cli.number(int, 0), nargs="+", metavar="K",
        help="class numbers, which the pictures take in turn (default: all that the model knows)",
    )  # fmt: skip
    group.add_argument(
        "--negative_prompt", metavar="K", type=_cli.a_text, default="",
        help="the class that guidance leads away from (default: the last of 1001, which stands for none)",
    )  # fmt: skip
    group.add_argument(
        "-l", "--logdir", type=_cli.a_path,
        help="pictures go to LOGDIR/MODEL/samples/STEP/TIME/img, MODEL being the model's folder and STEP that of its "
        f"training, and to …/numpy/NxHxWx3-samples.npz (default: where that folder is; without -r {LOGDIR})",
    )  # fmt: skip
    group = parser.add_argument_group("sampling")
    samplers = _cli.add_sampler_flags(group, scale=1.0, eta=1.0)
    group.add_argument("-c", "--custom_steps", dest="ddim_steps", type=_cli.number(int, 1), help="as --ddim_steps")
    group.add_argument("-e", "--eta", dest="ddim_eta", type=_cli.number(float, 0), help="as --ddim_eta")
    samplers.add_argument(
        "-v", "--vanilla_sample", action="store_true",
        help="DDPM: all timesteps of the training, with eta 1, to no noise at all; slow",
    )  # fmt: skip
    _cli.add_size_flags(parser)
    _cli.add_model_flags(parser)
    parser.set_defaults(n_iter=1, fixed_code=False)  # what the other scripts have flags for
    return parser.parse_intermixed_args(argv)


def choose(opt: argparse.Namespace) -> Path:
    """Set --ckpt and --config by -r; the folder for this model's samples."""
    if opt.resume is None:
        name = Path(os.path.abspath(opt.ckpt or _config.BUNDLED_CKPT)).stem
        return Path(opt.logdir or LOGDIR, name, "samples")
    if opt.ckpt is not None:
        raise ValueError(f"--resume {opt.resume} and --ckpt {opt.ckpt} both say which weights; leave one out")
    ckpt, config, home = _model.find_trained(opt.resume)
    opt.ckpt, opt.config = str(ckpt), opt.config or (config and str(config))
    return Path(opt.logdir or home.parent, home.name, "samples")


def told(session: Session, opt: argparse.Namespace) -> list[str]:
    """What each picture is told: a class's number, else nothing. Only classes are guided."""
    if session.kind == "class":
        n = _model.number_of_classes(session.config)
        labels = opt.classes or range(n - 1 if n == _model.IMAGENET_AND_NONE else n)
        prompts = [str(labels[k % len(labels)]) for k in range(opt.total)]
        _model.check_classes(session.config, prompts, opt.negative_prompt, session.guided)
        return prompts
    if opt.classes:
        raise ValueError(f"--classes {opt.classes[0]}: this model is told {session.kind}, not classes; leave it out")
    if opt.scale not in (None, 1) or opt.negative_prompt:
        warnings.warn("nothing is told to this model here: --scale and --negative_prompt have no effect", stacklevel=2)
    session.options |= _model.UNGUIDED
    return [""] * opt.total


def new_folder(samples: Path, step: int | None) -> Path:
    """SAMPLES/STEP/TIME, which no other run has."""
    name = time.strftime("%Y-%m-%d-%H-%M-%S")
    for k in itertools.count():
        folder = samples / f"{step or 0:08}" / (f"{name}-{k}" if k else name)
        if not folder.exists():
            folder.mkdir(parents=True)
            return folder


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    samples = choose(opt)
    if opt.vanilla_sample:
        opt.sampler = _config.SAMPLER
        if (opt.ddim_steps, opt.ddim_eta) != (None, None):
            warnings.warn("with --vanilla_sample, DDPM, the number of steps and eta have no effect", stacklevel=2)
    session = Session(opt, defaults={"eta": 1.0, "unconditional_guidance_scale": 1.0})
    shape = _config.latent_shape(session.config, opt.H, opt.W, opt.C, opt.f)
    prompts = told(session, opt)
    folder = new_folder(samples, session.global_step)
    gallery = Gallery(folder, folder="img", prefix="sample_", digits=6, grid=False)
    f = _config.scales(session.config, opt.C, opt.f)[1]
    stack = Stack(folder / "numpy", (opt.total, shape[1] * f, shape[2] * f, 3))
    with session.loaded() as model, gallery, stack:
        from ldm.image import to_pil

        if opt.vanilla_sample:
            session.options |= {"S": model.num_timesteps, **VANILLA}
        for jobs in session.batches(prompts):
            pictures = to_pil(session.sample(jobs, shape))
            gallery.add(pictures, session.settings(jobs))
            stack.add(pictures)
    print(f"{gallery.finish(1)}, together in {stack.path}")


if __name__ == "__main__":
    _cli.run(main, "sample_diffusion")
