"""What scripts/sample_bulk.py gives to `ldm.bulk`: which rows, what decides their pictures, and who draws them."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import os.path
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import _config
import _model
import _session
from _session import Session

from ldm.bulk import BadRow, Row, read_rows, row_seed
from ldm.bulk.draw import Drawer

DEFAULT_COUNT = 16


def opened(opt: argparse.Namespace) -> Session:
    """The session, not loaded; what has no effect on its model is a warning."""
    session = Session(opt)
    if session.kind == "nothing":
        session.options = _model.unguided(session.options, opt)
    elif opt.negative_prompt and not session.guided:
        warnings.warn("--negative_prompt has no effect with --scale 1, but for rows with a scale", stacklevel=2)
    return session


def rows(opt: argparse.Namespace, session: Session) -> list[Row | BadRow]:
    """Those of --from-file; else -n pictures: of --prompt, of classes in turn, or of a model that is told nothing."""
    if opt.from_file is not None:
        try:
            found = read_rows(opt.from_file, opt.seed)
        except OSError as error:
            raise OSError(f"--from-file {opt.from_file}: {error.strerror or error}") from error
        return found if session.kind != "nothing" else [_untold(row) for row in found]
    return [Row(k, row_seed(opt.seed, k), told) for k, told in enumerate(_told(opt, session))]


def _untold(row: Row | BadRow) -> Row | BadRow:
    """As the manifest is to have it: without guidance, a model that is told nothing heeds neither of these."""
    return dataclasses.replace(row, scale=None, negative_prompt=None) if isinstance(row, Row) else row


def _told(opt: argparse.Namespace, session: Session) -> list[str]:
    count = DEFAULT_COUNT if opt.count is None else opt.count
    if session.kind == "class":
        n = _model.number_of_classes(session.config)
        known = opt.classes or range(n - 1 if n == _model.IMAGENET_AND_NONE else n)
        labels = list(map(str, known)) if opt.prompt is None else [opt.prompt]
        _model.check_classes(session.config, labels, opt.negative_prompt, session.guided)
        return [labels[k % len(labels)] for k in range(count)]
    if opt.classes:
        raise ValueError(f"--classes {opt.classes[0]}: this model is told {session.kind}, not classes; leave it out")
    return [opt.prompt or ""] * count


def settings(opt: argparse.Namespace, session: Session, shape: Sequence[int]) -> dict[str, Any]:
    """What decides the pictures beside the rows: how they are spread does not, nor what the device is."""
    made = session.settings([("", 0)])[0]
    f = _config.scales(session.config, opt.C, opt.f)[1]
    made |= {"precision": opt.precision or session.config.precision, "width": shape[2] * f, "height": shape[1] * f}
    if opt.low_mem:
        made.pop("batch_guidance", None)
    made = {name: value for name, value in made.items() if name not in ("prompt", "seed")}
    return {**made, "model_sha256": session.model_sha256()}


def checker(opt: argparse.Namespace, session: Session) -> Callable[[Row], None]:
    """A function that raises ValueError for a row that the model cannot draw."""
    from ldm.sampling.timesteps import check_count

    total = _config.timesteps(session.config)

    @functools.lru_cache(10_000)  # to ask the config takes half a millisecond, and of 100 000 rows most are alike
    def check_size(height: int | None, width: int | None) -> None:
        _config.latent_shape(session.config, height or opt.H, width or opt.W, opt.C, opt.f)

    @functools.lru_cache(10_000)
    def check_class(prompt: str, negative: str, guided: bool) -> None:
        _model.check_classes(session.config, [prompt], negative, guided)

    def check(row: Row) -> None:
        if total is not None and row.steps is not None:
            check_count(row.steps, total, "steps =")
        check_size(row.height, row.width)
        if session.kind == "class":
            check_class(row.prompt, _negative(opt, row), _session.guided(_options(session, row)))

    return check


def _options(session: Session, row: Row) -> dict[str, Any]:
    """The sampler's, for a row and those that are like it."""
    own = {"S": row.steps, "unconditional_guidance_scale": row.scale if session.kind != "nothing" else None}
    return {**session.options, **{name: value for name, value in own.items() if value is not None}}


def _negative(opt: argparse.Namespace, row: Row) -> str:
    return opt.negative_prompt if row.negative_prompt is None else row.negative_prompt


class Drawing:
    """Makes what draws. It can be pickled, and does so on another machine if that has the files at the same path."""

    def __init__(self, opt: argparse.Namespace, sha256: str | None = None):
        """`sha256`: of the model (`Session.model_sha256`), where it is to be no other than that."""
        self._opt, self._sha256 = copy.copy(opt), sha256
        for name in ("config", "ckpt"):
            given = getattr(opt, name)
            if given is not None and os.path.exists(given):  # else it is the name of a released model's
                setattr(self._opt, name, os.path.abspath(given))
        self._opt.embedding_path = [os.path.abspath(path) for path in opt.embedding_path]

    def __call__(self) -> Drawer:
        opt, session = self._opt, Session(self._opt)
        if session.kind == "nothing":
            session.options |= _model.UNGUIDED
        if self._sha256 not in (None, session.model_sha256()):
            raise ValueError("it is another one than at the beginning of the job: its file, or its config, has changed")
        opened = session.loaded()
        opened.__enter__()  # for as long as the process lives

        def draw(batch: Sequence[Row]) -> list[bytes]:
            return _drawn(session, opt, batch)

        draw.keep = opened
        return draw


def _drawn(session: Session, opt: argparse.Namespace, batch: Sequence[Row]) -> list[bytes]:
    import torch

    from ldm.image import png_bytes, to_pil

    first, jobs = batch[0], [(row.prompt, row.seed) for row in batch]
    options, negatives = _options(session, first), [_negative(opt, row) for row in batch]
    shape = _config.latent_shape(session.config, first.height or opt.H, first.width or opt.W, opt.C, opt.f)
    guided = _session.guided(options)
    with torch.no_grad():  # which holds for a thread alone, and Ray may have several
        prompts = [row.prompt for row in batch]
        cond, uncond = _model.conditionings(session.model, session.kind, prompts, negatives, guided)
        images = _session.sample(session.model, session.sampler, jobs, shape, cond, uncond, options, progress=False)
    told = {"steps": options["S"], "scale": options["unconditional_guidance_scale"]}
    made = zip(to_pil(images), session.settings(jobs), negatives, strict=True)
    return [
        png_bytes(
            picture, {**settings, **told, "negative_prompt": negative, "width": picture.width, "height": picture.height}
        )
        for picture, settings, negative in made
    ]
