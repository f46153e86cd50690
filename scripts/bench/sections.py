"""The sections of the benchmark: each yields the rows of its table, one when it is measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import bulk, contest, imports
from bench.contest import OURS, THEIRS, Contestant
from bench.processes import Crew

Row = dict[str, Any]
GPU_STEPS = 40  # of the 50 that a run has
FLOOR, ORIGINAL = "bare arithmetic", "CompVis-like"


@dataclass
class Size:
    """How large everything is; networks are those of `weights.SHAPES[shape]`."""

    shape: str
    latents: int
    steps: int  # of a U-Net, timed in each round
    picture_steps: int
    null_latents: int = 64
    repeats: int = 15  # of the null model's runs, in each round
    growth_latents: tuple[int, ...] = (16, 32, 48, 64)
    growth_batches: tuple[int, ...] = (1, 2, 4)
    growth_steps: tuple[int, ...] = (10, 20, 50)


SIZES = {
    "full": Size("sd15", 64, 2, 4),
    "small": Size("sd15", 32, 3, 4, growth_latents=(16, 24, 32)),
    "tiny": Size("tiny", 8, 1, 2, 16, 1, (8, 16), (1, 2), (5, 10)),
}


@dataclass
class Bench:
    """What all sections use: the flags, the machine, the workers, and files that are written when first asked for."""

    opt: argparse.Namespace
    machine: dict[str, Any]
    crew: Crew
    scratch: Path
    size: Size
    written: dict[str, Any] = field(default_factory=dict)
    references: dict[Any, str] = field(default_factory=dict)  # outputs that others are held against

    @property
    def device(self) -> str:
        return self.machine["device"]

    def folder(self) -> str:
        """The pipeline folder with random weights."""
        if "folder" not in self.written:
            path = str(self.scratch / "folder")
            self.written["counts"] = self.crew.call(THEIRS, "weights:write_folder", folder=path, shape=self.size.shape)
            self.written["folder"] = path
        return self.written["folder"]

    def checkpoint(self) -> str:
        """The same weights as a .ckpt in CompVis' layout."""
        if "ckpt" not in self.written:
            path = str(self.scratch / "model.ckpt")
            self.crew.call(OURS, "weights:write_checkpoint", folder=self.folder(), path=path)
            self.written["ckpt"] = path
        return self.written["ckpt"]

    def dtypes(self) -> list[tuple[str, str | None]]:
        """(dtype, why it is not measured or None): those of --dtypes, else float32 and what is fast here."""
        if self.opt.dtypes:
            return [(name, None) for name in self.opt.dtypes]
        slow = None if self.machine["auto_dtype"] != "float32" else "this processor has no instructions for it"
        half = "bfloat16" if slow else self.machine["auto_dtype"]
        return [("float32", None), (half, slow and f"{slow} (--dtypes {half} measures it all the same)")]

    def fast_dtype(self) -> str:
        """The one for what is measured in one only."""
        return self.machine["auto_dtype"] if not self.opt.dtypes else self.opt.dtypes[-1]

    def walk(self, **more: int) -> dict[str, int]:
        """The params of a task that walks the sampler's steps: many on a GPU, where they are over at once."""
        steps = self.size.steps if self.device == "cpu" or self.opt.size == "tiny" else GPU_STEPS
        return {"latents": self.size.latents, "batch": 1, "steps": steps} | more

    def no_compile(self) -> str | None:
        """Why compiled networks are not measured, or None."""
        if self.opt.compile is False:
            return "--no-compile"
        if self.opt.compile is None and not self.machine["compiler"]:
            return "there is no C++ compiler, and no triton for a GPU"
        return None

    def left_out(self, how: str) -> str | None:
        """Why this setting is not measured, or None."""
        return next((f"--without {word!r}" for word in self.opt.without if word in how), None)

    def contest(
        self, case: str, key: dict, sides: list[list[Contestant]], params: dict, warm_up=None, like: Any = None
    ) -> Row:
        """A row. Where several rows have the same `like`, the first one's reference is that of all."""
        everyone = [contestant for side in sides for contestant in side]
        contest.contest(self.crew, sides, params, self.opt.rounds, self.scratch, warm_up=warm_up)
        reference = contest.saved_by_theirs(everyone)
        if like is not None and reference:
            reference = self.references.setdefault(like, reference)
        return contest.row(case, key, everyone, reference)


