"""A file whose parts contradict each other is an error that says how; nothing outside a tensor's storage is read."""

import warnings
import zipfile

import pytest
import torch
from fuzzing.pickle_files import (
    MACHINE,
    items,
    legacy_file,
    mapping,
    name,
    number,
    safetensors_file,
    storage,
    tensor,
    text,
    whole,
    zip_file,
)

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import load_state_dict


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (2, 4)},
        {"offset": 1},
        {"offset": -1},
        {"shape": (-2, -3)},
        {"stride": (-3, 1)},
        {"stride": (4, 1)},
        {"shape": (2**40, 2**40), "stride": (0, 0)},
        {"shape": (2**61, 2**61, 0), "stride": (1, 1, 1)},
        {"shape": (2**61, 4, 0), "stride": (0, 0, 0)},
        {"shape": (2**61, 8), "stride": (0, 0)},
        {"shape": (1,) * 40, "stride": (1,) * 40},
        {"shape": (6,)},
        {"rebuild": "_rebuild_tensor_v3"},
    ],
)
@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_a_tensor_beyond_its_storage_is_an_error_and_the_storage_stays(write, lie, tmp_path):
    stored = storage(legacy=write is legacy_file)
    for changes in ({}, lie):
        path = write(tmp_path / "a.ckpt", whole(mapping(weight=tensor(stored, **changes))), {"0": bytes(24)})
        if not changes:
            assert load_state_dict(path)["weight"].shape == (2, 3)
    with pytest.raises(CheckpointError, match="damaged"):
        load_state_dict(path)


@pytest.mark.parametrize(
    "stored, said",
    [
        (storage(numel=7), "damaged"),
        (storage(numel=-1), "damaged"),
        (storage(numel=2**60), "damaged"),
        (storage(key="../../etc/passwd"), "missing|storages"),
        (storage(kind="QInt8Storage"), "cannot be read here"),
        (items(text("storage"), name("torch", "FloatStorage"), number(0), text("cpu"), number(6)) + b"Q", "damaged"),
        (items(text("memory"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(6)) + b"Q", "damaged"),
        (items(text("storage"), text("FloatStorage"), text("0"), text("cpu"), number(6)) + b"Q", "cannot be read"),
        (text("storage") + b"Q", "damaged"),
        (number(0), "damaged"),
        (b"N", "damaged"),
    ],
)
@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_a_storage_that_is_not_what_it_says_is_an_error(write, stored, said, tmp_path):
    with pytest.raises(CheckpointError, match=said):
        load_state_dict(write(tmp_path / "a.ckpt", whole(mapping(weight=tensor(stored))), {"0": bytes(24)}))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_one_storage_of_two_sizes_is_an_error(write, tmp_path):
    """The first that is read would be too short for the second tensor, and torch would make it longer."""
    small = tensor(storage(numel=1), shape=(1,), stride=(1,))
    pickled = whole(mapping(a=small, b=tensor(storage(numel=6))))
    with pytest.raises(CheckpointError, match="two sizes"):
        load_state_dict(write(tmp_path / "a.ckpt", pickled, {"0": bytes(24)}))


@pytest.mark.parametrize("view, start", [(b"N", 0), (items(text("v"), number(2), number(4)), 2)])
def test_old_files_may_view_a_part_of_a_storage(view, start, tmp_path):
    stored = items(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(6), view) + b"Q"
    pickled = whole(mapping(weight=tensor(stored, shape=(4,), stride=(1,))))
    path = legacy_file(tmp_path / "a.ckpt", pickled, {"0": torch.arange(6.0).numpy().tobytes()})
    assert load_state_dict(path)["weight"].tolist() == [start, start + 1, start + 2, start + 3]


def test_files_of_a_big_endian_machine_are_told(tmp_path):
    pickled, numbers = whole(mapping(weight=tensor(storage()))), {"0": bytes(24)}
    for path in (
        zip_file(tmp_path / "a.ckpt", pickled, numbers, more={"byteorder": b"big"}),
        legacy_file(tmp_path / "b.ckpt", pickled, numbers, machine={**MACHINE, "little_endian": False}),
    ):
        with pytest.raises(CheckpointError, match="big-endian"):
            load_state_dict(path)


def test_a_zip_archive_whose_records_lie_over_each_other_is_damaged(tmp_path):
    numbers = {"0": bytes(24), "1": bytes(24)}
    path = zip_file(tmp_path / "a.ckpt", whole(mapping(weight=tensor(storage()))), numbers)
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")  # the last in the table of contents: "data/1"
    first = content.find(b"PK\x03\x04", 10)
    for place, value in ((42, first), (20, 10**6)):  # where it begins; how long it is
        changed = content.copy()
        changed[entry + place : entry + place + 4] = value.to_bytes(4, "little")
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="damaged"):
            load_state_dict(path)


