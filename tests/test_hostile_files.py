"""What scripts/fuzz.py found in the readers of strangers' files, each by itself: bombs, lies, errors without a name."""

import io
import json
import zlib

import _config
import _yaml
import pytest
from fuzzing.pickle_files import FORMATS, call, items, mapping, name, storage, tensor, text, whole, zip_file
from fuzzing.pictures import header, png

from ldm.bulk.rows import BadRow, read_rows
from ldm.checkpoint import load_checkpoint, load_embeddings, load_state_dict
from ldm.checkpoint.errors import CheckpointError, RefusedError

MODEL = "model: {target: ldm.util, params: {x: %s}}\n"


def refused(path, content, message, read=_config.load_config):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


# --------------------------------------------------------------------------------------------------------------- YAML


def laughs(levels, width):
    lines = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]" for k in range(1, levels)]
    return "\n".join(["a0: &a0 lol", *lines, MODEL % f"*a{levels - 1}"])


def test_a_billion_laughs_are_refused_before_they_are_built(tmp_path):
    refused(tmp_path / "a.yaml", laughs(10, 9), "more than 1,000,000 letters and values, with all that it repeats")


def test_a_few_aliases_are_no_matter(tmp_path):
    (tmp_path / "a.yaml").write_text(laughs(3, 4))
    assert _config.load_config(tmp_path / "a.yaml").model.params.x == [["lol"] * 4] * 4


def test_a_merge_of_merges_is_counted_too(tmp_path):
    lines = [f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}" for k in range(1, 12)]
    refused(tmp_path / "a.yaml", "\n".join(["a0: &a0 {x: y}", *lines, MODEL % "1"]), "with all that it repeats")


def test_a_part_that_holds_itself_is_refused(tmp_path):
    refused(tmp_path / "a.yaml", MODEL % "&a [*a]", r"has a part \*a that holds itself")


@pytest.mark.parametrize("text", [True, False])
def test_references_that_would_double_a_config_forty_times_are_refused(text, tmp_path):
    """As text, the process would be out of memory; as mappings, it would copy for days."""
    again = [("${b%d}${b%d}" if text else "{x: '${b%d}', y: '${b%d}'}") % (k, k) for k in range(40)]
    lines = ["b0: lol" if text else "b0: {x: lol}", *(f"b{k + 1}: {value}" for k, value in enumerate(again))]
    refused(tmp_path / "a.yaml", "\n".join([*lines, MODEL % "'${b40}'"]), "has references that make more than")


def test_references_of_every_form_are_followed(tmp_path):
    (tmp_path / "a.yaml").write_text(MODEL % "{a: [1, 2], b: '${model.params.x.a[1]}', c: '${.b}', d: '${..x.b}'}")
    assert _config.load_config(tmp_path / "a.yaml").model.params.x == {"a": [1, 2], "b": 2, "c": 2, "d": 2}


def test_relative_references_count_as_absolute_ones_do():
    size = _yaml._Sizes({"a": {"long": "x" * 500, "b": "${.long}${..a.long}${a.long}"}})
    assert size.of("${a.b}", ("c",)) > 1500


@pytest.mark.parametrize("depth", [101, 50_000])
def test_nesting_is_refused_before_a_parser_in_c_runs_out_of_stack(depth, tmp_path):
    refused(tmp_path / "a.yaml", MODEL % ("[" * depth + "]" * depth), "nested too deeply, more than 100 levels")


@pytest.mark.parametrize(
    "value, message",
    [
        ("9" * 5000, "a number of 5,000 digits"),
        ("0x" + "f" * 5000, "a number of 5,002 digits"),
        ("!!int '" + "9" * 5000 + "'", "a number of 5,000 digits"),
        ("!!bool a", "a value that is not what it is called"),
        ("!!timestamp a", "a value that is not what it is called"),
        ("!!int ''", "a value that is not what it is called"),
        ("!!float a", "a value that is not what it is called"),
        ("!!python/object/apply:os.system [true]", "is not YAML: could not determine a constructor"),
        ("'???'", "leaves model.params.x open"),
    ],
)
def test_a_value_that_is_none_names_the_file(value, message, tmp_path):
    refused(tmp_path / "a.yaml", MODEL % value, message)


def test_a_long_text_of_digits_is_a_text(tmp_path):
    (tmp_path / "a.yaml").write_text(MODEL % ("'" + "9" * 5000 + "'"))
    assert _config.load_config(tmp_path / "a.yaml").model.params.x == "9" * 5000


# ------------------------------------------------------------------------------------------------------------ pictures


def test_a_picture_whose_palette_is_missing_is_damaged(tmp_path):
    from ldm.picture_files import read_picture

    content = png(header(4, 4, 8, 3), (b"IDAT", zlib.compress(bytes(20))), (b"IEND", b""))
    refused(tmp_path / "a.png", content, "is damaged .it has no palette", read_picture)


def settings_in(text):
    return png(header(4, 4), (b"tEXt", b"ldm-settings\0" + text), (b"IDAT", zlib.compress(bytes(52))), (b"IEND", b""))


@pytest.mark.parametrize(
    "content, message",
    [
        (settings_in(b"{"), "its settings are damaged"),
        (settings_in(b"[" * 100_000), "its settings are damaged"),
        (settings_in(b"[1]"), "its settings are a list"),
        (b"no picture", "is no picture"),
        (png(header(20_000, 20_000), (b"IDAT", b"")), "too large .400 megapixels"),
        (png(header(4, 4), (b"IDAT", b"x"), (b"IEND", b"")), "is damaged"),
    ],
)
def test_settings_that_are_none_are_an_error_with_the_files_name(content, message, tmp_path):
    from ldm.image import read_settings

    refused(tmp_path / "a.png", content, message, read_settings)