# ---------------------------------------------------------------------------------------------------------- overhead


def overhead_contestants(b: Bench, batch: int, guidance: float) -> list[list[Contestant]]:
    base = {"batch": batch, "latents": b.size.null_latents, "guidance": guidance, "repeats": b.size.repeats,
            "device": b.device}  # fmt: skip

    def one(side: str, how: str, task: str, **more: Any) -> list[Contestant]:
        return [Contestant(side, how, f"overhead:{task}", base | more, threads=1)]

    return [
        one(OURS, "seeds", "ours", seeds=True),
        one(OURS, "CompVis' noise", "ours", seeds=False),
        one(THEIRS, "DDIMScheduler in its pipelines' loop", "diffusers"),
        one(ORIGINAL, "the original's operations", "original"),
        one(FLOOR, "memory made before", "bare"),
    ]


def overhead(b: Bench) -> Iterator[Row]:
    for batch in (1, 8):
        for guidance in (7.5, 1.0):
            key = {"batch": batch, "guidance": guidance}
            case = f"a step, batch {batch}, {'guided' if guidance != 1 else 'not guided'}, 1 thread"
            yield b.contest(case, key, overhead_contestants(b, batch, guidance), {})


# ---------------------------------------------------------------------------------------------------------- networks


def settings(b: Bench, task: str, dtype: str, mode: str, *, fused: bool = False) -> list[list[Contestant]]:
    """Ours and diffusers' in every setting worth a try; `mode`: "eager" or "compiled"."""
    base = {"folder": b.folder(), "dtype": dtype, "device": b.device}
    theirs: dict[str, dict] = {"contiguous": {}, "channels_last": {"channels_last": True}}
    if fused:
        theirs["channels_last, fused q, k, v"] = {"channels_last": True, "fused": True}
    ours: dict[str, dict] = {"prepared": {"prepare": True}, "plain": {}}
    if mode == "compiled":
        last = {"channels_last": True}
        hows = "default", ("frozen" if b.device == "cpu" else "reduce-overhead"), "max-autotune"
        theirs = {f"compiled, {how}": {**last, "compile": how} for how in hows}
        ours = {"prepared, compiled": {"prepare": True, "compile": True}}
    return [
        [Contestant(side, how, f"{room}:{task}", base | more, reason=b.left_out(how)) for how, more in found.items()]
        for side, room, found in ((OURS, "ours", ours), (THEIRS, "theirs", theirs))
    ]


def network(b: Bench, name: str, task: str, params: dict, warm_up: dict | None, **more: Any) -> Iterator[Row]:
    """Rows for each dtype, eager and compiled."""
    for dtype, slow in b.dtypes():
        for mode in ("eager", "compiled"):
            case, key = f"{name}, {dtype}, {mode}", {"dtype": dtype, "mode": mode}
            if reason := slow or (b.no_compile() if mode == "compiled" else None):
                yield contest.not_measured(case, key, reason)
            else:
                yield b.contest(case, key, settings(b, task, dtype, mode, **more), params, warm_up, (task, dtype))


def unet(b: Bench) -> Iterator[Row]:
    params = b.walk()
    name = f"a guided step at {params['latents']}×{params['latents']}"
    yield from network(b, name, "unet", params, {**params, "steps": 0}, fused=True)


def defaults(b: Bench) -> Iterator[Row]:
    """What runs where no flag is given: ours as scripts/txt2img.py does, diffusers' in float32."""
    params = b.walk()
    base = {"folder": b.folder(), "device": b.device}
    auto = {**base, "dtype": b.machine["auto_dtype"]}
    sides = [
        [Contestant(OURS, f"{auto['dtype']}, prepared", "ours:unet", auto | {"prepare": True})],
        [Contestant(THEIRS, "float32", "theirs:unet", base | {"dtype": "float32"})],
        [Contestant(ORIGINAL, "float32, attention written out", "ours:original", base | {"dtype": "float32"})],
    ]
    if not b.machine["can_prepare"]:
        sides[0] = [Contestant(OURS, auto["dtype"], "ours:unet", auto)]
    name = f"a guided step at {params['latents']}×{params['latents']}, no flags"
    yield b.contest(name, {"mode": "defaults"}, sides, params, {**params, "steps": 0})