# ------------------------------------------------------------------------------------------------ headers that lie


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header, said",
    [
        ({"a": entry()}, None),
        ({"a": entry("F32", [3])}, "8 bytes to a, whose shape and dtype need 12"),
        ({"a": entry("F32", [4], [0, 16])}, r"truncated \(its tensors have 16 bytes, and 8 are there\)"),
        ({"a": entry("F32", [1], [0, 4])}, "4 bytes lie behind its last tensor"),
        ({"a": entry("F32", [1], [4, 8])}, "a leaves a gap before it"),
        ({"a": entry(), "b": entry()}, "b overlaps the tensor before it"),
        ({"a": entry("F32", [-2])}, "no possible shape or place of a"),
        ({"a": entry("F32", [2], [8, 0])}, "-8 bytes to a"),
        ({"a": entry("F32", [2], [-8, 0])}, "no possible shape or place"),
        ({"a": entry("F32", [2**30, 2**30])}, "shape and dtype need"),
        ({"a": entry("F32", [2**61, 2**61])}, "gives a the shape"),
        ({"a": entry("F32", [2**61, 2**61, 0], [0, 0]), "b": entry()}, "gives a the shape"),
        ({"a": entry("F32", [True, 2])}, "no possible shape"),
        ({"a": entry("F32", [2.0])}, "no possible shape"),
        ({"a": entry("F32", [2], [0])}, "no possible shape or place"),
        ({"a": entry("F32", [1] * 40 + [2])}, "no possible shape"),
        ({"a": entry("F4")}, "a in the dtype F4, which cannot be read"),
        ({"a": entry(None)}, "dtype None"),
        ({"a": [1]}, "says nothing of a"),
        ({"__metadata__": {"format": "pt"}}, "behind its last tensor"),
        (b"{nothing", "its header is no JSON"),
        (b"{" + b"[" * 100_000, "its header is no JSON"),
        (b'{"a":' + b"9" * 10_000 + b"}", "its header is no JSON|says nothing"),
        (b'{"\xff": 1}', "its header is no JSON"),
    ],
)
def test_a_header_that_lies_is_told_by_its_lie(header, said, tmp_path):
    path = safetensors_file(tmp_path / "a.safetensors", header, bytes(8))
    if said is None:
        assert load_state_dict(path)["a"].tolist() == [0, 0]
    else:
        with pytest.raises(CheckpointError, match=said):
            load_state_dict(path)


def test_a_header_longer_than_the_file_or_than_may_be_is_told(tmp_path):
    path = safetensors_file(tmp_path / "a.safetensors", {"a": entry()}, bytes(8))
    content = path.read_bytes()
    for length, said in ((10_000, "truncated.*10,000 bytes"), (2**62, "looks like safetensors, but its header")):
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(CheckpointError, match=said):
            load_state_dict(path)


def test_one_name_twice_in_a_header_is_an_error(tmp_path):
    header = b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "a": {}}'
    with pytest.raises(CheckpointError, match="one name stands in it twice"):
        load_state_dict(safetensors_file(tmp_path / "a.safetensors", header, bytes(8)))


@pytest.mark.parametrize("start", [b"\x80\x02c", b"\x80\x02X\xff\xff\xff\x7f", b"c"])
def test_a_sparse_file_is_not_searched_for_the_end_of_a_line(start, tmp_path):
    with (tmp_path / "a.ckpt").open("wb") as file:
        file.write(start)
        file.truncate(2**33)
    with pytest.raises(CheckpointError, match="line without an end|beyond 134,217,728 bytes|is not a checkpoint"):
        load_state_dict(tmp_path / "a.ckpt")


def test_an_old_view_stays_within_its_part_and_that_within_the_storage(tmp_path):
    for start, part, said in ((4, 3, "a view reaches beyond"), (0, 3, "beyond its storage of 3")):
        view = items(text("v"), number(start), number(part))
        stored = items(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(6), view) + b"Q"
        pickled = whole(mapping(weight=tensor(stored, shape=(2,), stride=(3,))))
        with pytest.raises(CheckpointError, match=said):
            load_state_dict(legacy_file(tmp_path / "a.ckpt", pickled, {"0": bytes(24)}))


def test_a_zip_that_hides_something_is_refused(tmp_path):
    """An encrypted flag, one name twice, a record without its own header, many members that inflate too far."""
    torch.save({"a": torch.zeros(64)}, tmp_path / "good.ckpt")
    good = (tmp_path / "good.ckpt").read_bytes()
    central = good.index(b"PK\x01\x02")
    for kind, bad in {
        "encrypted": good[: central + 8] + b"\x01" + good[central + 9 :],
        "headless": b"XX" + good[2:],
        "local": good.replace(b"PK\x03\x04", b"PK\x03\x05"),
    }.items():
        path = tmp_path / f"{kind}.ckpt"
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_state_dict(path)
    with zipfile.ZipFile(tmp_path / "twice.ckpt", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in zipfile.ZipFile(tmp_path / "good.ckpt").infolist():
            content = zipfile.ZipFile(tmp_path / "good.ckpt").read(record)
            for _ in range(2):
                archive.writestr(record.filename, content)
    with pytest.raises(CheckpointError):
        load_state_dict(tmp_path / "twice.ckpt")
