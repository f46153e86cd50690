"""One model, and what a page asks of it: a task in, looks at the picture as it forms, and the picture at last."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import _config
import _inpainting
import _machine
import _model
import _pictures
import torch
from _session import Session, finite

from webui.preview import Projection

SAMPLERS = {"DDIM": "ldm.sampling.DDIMSampler", "PLMS": "ldm.sampling.PLMSSampler",
            "DPM-Solver++": "ldm.sampling.DPMSolverSampler"}  # fmt: skip
OFTEN = 0.15  # seconds between looks
CHEAP = 0.05  # seconds: a decoder that is as quick draws the looks itself
MOST_SCALE = 1000
LESSON = 4.0  # how much a picture that is drawn counts to the preview, beside one of those that it began with


@dataclass(frozen=True)
class Limits:
    """What a page may ask for."""

    side: int = 1024  # pixels
    steps: int = 250


@dataclass(frozen=True)
class Task:
    """What to draw. With a `picture` (PIL's), from that one; with a `hole` (bool, (H, W)) too, only there."""

    prompt: str = ""
    negative_prompt: str = ""
    steps: int = 50
    scale: float = 7.5
    eta: float = 0.0
    seed: int = 0
    sampler: str = "DDIM"
    width: int | None = None  # pixels; None: the model's, or the picture's
    height: int | None = None
    picture: Any = None
    hole: Any = None
    strength: float = 0.75


@dataclass(frozen=True)
class Look:
    """What the sampler takes for the picture after `step` of `total` steps, and how many seconds are left."""

    step: int
    total: int
    left: float
    picture: Any = None  # PIL's; None where the last look was just now


@dataclass(frozen=True)
class Made:
    picture: Any  # PIL's
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # such as that the prompt was too long


class Studio:
    """Draws with a session's model, which is loaded; one task at a time."""

    def __init__(self, session: Session, limits: Limits = Limits()):
        self.session, self.limits = session, limits
        self.shape = _config.latent_shape(session.config, None, None, None, None)
        self.factor = _config.scales(session.config, None, None)[1]
        self.project = Projection(session.model, self.shape)
        self.exact = self._decodes_in() < CHEAP

    @torch.no_grad()
    def _decodes_in(self) -> float:
        """Seconds of decoding one picture, once warm."""
        z = torch.zeros(1, *self.shape, device=self.session.model.device)
        for _ in range(2):
            began = time.perf_counter()
            self.session.model.decode_first_stage(z).cpu()
        return time.perf_counter() - began

    def _look(self, x0):
        """PIL's picture of x0: the decoder's own where that takes no time, else the projection's."""
        from ldm.image import to_pil

        if not self.exact:
            return to_pil(self.project(x0))[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # early ones may well be of one colour
            return to_pil(_machine.decode(self.session.model, x0))[0]

    @torch.no_grad()  # of a generator: while it works, in whatever thread that is
    def draw(self, task: Task) -> Iterator[Look | Made]:
        """Looks, and at the end what is made. Closing it between two cancels the rest. ValueError for a bad task."""
        self.check(task)
        session = self._session(task)
        jobs = [(task.prompt, task.seed)]
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            picture, shape, shown, given, finish = self._canvas(session, task)
            cond, uncond = _model.conditionings(
                session.model, session.kind, [task.prompt], task.negative_prompt, session.guided, shown
            )
        steps = session.sampler.steps(
            batch_size=1, shape=shape, conditioning=cond, unconditional_conditioning=uncond, seeds=[task.seed],
            **{**session.options, **given},
        )  # fmt: skip
        total = _count(session, task)
        with finite(session.model), contextlib.closing(steps):
            latents = yield from self._looks(steps, total)
        images = _machine.decode(session.model, latents)
        if not self.exact:
            self.project.learn(latents, images, weight=LESSON)
        drawn = finish(images)
        (settings,) = session.settings(jobs, **_told(task, picture))
        yield Made(
            drawn,
            {**settings, "width": drawn.width, "height": drawn.height},
            tuple(str(note.message) for note in notes),
        )

    def _looks(self, steps, total: int):
        """Yields looks; returns the latents of the last step."""
        began, shown_at, x = time.monotonic(), 0.0, None
        for k, step in enumerate(steps, 1):
            now, x = time.monotonic(), step.x_prev
            left = (now - began) / k * (total - k)
            due = now - shown_at >= OFTEN or k == 1
            shown_at = now if due else shown_at
            yield Look(k, total, left, self._look(step.x0) if due else None)
        return x

    def check(self, task: Task) -> None:
        """ValueError for what is beyond the limits."""
        if task.sampler not in SAMPLERS:
            raise ValueError(f"the sampler {task.sampler!r} is unknown; choose {', '.join(SAMPLERS)}")
        size = task.picture.size if task.picture is not None else (task.width, task.height)
        for name, value, most in (("width", size[0], self.limits.side), ("height", size[1], self.limits.side),
                                  ("steps", task.steps, self.limits.steps)):  # fmt: skip
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} {value}: this page draws from 1 to {most}")
        if not -MOST_SCALE <= task.scale <= MOST_SCALE:  # nor NaN
            raise ValueError(f"scale {task.scale:g}: this page takes {-MOST_SCALE} to {MOST_SCALE}; 3 to 8 is usual")
        if task.picture is None:
            _config.latent_shape(self.session.config, task.height, task.width, None, None)
        elif task.hole is not None and (not task.hole.any() or task.hole.all()):
            raise ValueError("paint over what is to be drawn anew: some of the picture, and not all of it")
        if len(task.prompt) + len(task.negative_prompt) > 10_000:
            raise ValueError("the prompts have more than 10000 characters; make them shorter")

    def _session(self, task: Task) -> Session:
        opt = copy.copy(self.session.opt)
        opt.ddim_steps, opt.scale, opt.ddim_eta, opt.seed = task.steps, task.scale, task.eta, task.seed
        opt.sampler, opt.prompt, opt.negative_prompt = SAMPLERS[task.sampler], task.prompt, task.negative_prompt
        session = self.session.variant(opt)
        session.prompts(None, "")
        return session

    def _canvas(self, session: Session, task: Task):
        """(the picture to begin from, the latents' shape, what the model is shown, what the sampler is given, what
        makes PIL's picture of what is decoded)."""
        from ldm.image import to_pil

        if task.picture is None:
            shape = _config.latent_shape(session.config, task.height, task.width, None, None)
            return None, shape, None, {}, lambda images: to_pil(images)[0]
        picture = task.picture.convert("RGB")
        canvas = _pictures.Canvas.of(picture, session.config, name="given")
        if task.hole is None:
            init = _machine.encode(session.model, canvas.tensor())
            given = {"init": init, "strength": task.strength}
            return picture, canvas.shape, None, given, lambda images: to_pil(canvas.cut(images))[0]
        return picture, canvas.shape, *self._filling(session, task, canvas)

    def _filling(self, session: Session, task: Task, canvas):
        from ldm.image import to_pil
        from ldm.picture_files import padded

        holes = padded(torch.from_numpy(task.hole)[None, None].float(), canvas.multiple)
        way = _inpainting.way_of(session.config)
        shown, given = _inpainting.shown_and_given(session.model, way, canvas.tensor(), holes, task.strength)

        def finish(images):
            return _inpainting.composite(canvas.picture, to_pil(canvas.cut(images)), task.hole)[0]

        return shown, given, finish


def _count(session: Session, task: Task) -> int:
    from ldm.sampling.loop import steps_of_strength

    whole = task.picture is None or (task.hole is not None and task.strength == 1)
    return task.steps if whole else steps_of_strength(task.strength, task.steps)


def _told(task: Task, picture) -> dict[str, Any]:
    if picture is None:
        return {}
    told = {"init_img": "picture.png", "strength": task.strength}
    return told if task.hole is None else {**told, "mask": "mask.png", "white": "hole"}
