"""What the scripts share: how they run and fail, their flags, and the prompts they read.

Nothing heavy is imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _approximate
import _config
import _trajectory
from _machine import PRECISIONS

# ---------------------------------------------------------------------------------------------------- running a script

_NEEDED = frozenset("PIL torch numpy tqdm omegaconf yaml".split())


class Parser(argparse.ArgumentParser):
    """Errors are one line, `NAME: error: …`, with exit status 2. The help says a script's `doc` up to its examples, and
    at the end how a config names the sampler."""

    def __init__(self, name: str, *, doc: str = "", **options: Any):
        if doc:
            options |= {"description": doc.partition("\n\n")[0], "epilog": _config.__doc__.partition("\n\n")[2]}
        super().__init__(name, **{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}{self._near(message)} (--help lists the flags)\n")

    def _near(self, message: str) -> str:
        """What flags that are not known were perhaps meant to be."""
        unknown = re.findall(r"--\w[\w-]+", message.partition("unrecognized arguments:")[2])
        close = [difflib.get_close_matches(flag, self._option_string_actions, 1, cutoff=0.75) for flag in unknown]
        near = " ".join(flag for flags in close for flag in flags)
        return f"; did you mean {near}?" if near else ""


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
            say("interrupted", str(interrupt) or "nothing was finished")
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
        return f"out of memory; take --low_mem, a smaller --n_samples or picture ({str(error).splitlines()[0]})"
    if isinstance(error, ImportError) and getattr(error.__cause__ or error, "name", None) in _NEEDED:
        return f"{error}; pip install '.[scripts]' installs all that the scripts need"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
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


MAX_PROMPT = 10_000  # characters: a hundred times what any text encoder takes
MAX_SIDE = 16_384  # pixels
a_count = number(int, 1, 100_000)  # of a batch: more than fit into any device, but lists of them can be made


def a_strength(text: str) -> float:
    """An argparse type: a share of the steps."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0 (0 would change nothing) and up to 1")
    return value


def a_path(text: str) -> str:
    """An argparse type: `--ckpt ""`, as of a shell's variable that is not set, must not mean the default."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; give one, or leave the flag out")
    return text


def a_text(given: str) -> str:
    """An argparse type: what the pictures' files can tell, of a length that somebody may have written."""
    if len(given) > MAX_PROMPT:
        raise argparse.ArgumentTypeError(f"it has {len(given)} characters; at most {MAX_PROMPT} are read")
    if re.search("[\ud800-\udfff]", given):  # Python's stand-ins for bytes that it could not decode
        raise argparse.ArgumentTypeError(f"{given!r} is not text in the terminal's encoding; give UTF-8")
    return given


def add_model_flags(parser: argparse.ArgumentParser, *, low_mem: bool = True) -> None:
    """`low_mem`: for scripts that run a `Session`, which knows how to save memory."""
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
    if low_mem:
        group.add_argument(
            "--low_mem",
            action="store_true",
            help="take less memory and more time for the same pictures: guidance asks for one conditioning after the "
            "other, the autoencoder works in strips, and parts of the model that are not at work leave the device",
        )
        group.add_argument(
            "--compile",
            action="store_true",
            help="compile the U-Net with torch.compile: minutes before the first step, and again for each other size; "
            "worth it for many pictures of one size",
        )
        _approximate.add_flags(parser, number)
    parser.add_argument(
        "overrides",
        type=a_text,
        nargs="*",
        metavar="KEY=VALUE",
        help="set a value of the config, as in sampler.params.eta=0.5",
    )


EACH_LINE = "draw each line of this file once in each iteration, instead of --prompt"
SEEDS = "picture i of a run has the seed SEED + i"


def add_prompt_flags(parser: argparse.ArgumentParser, default: str, *, file: str = EACH_LINE) -> None:
    """`default`: what is drawn without a prompt, `file`: what comes of --from-file, in words."""
    group = parser.add_argument_group("prompts")
    prompts = group.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", type=a_text, help=f"what to draw; of a class-conditional model, a number (default: {default})"
    )
    prompts.add_argument(
        "--from-file",
        type=a_path,
        help=file,
    )
    group.add_argument(
        "--negative_prompt", type=a_text, default="", help="what to keep out: takes the place of the empty prompt"
    )
    group.add_argument(
        "--embedding_path",
        type=a_path,
        action="append",
        default=[],
        metavar="FILE",
        help="a word that textual inversion has learned, for prompts to use: .pt, .bin, .safetensors (may be repeated)",
    )


