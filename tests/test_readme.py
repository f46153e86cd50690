"""The command lines of README.md and of docs/ that need no files but those that are here, run with few steps."""

import importlib
import re
import shlex
from pathlib import Path

import _cli
import pytest

ROOT = Path(__file__).parent.parent
DRAW = "txt2img img2img inpaint invert sample_diffusion".split()  # of the scripts, those that the bundled model serves


def lines_of(page):
    """What follows `python scripts/` in the page's command lines, but for those that need a file of the reader's."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in re.findall(r"^    (?:\w+=\S+ )?python scripts/(.*)$", text, re.M) if "--ckpt" not in line]


README = lines_of(ROOT / "README.md")
LINES = README + [line for page in sorted(ROOT.glob("docs/*.md")) for line in lines_of(page)]
DRAWING = [line for line in LINES if line.split(".py")[0] in DRAW]
DRAWING += [line for line in README if line.startswith("sample_bulk")]


def test_there_is_one_of_each_script_that_the_bundled_model_draws_with():
    assert set(DRAW) <= {line.split(".py")[0] for line in README}


@pytest.mark.parametrize("line", DRAWING)
def test_a_command_line_draws(line, tmp_path, monkeypatch, capsys):
    name, *flags = shlex.split(line.partition("#")[0])
    monkeypatch.chdir(ROOT)
    script = importlib.import_module(name.removesuffix(".py"))
    out = ["-l", str(tmp_path), "-n", "2"] if "sample_diffusion" in name else ["--outdir", str(tmp_path)]
    _cli.run(script.main, script.__name__, [*flags, *out, "--ddim_steps", "3", "--device", "cpu"])
    said = capsys.readouterr()
    assert "warning" not in said.err and "error" not in said.err
    assert "picture" in said.out.splitlines()[-1] and list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("line", [line for line in LINES if line not in DRAWING])
def test_the_others_are_read_by_their_scripts(line):
    name, *flags = shlex.split(line.partition("#")[0])
    importlib.import_module(name.removesuffix(".py")).parse(flags)