def vae(b: Bench) -> Iterator[Row]:
    name = f"decode {b.size.latents}×{b.size.latents} latents"
    yield from network(b, name, "vae", {"latents": b.size.latents, "batch": 1}, None)


def text(b: Bench) -> Iterator[Row]:
    for dtype, slow in b.dtypes():
        case, key = f"encode 2 prompts, {dtype}", {"dtype": dtype, "mode": "eager"}
        if slow:
            yield contest.not_measured(case, key, slow)
            continue
        base = {"folder": b.folder(), "dtype": dtype, "device": b.device}
        ours = {"prepared": {"prepare": True}, "plain": {}}
        sides = [
            [Contestant(OURS, how, "ours:text", base | more) for how, more in ours.items()],
            [Contestant(THEIRS, "transformers' CLIPTextModel, SDPA", "theirs:text", base)],
        ]
        yield b.contest(case, key, sides, {"prompts": 2})


def txt2img(b: Bench) -> Iterator[Row]:
    n, steps = b.size.latents, b.size.picture_steps
    params = {"latents": n, "batch": 1, "steps": steps}
    yield from network(b, f"a picture, {n}×{n} latents, {steps} steps", "txt2img", params, {**params, "steps": 1})


# ----------------------------------------------------------------------------------------------- files, and growth


def load(b: Bench) -> Iterator[Row]:
    """In a fresh process each time."""
    for cold in (False, True):
        for dtype, slow in b.dtypes():
            from_ = "the disk" if cold else "the system's cache"
            case, key = f"load as {dtype}, from {from_}", {"dtype": dtype, "cold": cold}
            if slow and b.opt.size == "tiny":
                yield contest.not_measured(case, key, slow)
                continue
            file, folder = ({"path": path, "dtype": dtype, "cold": cold} for path in (b.checkpoint(), b.folder()))
            found = [
                Contestant("reading the file", ".ckpt", "loading:plain", file),
                Contestant(OURS, "load_model, .ckpt", "loading:ours", file),
                Contestant(OURS, "load_model, folder", "loading:ours", folder),
                Contestant(THEIRS, "from_single_file, .ckpt", "loading:diffusers_file", file | {"folder": b.folder()}),
                Contestant(THEIRS, "from_pretrained, folder", "loading:diffusers_folder", folder),
            ]
            contest.apart(b.crew, found, b.opt.rounds)
            yield contest.row(case, key, found)


def growth(b: Bench) -> Iterator[Row]:
    """How a guided step grows with the latents and the batch, and a run of the null model with its steps."""
    dtype, s = b.fast_dtype(), b.size
    points = [("latents", n, {"latents": n, "batch": 1}) for n in s.growth_latents]
    smallest, measured = s.growth_latents[0], {}
    points += [("batch", n, {"latents": smallest, "batch": n}) for n in s.growth_batches]
    for axis, value, params in points:
        params = b.walk(**params)
        case = f"a guided step, {dtype}, {params['latents']}×{params['latents']}, batch {params['batch']}"
        sides = settings(b, "unet", dtype, "eager")
        if b.machine["can_prepare"]:
            sides[0] = sides[0][:1]
        key = {"axis": axis, "value": value, "dtype": dtype}
        if case not in measured:  # one point is on both axes
            measured[case] = b.contest(case, key, sides, params, {**params, "steps": 0})
        yield measured[case] | key
    for steps in s.growth_steps:
        sides = overhead_contestants(b, 1, 7.5)
        key = {"axis": "steps", "value": steps}
        yield b.contest(f"a run of {steps} steps of the null model, 1 thread", key, sides, {"steps": steps})


SECTIONS: dict[str, tuple[str, Callable[[Bench], Iterator[Row]]]] = {
    "overhead": ("What the sampler adds to a network that costs nothing", overhead),
    "defaults": ("A guided step (cond and uncond) where no flag is given", defaults),
    "unet": ("A guided step in every setting", unet),
    "vae": ("Decoding", vae),
    "text": ("Encoding text", text),
    "txt2img": ("A whole picture, from tokens on", txt2img),
    "load": ("Loading, until every weight has been read", load),
    "import": ("Imports, in a fresh Python", imports.section),
    "growth": ("Growth", growth),
    "bulk": ("Bulk sampling", bulk.section),
}