def add_sampling_flags(
    parser: argparse.ArgumentParser, *, n_iter: int = 2, n_samples: int = 3, scale: float = 7.5
) -> None:
    """The defaults are the script's own in CompVis; `scale` is where the config says none (`Session` is told, too)."""
    group = parser.add_argument_group("sampling")
    add_sampler_flags(group, scale=scale)
    group.add_argument(
        "--fixed_code",
        action="store_true",
        help="use n_samples seeds again and again: picture k (from 0) of each iteration has the seed "
        "SEED + k %% n_samples, also where the prompts do not divide by n_samples and batches begin elsewhere",
    )
    _trajectory.add_flag(group, number)
    group.add_argument("--n_iter", type=number(int, 1), default=n_iter, help=f"sample this often (default: {n_iter})")
    group.add_argument(
        "--n_samples",
        type=a_count,
        default=n_samples,
        help=f"batch size, and how many pictures --prompt gets in each iteration (default: {n_samples})",
    )


def add_sampler_flags(
    group: argparse._ActionsContainer, *, scale: float, eta: float = 0.0, seeds: str = SEEDS
) -> argparse._MutuallyExclusiveGroup:
    """The flags of one picture's sampling, `seeds` being what --seed is, in words; returns the group of those that
    choose a sampler."""
    add_steps_flags(group)
    group.add_argument(
        "--ddim_eta",
        type=number(float, 0),
        help=f"0 is deterministic, 1 as noisy as DDPM (default: the config's, else {eta:g})",
    )
    add_scale_flag(group, scale)
    group.add_argument(
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=42,
        help=f"{seeds} (default: 42)",
    )
    samplers = group.add_mutually_exclusive_group()
    for flags, name, what in (
        (["--plms"], "PLMSSampler", "PLMS (Liu et al. 2022)"),
        (["--dpm_solver", "--dpm"], "DPMSolverSampler", "DPM-Solver++ (Lu et al. 2022)"),
    ):
        samplers.add_argument(
            *flags,
            dest="sampler",
            action="store_const",
            const=f"ldm.sampling.{name}",
            help=f"sample with {what}; short for sampler.target=ldm.sampling.{name} (default: the config's, else DDIM)",
        )
    return samplers


def add_steps_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument("--ddim_steps", type=number(int, 1), help="number of steps (default: the config's, else 50)")
    group.add_argument("--steps", dest="ddim_steps", metavar="STEPS", type=number(int, 1), help="the same")


def add_scale_flag(group: argparse._ActionsContainer, default: float, what: str = "guidance") -> None:
    group.add_argument(
        "--scale",
        type=number(float, -1e6),
        help=f"{what}: eps = eps(x, empty) + scale * (eps(x, cond) - eps(x, empty)) "
        f"(default: the config's, else {default:g})",
    )


def add_size_flags(parser: argparse.ArgumentParser, *, own: str | None = "the model's") -> None:
    """`own`: what the size is unless it is given; None where it cannot be."""
    group = parser.add_argument_group("size")
    if own is not None:
        side = number(int, 1, MAX_SIDE)
        group.add_argument("--H", type=side, help=f"height in pixels (default: {own})")
        group.add_argument("--W", type=side, help=f"width in pixels (default: {own})")
    group.add_argument("--C", type=number(int, 1), help="latent channels (default: the model's; others are errors)")
    group.add_argument("--f", type=number(int, 1), help="downsampling factor (default: the model's; others are errors)")


def add_output_flags(parser, outdir: str, *, grid: bool = True, row: str = "n_samples", json: bool = True) -> None:
    """`grid`: whether the script can put pictures side by side, `row` of them in a row; `json`: and settings apart."""
    group = parser.add_argument_group("output")
    group.add_argument("--outdir", default=outdir, help=f"folder to write to (default: {outdir})")
    if json:
        group.add_argument("--save_json", action="store_true", help="save each picture's settings beside it, as .json")
    if grid:
        group.add_argument("--skip_grid", action="store_true", help="save no grid, only the pictures")
        group.add_argument("--skip_save", action="store_true", help="save no single pictures")
        group.add_argument(
            "--n_rows", type=number(int, 0), default=0, help=f"pictures in a grid's row (default: {row})"
        )


# ------------------------------------------------------------------------------------------------ prompts


def read_prompts(path: str) -> list[str]:
    """One prompt a line; blank lines are skipped."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise OSError(f"--from-file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--from-file {path}: byte {error.start} is not UTF-8; save the prompts as UTF-8") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if longest := next((prompt for prompt in prompts if len(prompt) > MAX_PROMPT), None):
        raise ValueError(f"--from-file {path}: a line has {len(longest)} characters; at most {MAX_PROMPT} are read")
    if not prompts:
        raise ValueError(f"--from-file {path} holds no prompts; write one a line")
    return prompts
