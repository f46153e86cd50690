"""What scripts/measure_samplers.py prints, and the table of it in the docs."""

from pathlib import Path

import measure_samplers

PAGE = (Path(__file__).parent.parent / "docs" / "options.md").read_text(encoding="utf-8")


def test_a_row_is_as_the_docs_have_it_and_more_steps_are_nearer(capsys, monkeypatch):
    monkeypatch.setattr(measure_samplers, "REFERENCE", 80)
    monkeypatch.setattr(measure_samplers, "CHECK", 60)
    measure_samplers.main(["--steps", "4", "16", "--n", "1", "--device", "cpu"])
    said = capsys.readouterr().out.splitlines()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[3:6] for line in said[2:]}
    assert len(rows) == 6
    assert {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in PAGE.splitlines()} >= set(rows)
    for few, many, trust in rows.values():
        assert 0 < float(trust) < 0.05 and float(many) < 0.7 * float(few)
