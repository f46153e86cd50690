"""A picture to the noise that a model draws it from, and back; or on to another picture, by another text.

    python scripts/invert.py --init-img scene.png --prompt "a red circle" --edit "a blue circle" --edit "a red star"
    python scripts/invert.py --init-img face.png --ckpt celeba256/model.ckpt --ddim_steps 100 --strength 1

DDIM inversion (Song et al. 2021), its steps refined (docs/inversion.md): without guidance, with what --prompt says. The
way back with the same words gives the picture again; with those of --edit, guided, what they say otherwise. Nothing is
drawn at random.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _cli
import _config
import _machine
import _model
import _pictures
from _gallery import Gallery
from _session import Session, finite

SCALE = 3.0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("invert", doc=__doc__)
    group = parser.add_argument_group("picture and text")
    _pictures.add_picture_flag(group, "the picture to invert")
    group.add_argument(
        "--prompt", type=_cli.a_text, help="what the picture shows; of a class-conditional model, a number (default: "
        "nothing, but then what --edit does not say is free to change, too)",
    )  # fmt: skip
    group.add_argument(
        "--edit", type=_cli.a_text, action="append", default=[], metavar="TEXT",
        help="what it is to show instead; may be given several times, for a picture each",
    )  # fmt: skip
    group.add_argument(
        "--negative_prompt", type=_cli.a_text, default="",
        help="what to keep out of the edits: takes the place of the empty prompt",
    )  # fmt: skip
    group = parser.add_argument_group("sampling")
    _cli.add_steps_flags(group)
    group.add_argument(
        "--strength", type=_cli.a_strength, default=0.5,
        help="how far up to invert, above 0 and up to 1, which is noise alone: int(STRENGTH * steps) steps. The lower, "
        "the more of the picture is in the edits (default: 0.5)",
    )  # fmt: skip
    group.add_argument(
        "--refine", type=_cli.number(int, 0, 100), default=2, metavar="N",
        help="ask the network N times more at each step up, which makes the way back meet the picture (default: 2)",
    )  # fmt: skip
    _cli.add_scale_flag(group, SCALE, "guidance of the edits (the picture itself goes up and comes back without)")
    _cli.add_size_flags(parser, own="the picture's; of one alone, the other in proportion")
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, "outputs/inverted", row="all of a picture's")
    return parser.parse_intermixed_args(argv)


def described(session: Session, opt: argparse.Namespace) -> str:
    """What the picture shows. ValueError for what the model cannot be told, a warning for what has no effect."""
    if session.kind == "nothing":
        if opt.edit:
            raise ValueError(f"--edit {opt.edit[0]!r}: this model is told nothing, so nothing else can be said to it")
        _model.unguided(session.options, argparse.Namespace(**{"from_file": None, **vars(opt)}))
        return ""
    if not opt.edit and (opt.negative_prompt or opt.scale not in (None, 1)):
        warnings.warn("without --edit, --scale and --negative_prompt have no effect", stacklevel=2)
    if session.kind == "class":
        guided = session.guided and bool(opt.edit)
        _model.check_classes(session.config, [opt.prompt, *opt.edit], opt.negative_prompt, guided)
    return opt.prompt or ""


def guidance(session: Session) -> dict[str, Any]:
    """Make the sampler's schedule by the options; returns those of guidance, and warns of others that are left."""
    from ldm.sampling.arguments import ENCODES, SCHEDULE, select, without_none

    given = without_none(**session.options)
    steps, eta = given.pop("S"), given.pop("eta")
    session.sampler.make_schedule(steps, verbose=False, **select(given, SCHEDULE))
    idle = given.keys() - ENCODES - set(SCHEDULE) - {"unconditional_guidance_scale"} | ({"eta"} if eta else set())
    if idle:
        warnings.warn(f"{', '.join(sorted(idle))} of sampler.params has no effect on inversion", stacklevel=2)
    return select(given, ENCODES)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    picture = _pictures.resized(_pictures.read(opt.init_img), opt.H, opt.W)
    session = Session(opt, defaults={"unconditional_guidance_scale": SCALE})
    if not hasattr(sampler := _config.sampler_class(session.config), "encode"):
        raise ValueError(f"{sampler.__name__} cannot invert; set sampler.target={_config.SAMPLER}")
    canvas = _pictures.Canvas.of(picture, session.config, opt.C, opt.f, name=opt.init_img)
    prompt = described(session, opt)
    gallery = Gallery(opt.outdir, save=not opt.skip_save, grid=not opt.skip_grid, twins=opt.save_json)
    gallery.show(picture, "the picture")
    with session.loaded() as model, gallery, finite(model):
        there_and_back(session, opt, canvas, prompt, gallery)
    print(gallery.finish(opt.n_rows or 2 + len(opt.edit)))


def there_and_back(session: Session, opt: argparse.Namespace, canvas, prompt: str, gallery: Gallery) -> None:
    from ldm.sampling.loop import steps_of_strength

    model, sampler, options = session.model, session.sampler, guidance(session)
    count = steps_of_strength(opt.strength, len(sampler.ddim_timesteps))
    latents = _machine.encode(model, canvas.tensor())
    cond, _ = _model.conditionings(model, session.kind, [prompt], "", guided=False)
    noise, _ = sampler.encode(latents, cond, count, refine=opt.refine, progress=True)

    def add(text: str, cond, name: str, caption: str, scale: float, **how: Any):
        """Come down from the noise, and save what is there."""
        images = _machine.decode(model, sampler.decode(noise, cond, count, progress=True, **how))
        told = {"init_img": Path(opt.init_img).name, "inverted_as": prompt, "strength": opt.strength}
        (made,) = session.settings([(text, None)], **told, refine=opt.refine, scale=scale)
        del made["seed"], made["eta"]
        gallery.add(canvas.cut(images), [made], f"{Path(opt.init_img).stem}-{name}", caption=caption)
        return images

    back = add(prompt, cond, "back", "there and back", 1.0)
    say_errors(canvas, _machine.decode(model, latents), back)
    scale = session.options["unconditional_guidance_scale"]
    for text in opt.edit:
        cond, uncond = _model.conditionings(model, session.kind, [text], opt.negative_prompt, session.guided)
        how = {"unconditional_guidance_scale": scale, "unconditional_conditioning": uncond} if session.guided else {}
        add(text, cond, "edit", text or "(nothing)", scale, **how, **options)


def say_errors(canvas, own, back) -> None:
    """How far the picture came back from the noise, and how far from the autoencoder alone (`own`)."""
    picture, own, back = (canvas.cut(images) for images in (canvas.tensor(), own, back))
    way, all, floor = (_pictures.mean_square(*pair) for pair in ((own, back), (picture, back), (picture, own)))
    print(f"mean square error there and back: {all:.1e}, of which the autoencoder alone makes {floor:.1e}; "
          f"from what the autoencoder makes of the picture: {way:.1e}")  # fmt: skip


if __name__ == "__main__":
    _cli.run(main, "invert")
