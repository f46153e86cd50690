"""What the scripts share: how they run and fail, their flags, the prompts they read, and where their pictures go.

Nothing heavy is imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _machine import PRECISIONS

# ---------------------------------------------------------------------------------------------------- running a script

_NEEDED = frozenset("PIL torch numpy tqdm omegaconf yaml".split())


class Parser(argparse.ArgumentParser):
    """Errors are one line, `NAME: error: …`, with exit status 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[Sequence[str] | None], None], name: str, argv: Sequence[str] | None = None) -> None:
    """Run a script's main; what the user can mend becomes one line and exit status 2 (traceback: `python -X dev`)."""

    def say(kind: str, message: object):
        write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print  # between bars, not into one
        write(f"{name}: {kind}: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: say("warning", message)
        try:
            main(argv)
        except KeyboardInterrupt as interrupt:
            say("interrupted", str(interrupt) or "no picture was finished")
            sys.exit(130)
        except Exception as error:
            explained = _explain(error)
            if explained is None or sys.flags.dev_mode:
                raise
            say("error", explained)
            sys.exit(2)


def _explain(error: Exception) -> str | None:
    """What to tell the user, or None for an error that is ours."""
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error)):
        return f"out of memory; take a smaller --n_samples or picture ({str(error).splitlines()[0]})"
    if isinstance(error, ImportError) and getattr(error.__cause__ or error, "name", None) in _NEEDED:
        return f"{error}; pip install '.[scripts]' installs all that the scripts need"
    return str(error) if isinstance(error, ValueError | OSError | ImportError | ArithmeticError) else None


# -------------------------------------------------------------------------------------------------------------- flags


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """An argparse type: an int or float with low ≤ value ≤ high."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            limits = f"from {low} to {high}" if high != math.inf else f"of at least {low}"
            raise argparse.ArgumentTypeError(f"{text!r}: give {'an integer' if kind is int else 'a number'} {limits}")
        return value

    return parse


def a_path(text: str) -> str:
    """An argparse type: `--ckpt ""`, as of a shell's variable that is not set, must not mean the default."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; give one, or leave the flag out")
    return text


def a_text(given: str) -> str:
    """An argparse type: what the pictures' files can tell."""
    if re.search("[\ud800-\udfff]", given):  # Python's stand-ins for bytes that it could not decode
        raise argparse.ArgumentTypeError(f"{given!r} is not text in the terminal's encoding; give UTF-8")
    return given


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--config",
        type=a_path,
        help="YAML that describes the model, or its name here, such as stable-diffusion/v1-inference "
        "(default: what --ckpt shows itself to be)",
    )
    group.add_argument(
        "--ckpt",
        type=a_path,
        help="its weights: .ckpt, .safetensors, or a folder of diffusers' (default: the bundled model's)",
    )
    group.add_argument("--ema", action="store_true", help="take the averaged weights, where the file has both")
    group.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps …")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="what the networks compute in; latents stay float32. auto: bf16 where the processor has it, fp16 on older "
        "CUDA, else full; autocast is CompVis' word for auto (default: the config's, else auto)",
    )
    parser.add_argument(
        "overrides",
        type=a_text,
        nargs="*",
        metavar="KEY=VALUE",
        help="set a value of the config, as in sampler.params.eta=0.5",
    )


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--ddim_steps", type=number(int, 1), help="number of steps (default: the config's, else 50)")
    group.add_argument(
        "--ddim_eta",
        type=number(float, 0),
        help="0 is deterministic, 1 as noisy as DDPM (default: the config's, else 0)",
    )
    group.add_argument(
        "--scale",
        type=number(float, -1e6),
        help="guidance: eps = eps(x, empty) + scale * (eps(x, cond) - eps(x, empty)) (default: the config's, else 7.5)",
    )
    group.add_argument(
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=42,
        help="picture i of a run has the seed SEED + i (default: 42)",
    )
    group.add_argument(
        "--fixed_code",
        action="store_true",
        help="use n_samples seeds again and again: picture k (from 0) of each iteration has the seed "
        "SEED + k %% n_samples, also where the prompts do not divide by n_samples and batches begin elsewhere",
    )
    group.add_argument("--n_iter", type=number(int, 1), default=2, help="sample this often (default: 2)")
    group.add_argument(
        "--n_samples",
        type=number(int, 1, 100_000),  # more than fit into any device, but lists of them can be made
        default=3,
        help="batch size, and how many pictures --prompt gets in each iteration (default: 3)",
    )


def add_size_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("size")
    size = number(int, 1)
    group.add_argument("--H", type=size, help="height in pixels (default: the model's)")
    group.add_argument("--W", type=size, help="width in pixels (default: the model's)")
    group.add_argument("--C", type=size, help="latent channels (default: the model's; another number is an error)")
    group.add_argument("--f", type=size, help="downsampling factor (default: the model's; another one is an error)")


def add_output_flags(parser: argparse.ArgumentParser, outdir: str) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--outdir", default=outdir, help=f"folder to write to (default: {outdir})")
    group.add_argument("--skip_grid", action="store_true", help="save no grid, only the pictures")
    group.add_argument("--skip_save", action="store_true", help="save no single pictures")
    group.add_argument("--n_rows", type=number(int, 0), default=0, help="pictures in a grid's row (default: n_samples)")


# ------------------------------------------------------------------------------------------- prompts in, pictures out


def read_prompts(path: str) -> list[str]:
    """One prompt a line; blank lines are skipped."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--from-file {path}: byte {error.start} is not UTF-8; save the prompts as UTF-8") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--from-file {path} holds no prompts; write one a line")
    return prompts


def check_writable(folder: Path, flag: str) -> None:
    """OSError where no file can be made in a folder. Tried, as permissions say nothing of read-only disks."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        said = f"{flag}: no file can be made in {str(folder)!r} ({error.strerror}); give another folder"
        raise type(error)(said) from error


class Gallery:
    """Where a run's pictures go: OUTDIR/samples/00000.png, counting on from what is there, and OUTDIR/grid-0000.png.

    Used as a context, it tells what there is when the run is interrupted.
    """

    def __init__(self, outdir: str, *, save: bool = True, grid: bool = True):
        """Make the folders at once, so that an unwritable one shows before a model is loaded."""
        importlib.import_module("PIL")  # likewise
        self.samples = Path(outdir, "samples")
        self.samples.mkdir(parents=True, exist_ok=True)
        for folder in [self.samples] * save + [Path(outdir)] * grid:
            check_writable(folder, "--outdir")
        self.count = 0
        self._pictures = _Numbered(self.samples, "", 5) if save else None
        self._grids = _Numbered(Path(outdir), "grid-", 4) if grid else None
        self._kept: list[tuple[Any, str]] = []

    def add(self, images, settings: Sequence[dict[str, Any]]) -> None:
        """Save a batch of images (B, 3, H, W) in [-1, 1] with the settings of each."""
        from ldm.image import to_pil

        for picture, made in zip(to_pil(images), settings, strict=True):
            if self._pictures:
                self._pictures.save(picture, {**made, "width": picture.width, "height": picture.height})
            if self._grids:
                self._kept.append((picture, made["prompt"]))
            self.count += 1

    def finish(self, columns: int) -> str:
        """Save the grid, with captions where the prompts differ; returns a line that says where all is."""
        from ldm.image import grid

        places = [f"in {self.samples}"] if self._pictures else []
        if self._grids:
            pictures, prompts = zip(*self._kept, strict=True)
            sheet = grid(pictures, columns, prompts if len(set(prompts)) > 1 else None)
            places.append(f"side by side in {self._grids.save(sheet)}")
        return f"{_pictures(self.count)}: {', '.join(places) or 'none was saved'}"

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(f"{_pictures(self.count)} finished; {self.samples} has what is saved") from None


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


class _Numbered:
    """Files PREFIX00000.png, PREFIX00001.png, …: each after the last one there, none written over."""

    def __init__(self, folder: Path, prefix: str, digits: int):
        self.folder, self.prefix, self.digits = folder, prefix, digits
        names = (path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.png"))
        self.next = max((int(name) for name in names if name.isdecimal()), default=-1) + 1

    def save(self, picture, settings: dict[str, Any] | None = None) -> Path:
        from ldm.image import save_png

        while True:
            path = self.folder / f"{self.prefix}{self.next:0{self.digits}}.png"
            self.next += 1
            with contextlib.suppress(FileExistsError):  # another run writes here too: take the next number
                save_png(picture, path, settings)
                return path
