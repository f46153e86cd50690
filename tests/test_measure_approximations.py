"""What scripts/measure_approximations.py prints, and the tables of it in the docs."""

from pathlib import Path

import measure_approximations as script

PAGE = (Path(__file__).parent.parent / "docs" / "speed_approximate.md").read_text(encoding="utf-8")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_exact_pictures_are_compared_with_themselves_and_the_approximate_ones_with_them(capsys, monkeypatch):
    monkeypatch.setattr(script, "SETTINGS", ((1, 0), (4, 0), (1, 0.75)))
    script.main(["--n", "3", "--batch", "2", "--ddim_steps", "5", "--device", "cpu"])
    head, _, exact, *others = capsys.readouterr().out.splitlines()[:5]
    assert cells(exact)[:4] == ["1", "0", "1.00", "0.0"] and cells(exact)[4].endswith(" of 3")
    assert [cells(line)[:2] for line in others] == [["4", "0"], ["1", "0.75"]]
    assert all(1 < float(cells(line)[3]) < 100 for line in others) and head in PAGE


def test_the_docs_have_a_row_for_each_setting():
    rows = [cells(line)[:2] for line in PAGE.splitlines() if line.endswith(" of 100 |")]
    assert rows == [[str(n), f"{ratio:g}"] for n, ratio in script.SETTINGS]
