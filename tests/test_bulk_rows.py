"""Files of prompts → rows: what is read, what is refused with its reason, and the seeds."""

import json
import math

import pytest

from ldm.bulk import BadRow, Row, read_rows, row_seed
from ldm.bulk import rows as rules
from ldm.bulk.rows import batches

BASE = 42


@pytest.fixture
def read(tmp_path):
    """Rows of a text, under a name."""

    def read(text, name="p.jsonl"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_rows(path, BASE)

    return read


def reason(rows, index=0):
    assert isinstance(rows[index], BadRow) and rows[index].index == index
    return rows[index].reason


# -------------------------------------------------------------------------------------------------------------- seeds


def test_no_two_rows_of_a_job_have_the_same_seed():
    assert len({row_seed(BASE, k) for k in range(200_000)}) == 200_000
    assert all(0 <= row_seed(BASE, k) < 2**32 for k in range(1000))


def test_bases_beside_each_other_have_no_seeds_in_common_nor_in_a_row():
    one, other = ([row_seed(base, k) for k in range(10_000)] for base in (BASE, BASE + 1))
    assert len({*one, *other}) >= 19_990  # by chance 0.02 pairs meet
    assert len({row_seed(k, k) for k in range(1000)}) >= 999
    assert len({b - a for a, b in zip(one, other)}) > 9_900  # not one list shifted


def test_a_row_keeps_its_seed_from_version_to_version():
    seeds = [row_seed(42, 0), row_seed(42, 1), row_seed(2**40, 2**33)]
    assert seeds == [3079650777, 2803723810, 2494869454]  # as files in the world were made


def test_a_seed_of_its_own_goes_before_and_others_keep_theirs(read):
    rows = read('{"prompt": "a", "seed": 7}\n"b"\n')
    assert [row.seed for row in rows] == [7, row_seed(BASE, 1)]


# ------------------------------------------------------------------------------------------------------------- formats

FULL = {"prompt": "a cat, black", "negative_prompt": "a dog", "seed": 5, "steps": 9, "scale": 2.5, "width": 64,
        "height": 128}  # fmt: skip


def test_every_format_says_the_same(read, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    header, cells = ",".join([*FULL, "id"]), ",".join(json.dumps(v) for v in [*FULL.values(), "x1"])
    parquet.write_table(
        arrow.table({k: [v, None if k != "prompt" else "b"] for k, v in {**FULL, "id": "x1"}.items()}),
        tmp_path / "p.parquet",
    )
    found = [
        read(json.dumps({**FULL, "id": "x1"}) + '\n\n"b"\n'),
        read(f"{header}\n{cells}\nb\n", "p.csv"),
        read_rows(tmp_path / "p.parquet", BASE),
    ]
    assert found[0] == [Row(0, extra={"id": "x1"}, **FULL), Row(1, row_seed(BASE, 1), "b")]
    assert found[1] == found[2] == found[0]


def test_text_has_a_prompt_a_line(read):
    rows = read("\ufeffa cat\r\n\n  a dog  \n", "p.txt")
    assert [(row.index, row.prompt) for row in rows] == [(0, "a cat"), (1, "a dog")]


def test_a_csv_takes_quoted_commas_quotes_and_lines(read):
    rows = read('id,prompt\n1,"a, ""b""\nc"\n2,d\n', "p.csv")
    assert [row.prompt for row in rows] == ['a, "b"\nc', "d"] and rows[0].extra == {"id": "1"}


def test_whole_numbers_that_came_as_floats_are_whole(read):
    assert read('{"prompt": "a", "seed": 3.0, "steps": 5.0}')[0].seed == 3


def test_a_class_may_be_a_number(read):
    assert read('{"prompt": 207}')[0].prompt == "207"


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": null}', "prompt is null"),
        ("{}", "it has no prompt"),
        ('{"prompt": ["a"]}', "prompt is ['a']; give text"),
        ('{"prompt": true}', "prompt is True; give text"),
        ('{"prompt": "a", "steps": 0}', "steps is 0; give an integer from 1 to 1000"),
        ('{"prompt": "a", "steps": 1.5}', "steps is 1.5"),
        ('{"prompt": "a", "steps": true}', "steps is True"),
        ('{"prompt": "a", "steps": "9"}', "steps is '9'"),
        ('{"prompt": "a", "scale": NaN}', "scale is nan; give a number from -1000.0 to 1000.0"),
        ('{"prompt": "a", "scale": 1e999}', "scale is inf"),
        ('{"prompt": "a", "width": 100000}', "width is 100000; give an integer from 1 to 4096"),
        ('{"prompt": "a", "seed": -1}', "seed is -1"),
        ('{"prompt": "a", "seed": 1e40}', "seed is 1e+40"),
        ('{"prompt": "a", "seed": ' + "9" * 400 + "}", "a whole number of 1329 bits"),
        ('{"prompt": "a", "seed": ' + "9" * 9999 + "}", "it is not JSON"),
        ('{"prompt": "\\ud800"}', "half of a character"),
        ("[" * 100_000, "it is not JSON"),
        ('{"prompt": "a"', "it is not JSON"),
        ("[1]", "it is [1]; give an object, or a prompt as a string"),
        ('{"prompt": "' + "x" * 10_001 + '"}', "prompt has 10001 characters; at most 10000 are read"),
        ('"' + "x" * 2_000_000 + '"', "it is longer than 1000000 characters"),
    ],
)
def test_a_bad_row_says_why_and_the_next_one_is_read(line, why, read):
    rows = read(f'{line}\n"b"\n')
    assert why in reason(rows) and rows[1].prompt == "b" and len(reason(rows)) < 300


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a,b,c", "it has 3 cells, and the header 2; quote prompts that have commas"),
        (",5", "it has no prompt"),
        ("a,five", "steps is 'five'"),
        ("a,nan", "steps is 'nan'"),
        ("a," + "1" * 50, "steps is '1111"),
    ],
)
def test_a_bad_line_of_a_csv_says_why_and_the_next_one_is_read(line, why, read):
    rows = read(f"prompt,steps\n{line}\nb,2\n", "p.csv")
    assert why in reason(rows) and (rows[1].prompt, rows[1].steps) == ("b", 2)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.xlsx", b"", r"prompts are read from .txt, .csv, .jsonl, .parquet"),
        ("p.txt", b"\n \n", "holds no prompts"),
        ("p.txt", b"a\xff\n", "is not text .* UTF-8"),
        ("p.csv", b"text\na\n", "none is called 'prompt'"),
        ("p.csv", b"prompt,id,id\na,1,2\n", "two columns 'id'"),
        ("p.parquet", b"PAR1 and no more", "cannot be read as parquet"),
    ],
)
def test_a_file_that_is_none_is_one_error(name, content, why, read):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=why):
        read(content, name)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "p.txt", BASE)


