"""What the scripts share that draw one sheet of pictures: the flags of a prompt, a sampler, a model, and the sheet."""

from __future__ import annotations

import argparse

import _cli


def add_flags(parser: argparse.ArgumentParser, prompt: str, out: str) -> None:
    """`prompt`, `out`: the defaults. `_gallery.png_to_write` is for the second."""
    group = parser.add_argument_group("what the pictures have in common")
    group.add_argument("--prompt", type=_cli.a_text, default=prompt, help=f"(default: {prompt})")
    group.add_argument("--negative_prompt", type=_cli.a_text, default="", help="what to keep out")
    _cli.add_sampler_flags(group, scale=7.5)
    _cli.add_size_flags(parser)
    _cli.add_model_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=_cli.a_path, default=out, help="(default: %(default)s)")
    parser.set_defaults(n_iter=1, n_samples=1, fixed_code=False, from_file=None)  # what other scripts have flags for
