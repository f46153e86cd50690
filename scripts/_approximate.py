"""--reuse_features and --merge_tokens: less time for pictures that are not quite those of the model. Never a default.

What each costs, in time and in likeness, is in docs/speed_approximate.md.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any


def add_flags(parser: argparse.ArgumentParser, number: Callable[..., Callable[[str], Any]]) -> None:
    """`number`: `_cli`'s, which uses this."""
    group = parser.add_argument_group("approximations (never exact: docs/speed_approximate.md)")
    group.add_argument(
        "--reuse_features",
        metavar="N",
        type=number(int, 1),
        default=1,
        help="run the deep part of the U-Net at every N-th step only (DeepCache, Ma et al. 2023; default: 1, exact)",
    )
    group.add_argument(
        "--merge_tokens",
        metavar="R",
        type=number(float, 0, 0.75),
        default=0.0,
        help="self-attention at the highest resolution takes this share of the tokens, those most alike, together "
        "(Bolya and Hoffman 2023; 0 to 0.75, default: 0, exact)",
    )


def settings(opt: argparse.Namespace) -> dict[str, Any]:
    """What a picture's file must tell of them: those that are not exact."""
    given = {"reuse_features": opt.reuse_features, "merge_tokens": opt.merge_tokens}
    return {name: value for name, value in given.items() if value != {"reuse_features": 1, "merge_tokens": 0}[name]}


def check(opt: argparse.Namespace) -> None:
    """ValueError for what does not go together."""
    if opt.reuse_features > 1 and opt.compile:
        raise ValueError(
            "--reuse_features and --compile: a compiled network runs in full at each step; give one of them"
        )


@contextlib.contextmanager
def applied(model, opt: argparse.Namespace) -> Iterator[None]:
    """Inside, the model's network is approximate, as the flags say; ValueError where they would have no effect."""
    with contextlib.ExitStack() as stack:
        if opt.reuse_features > 1:
            from ldm.modules.feature_reuse import reuse_features

            stack.enter_context(reuse_features(model, opt.reuse_features))
        if opt.merge_tokens:
            from ldm.modules.token_merging import merge_tokens

            stack.enter_context(merge_tokens(model, opt.merge_tokens))
        yield
