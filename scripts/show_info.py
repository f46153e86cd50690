"""How a picture was made: the settings in a PNG, and the command that makes it again.

    python scripts/show_info.py outputs/txt2img-samples/samples/00000.png
    python scripts/show_info.py picture.png --ckpt sd-v1-4.ckpt       # its weights: a picture tells their name
    python scripts/show_info.py picture.png --json

Pictures of other tools that write a "parameters" text are read, too; what they say that no flag here says is listed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import _cli
import _config

SAMPLERS = {"DDIM": [], "PLMS": ["--plms"], "DPMSolver": ["--dpm_solver"]}
PRECISIONS = {"float32": "full", "bfloat16": "bf16", "float16": "fp16"}
# What a setting is called on the command line, in the order in which they stand there.
FLAGS = {
    "init_img": "--init-img", "mask": "--mask", "white": "--white", "depth": "--depth", "prompt": "--prompt",
    "edit": "--edit", "negative_prompt": "--negative_prompt", "strength": "--strength", "refine": "--refine",
    "noise_level": "--noise_level", "seed": "--seed", "steps": "--ddim_steps", "eta": "--ddim_eta", "scale": "--scale",
    "reuse_features": "--reuse_features", "merge_tokens": "--merge_tokens",
}  # fmt: skip
TELLING = {"refine": "invert", "mask": "inpaint", "noise_level": "upscale", "depth": "depth2img", "init_img": "img2img"}
SIZED = ("txt2img", "img2img")  # what takes --H and --W
PATHS = ("init_img", "mask", "depth", "embeddings")  # of which a picture tells the last name alone


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("show_info", doc=__doc__)
    parser.add_argument("picture", type=_cli.a_path, metavar="PNG", help="the picture's file")
    parser.add_argument("--ckpt", type=_cli.a_path, help="its model's weights, for the command")
    parser.add_argument("--json", action="store_true", help="print the settings as JSON, and no command")
    return parser.parse_args(argv)


def command(made: dict[str, Any], ckpt: str | None = None) -> tuple[list[str], list[str]]:
    """(the words of the command, the names of settings that it cannot say)."""
    script = next((script for name, script in TELLING.items() if name in made), "txt2img")
    left = {name: value for name, value in made.items() if value is not None}
    if not left.get("negative_prompt"):
        left.pop("negative_prompt", None)
    if script == "invert":
        text, left["prompt"] = left.get("prompt", ""), left.pop("inverted_as", "")
        left["edit"] = None if text == left["prompt"] and left.get("scale") == 1 else text  # None: the way back alone
    words = ["python", f"scripts/{script}.py", *_flags(left)]
    width, height = left.pop("width", None), left.pop("height", None)
    if script in SIZED and width and height:
        words += ["--W", str(width), "--H", str(height)]
    words += _model(left, ckpt)
    if script != "invert":
        words += ["--n_samples", "1", "--n_iter", "1"]
    known = _options(made.get("sampler", "DDIM"))
    words += [f"sampler.params.{name}={json.dumps(left.pop(name))}" for name in list(left) if name in known]
    return words, list(left)


def _flags(left: dict[str, Any]) -> list[str]:
    """The flags of all scripts; what they say is taken out of `left`."""
    words = []
    for name, flag in FLAGS.items():
        if (value := left.pop(name, None)) is not None:
            text = str(value)
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]  # else it would be read as a flag
    if left.pop("invert_depth", False):
        words.append("--invert_depth")
    if left.get("sampler", "DDIM") in SAMPLERS:
        words += SAMPLERS[left.pop("sampler", "DDIM")]
    if left.get("precision") in PRECISIONS:
        words += ["--precision", PRECISIONS[left.pop("precision")]]
    return words


def _model(left: dict[str, Any], ckpt: str | None) -> list[str]:
    """The flags that say which model; nothing for the bundled one."""
    model, config = left.pop("model", None), left.pop("config", None)
    words = [word for name in left.pop("embeddings", []) for word in ("--embedding_path", name)]
    if left.pop("ema", False):
        words.append("--ema")
    overrides = left.pop("overrides", [])
    if ckpt is None and (model, config) in ((_config.BUNDLED_CKPT.stem, _config.BUNDLED_CONFIG.stem), (None, None)):
        return [*words, *overrides]
    where = ["--ckpt", ckpt or str(model)]
    return [*words, *where, *(["--config", config] if config not in (None, "diffusers") else []), *overrides]


def _options(sampler: str) -> frozenset[str]:
    """What `sampler.params` may say."""
    import ldm.sampling

    kind = getattr(ldm.sampling, f"{sampler}Sampler", ldm.sampling.DDIMSampler)
    return frozenset(_config._options_of(kind.__init__) | _config._options_of(kind.sample))


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    from ldm.image import read_settings

    made = read_settings(opt.picture)
    if not made:
        remedy = "the pictures of these scripts do, but for grids and sheets, and for what another program saved again"
        raise ValueError(f"{opt.picture} does not tell how it was made; {remedy}")
    if opt.json:
        print(json.dumps(made, indent=1, ensure_ascii=False))
        return
    wide = max(map(len, made))
    for name, value in made.items():
        print(f"{name:{wide}}  {value if isinstance(value, str) else json.dumps(value)}")
    words, unsaid = command(made, opt.ckpt)
    print(f"\n{shlex.join(words)}")
    if unsaid:
        print(f"show_info: no flag says: {', '.join(unsaid)}", file=sys.stderr)
    if names := [name for kind in PATHS for name in [made.get(kind, [])] if name]:
        told = ", ".join(name if isinstance(name, str) else ", ".join(name) for name in names)
        print(f"show_info: a picture tells names, no paths; give those of {told}", file=sys.stderr)


if __name__ == "__main__":
    _cli.run(main, "show_info")