def test_rows_are_counted(read, monkeypatch):
    monkeypatch.setattr(rules, "MAX_ROWS", 3)
    assert len(read("a\nb\nc", "p.txt")) == 3
    with pytest.raises(ValueError, match="more than 3 rows"):
        read("a\nb\nc\nd", "p.txt")


def test_columns_of_ones_own_are_handed_on_as_json_can_say_them(read):
    row = read('{"prompt": "a", "id": 7, "tags": ["x", {"y": null}], "bad": NaN}')[0]
    assert row.extra == {"id": 7, "tags": ["x", {"y": None}], "bad": "nan"}


# ------------------------------------------------------------------------------------------------------------- batches


def test_batches_hold_rows_that_are_alike_each_row_once():
    rows = [Row(k, k, width=64 if k % 3 else 96, steps=k % 2 + 1) for k in range(50)]
    made = batches(rows, 4)
    assert sorted(row.index for batch in made for row in batch) == list(range(50))
    assert all(len({row.likeness for row in batch}) == 1 and 1 <= len(batch) <= 4 for batch in made)
    assert len(made) == sum(
        math.ceil(sum(row.likeness == kind for row in rows) / 4) for kind in {r.likeness for r in rows}
    )
    assert [batch[0].index for batch in made] == sorted(batch[0].index for batch in made)