@pytest.mark.parametrize("last", ["Size: " + "9" * 5000 + "x1", "a: " + "[" * 100_000])
def test_another_tools_settings_that_cannot_be_are_left_as_text(last):
    from ldm.image import parse_parameters

    assert parse_parameters(f"a cat\nSteps: 5, {last}")["steps"] == 5


@pytest.mark.parametrize("text", ["(", "-" * 5000 + "1", "{" * 3000, "'descr'"])
def test_a_numpy_header_that_is_none_is_an_error_with_the_files_name(text, tmp_path):
    from ldm.depth_files import read_depth

    head = text.encode() + b"\n"
    content = b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head
    refused(tmp_path / "a.npy", content, "no array that numpy saved", read_depth)


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("form", FORMATS)
def test_a_function_that_would_make_a_tensor_is_refused_by_its_name(form, tmp_path):
    made = call(name("torch._tensor", "_rebuild_from_type_v2"), name("package", "run"), b"N", items(text("a")), b"N")
    path = FORMATS[form](tmp_path / "a.ckpt", whole(mapping(callbacks=made, state_dict=b"}")))
    with pytest.raises(RefusedError, match=r"a.ckpt' was refused: .*package.run"):
        load_state_dict(path)


def test_an_embedding_whose_numbers_are_missing_names_its_file(tmp_path):
    path = zip_file(tmp_path / "a.pt", whole(mapping(emb_params=tensor(storage(), shape=(2, 3)))), {})
    with pytest.raises(CheckpointError, match="a.pt' is truncated or damaged .its record data.0 is missing"):
        load_embeddings(path)


def test_a_text_encoder_of_another_size_names_its_folder(tmp_path):
    pipeline_folder = pytest.importorskip("fuzzing.pipeline_folder")
    folder = pipeline_folder.write(tmp_path, pipeline_folder.SD2, {"text_encoder/config.json": {"hidden_size": 64}})
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value)


# ------------------------------------------------------------------------------------------------------------- prompts


def read(path):
    return read_rows(path, 42)


def test_a_header_of_csv_that_is_too_long_names_the_file(tmp_path):
    refused(tmp_path / "a.csv", '"prompt\n' + "a" * 999_999 + "\n" + "b" * 999_999, "first line is not CSV", read)


def test_a_header_of_very_many_columns_is_read_at_once(tmp_path):
    """Counting each of them in all of them took hours."""
    path = tmp_path / "a.csv"
    path.write_text("prompt," + ",".join(map(str, range(140_000))) + "\na cat")
    assert read(path)[0].prompt == "a cat"
    refused(path, path.read_bytes().replace(b",99,", b",98,"), "two columns '98'", read)


@pytest.mark.parametrize("own", [{"own": "\ud800"}, {"\ud800": 1}, {"own": ["\ud83d", {"\udfff": 1}]}])
def test_half_a_character_in_a_column_of_ones_own_can_be_written_to_the_manifest(own, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a cat", **own}))
    row = read(tmp_path / "a.jsonl")[0]
    assert row.extra and json.dumps(row.extra, ensure_ascii=False).encode()


def test_deep_json_is_a_bad_row_at_every_depth(tmp_path):
    depths = range(100, 1200, 7)
    lines = [bracket * n + other * n for n in depths for bracket, other in ("[]", ('{"a":', "1" + "}"))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert all(isinstance(row, BadRow) for row in read(tmp_path / "a.jsonl"))


def table(*, schema=False, plain=False, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    options = {"use_dictionary": not plain, "write_statistics": not plain, "store_schema": schema}
    one_group = max(len(column) for column in columns.values())
    parquet.write_table(pyarrow.table(columns), file, compression="zstd", row_group_size=one_group, **options)
    return file.getvalue()


def test_a_small_table_of_very_many_rows_is_refused_before_they_are_made(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    content = table(prompt=pyarrow.nulls(5_000_000, pyarrow.string()))
    assert len(content) < 50_000
    refused(tmp_path / "a.parquet", content, "has 5,000,000 rows in", read)


def test_a_small_table_of_one_long_text_many_times_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    long = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 5000, pyarrow.int32()), ["a" * 2_000_000])
    refused(tmp_path / "a.parquet", table(prompt=["a"] * 5000, own=long), "holds far more than its size says", read)


def test_a_small_table_of_one_huge_cell_is_refused_before_it_is_unpacked(tmp_path):
    refused(
        tmp_path / "a.parquet", table(plain=True, prompt=["a" * 150_000_000]), "unpacks to far more than its size", read
    )


def test_a_table_of_a_thousand_like_rows_is_read(tmp_path):
    (tmp_path / "a.parquet").write_bytes(table(prompt=["a cat"] * 1000, seed=list(range(1000))))
    rows = read(tmp_path / "a.parquet")
    assert [row.seed for row in rows] == list(range(1000)) and {row.prompt for row in rows} == {"a cat"}


def test_a_table_whose_time_zone_is_none_names_the_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    content = table(schema=True, prompt=["a"], own=pyarrow.array([0], pyarrow.timestamp("us", "No/Zone")))
    refused(tmp_path / "a.parquet", content, "cannot be read as parquet", read)


def test_a_pyarrow_that_ran_what_files_say_is_refused(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(table(prompt=["a"]))
    for version in ("14.0.0", "13.0.1.dev3"):
        monkeypatch.setattr(pyarrow, "__version__", version)
        with pytest.raises(ImportError, match="too old.*CVE-2023-47248"):
            read(tmp_path / "a.parquet")
    monkeypatch.setattr(pyarrow, "__version__", "14.0.1")
    assert read(tmp_path / "a.parquet")[0].prompt == "a"
