"""What all scripts that draw have in common."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "scripts"
DRAWING = (
    "txt2img",
    "img2img",
    "inpaint",
    "sample_diffusion",
    "invert",
    "depth2img",
    "upscale",
    "sample_bulk",
    "compare",
    "interpolate",
)
HEAVY = {"torch", "numpy", "tqdm", "omegaconf", "yaml", "PIL", "ldm"}


@pytest.mark.parametrize("name", DRAWING)
def test_help_answers_without_loading_what_is_heavy_and_says_what_the_script_does(name, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import {name}, atexit; "
        f"heavy = {HEAVY!r}; "
        f"atexit.register(lambda: print('LOADED', heavy & set(sys.modules) or 'nothing')); {name}.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first = (FOLDER / f"{name}.py").read_text(encoding="utf-8").partition('"""')[2].partition("\n\n")[0]
    assert "LOADED nothing" in done.stdout and first in done.stdout and not list(tmp_path.iterdir())
    for flag in ("--config", "--ckpt", "--precision", "--ddim_steps", "KEY=VALUE"):
        assert flag in done.stdout


@pytest.mark.parametrize("name", DRAWING)
def test_the_examples_of_a_script_are_command_lines_of_it(name):
    """Its docstring's, as they are read by it."""
    code = f"import sys, shlex; sys.path.insert(0, {str(FOLDER)!r}); import {name} as script\n" + (
        "lines = [line.partition('#')[0].replace('\"…\"', 'x').strip() for line in script.__doc__.splitlines()]\n"
        "examples = [shlex.split(line)[2:] for line in lines if line.startswith('python ')]\n"
        "for example in examples: script.parse(example)\n"
        "print(len(examples))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr
