"""scripts/measure_inversion.py, and the page that shows what it measures."""

import re
import shlex
from pathlib import Path

import measure_inversion
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "inversion.md"


def test_the_bundled_model_loses_less_with_more_steps_and_with_refinement(capsys):
    measure_inversion.main(["--n", "1", "--steps", "3", "8", "--refine", "0", "3", "--device", "cpu"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| S | refine=0 | refine=3 |"
    (few, few_refined), (more, more_refined) = ([float(v) for v in row.strip("| ").split("|")[1:]] for row in rows)
    assert more < 0.5 * few and few_refined < 0.3 * few and more_refined < 0.3 * more


def test_the_page_shows_what_its_commands_print():
    """Its tables have the rows and columns that the commands above them ask for."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^    python scripts/measure_inversion\.py([^\n]*)\n\n(\|.*?)\n\n", page, re.M | re.S)
    assert len(blocks) == 3
    for flags, table in blocks:
        opt = measure_inversion.parse(shlex.split(flags.partition("#")[0]))
        head, _, *rows = table.splitlines()
        assert head == "| S | " + " | ".join(f"refine={n}" for n in opt.refine) + " |"
        assert [int(row.split("|")[1]) for row in rows] == opt.steps


def test_the_pages_numbers_are_what_the_command_prints(capsys):
    """Its cheapest row, to the digits that another machine's rounding leaves."""
    measure_inversion.main(["--steps", "10", "--refine", "0", "2", "--device", "cpu"])
    printed = [float(v) for v in capsys.readouterr().out.splitlines()[2].strip("| ").split("|")[1:]]
    row = re.search(r"^\| 10 \| (\S+) \| (\S+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert printed == pytest.approx([float(row[1]), float(row[2])], rel=0.2)


def test_a_model_that_is_not_told_text_is_refused_before_it_is_read(tmp_path):
    from _config import BUNDLED_CKPT

    config = str(Path(__file__).parent.parent / "configs" / "latent-diffusion" / "cin256-v2.yaml")
    with pytest.raises(ValueError, match="not told text"):
        measure_inversion.main(["--config", config, "--ckpt", str(BUNDLED_CKPT), "--device", "cpu"])
