"""The output of a job: what is written, what is refused, and what a disk that takes no more leaves behind."""

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import tarfile

import pytest
from _bulk_jobs import files, manifest, picture_bytes
from _bulk_process import failing, maker, picture, rows

from ldm.bulk import BadRow, Row, Store, run
from ldm.bulk import files as bulk_files

SETTINGS = {"steps": 5, "negative_prompt": "", "width": 64}


def do(outdir, given=None, count=10, draw=None, settings=SETTINGS, **options):
    with Store(outdir, rows(count) if given is None else given, settings, **options) as store:
        return run(store, draw or maker(), batch_size=3, progress=False)


def errors(outdir):
    return [json.loads(line) for line in (outdir / "errors.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=["png", "tar"])
def format(request):
    return {"format": request.param, "shard_size": 4}


# ------------------------------------------------------------------------------------------------------- what is there


def test_the_manifest_joins_rows_settings_files_and_checksums(format, tmp_path):
    given = [Row(0, 7, "a", extra={"id": "x"}), Row(1, 8, "b", "not c", steps=9, width=96), *rows(6)[2:]]
    assert do(tmp_path, given, **format).drawn == 6
    told = manifest(tmp_path)
    for row in given:
        assert picture_bytes(tmp_path, told[row.index]) == picture(row)
        assert told[row.index]["sha256"] == hashlib.sha256(picture(row)).hexdigest()
    where = {k: told[0][k] for k in ("file", "member", "sha256") if k in told[0]}
    assert told[0] == {"id": "x", "row": 0, "prompt": "a", "seed": 7, **SETTINGS, **where}
    assert [told[1][k] for k in ("negative_prompt", "steps", "width")] == ["not c", 9, 96]


def test_a_column_of_ones_own_cannot_pass_for_a_file_or_a_setting(tmp_path):
    do(tmp_path, [Row(0, 7, "a", extra={"file": "../../x", "row": 5, "steps": 3, "sha256": ""})])
    told = manifest(tmp_path)[0]
    assert told["file"] == "pictures/00000/00000000.png" and told["steps"] == 5 and len(told["sha256"]) == 64


def test_parquet_says_what_jsonl_says(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    given = [Row(0, 2**63 - 1, "a", extra={"id": "x", "tags": ["y"]}), Row(1, 8, "b", extra={"id": 3})]
    do(tmp_path / "a", given)
    do(tmp_path / "b", given, manifest="parquet")
    table = parquet.read_table(tmp_path / "b" / "manifest.parquet").to_pylist()
    for found, expected in zip(table, manifest(tmp_path / "a").values(), strict=True):
        decoded = {k: json.loads(v) if k in ("id", "tags") and v else v for k, v in found.items()}
        assert {k: v for k, v in decoded.items() if v is not None} == expected


def test_a_shard_is_a_tar_of_pictures_and_what_they_show_the_same_every_time(tmp_path):
    for name in "ab":
        do(tmp_path / name, format="tar", shard_size=4)
    shards = [f"shards/shard-{k:05}.tar" for k in range(3)]
    assert files(tmp_path / "a") == (set(shards), [])
    with tarfile.open(tmp_path / "a" / shards[2]) as tar:
        assert tar.getnames() == ["00000008.png", "00000008.json", "00000009.png", "00000009.json"]
        assert json.load(tar.extractfile("00000009.json"))["prompt"] == "number 9"
    for shard in shards:
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_names_come_from_the_rows_number_never_from_what_it_says(format, tmp_path):
    do(tmp_path, [Row(k, k, "../../../etc/passwd\0") for k in range(4)], **format)
    assert all(name.split("/")[0] in ("pictures", "shards") for name in files(tmp_path)[0])


# --------------------------------------------------------------------------------------------------------- going on


def test_a_finished_row_is_never_drawn_again_and_a_failed_one_always_is(format, tmp_path):
    place, asked = tmp_path / "a", []
    first = do(place, draw=failing(3, 8), **format)
    assert (first.drawn, first.failed, first.left) == (8, 2, 0)
    assert sorted((e["row"], e["kind"]) for e in errors(place)) == [(3, "numbers"), (8, "numbers")]
    assert sorted(manifest(place)) == [0, 1, 2, 4, 5, 6, 7, 9]

    def draw(batch):
        asked.extend(row.index for row in batch)
        return [picture(row) for row in batch]

    second = do(place, draw=lambda: draw, **format)
    assert (second.there, second.drawn, second.failed) == (8, 2, 0) and sorted(asked) == [3, 8]
    assert errors(place) == [] and files(place)[1] == []
    do(tmp_path / "b", **format)
    assert manifest(place) == manifest(tmp_path / "b")
    for row, record in manifest(place).items():
        assert picture_bytes(place, record) == picture(rows(10)[row])


def test_bad_rows_are_counted_and_listed_each_time(tmp_path):
    given = [BadRow(0, "prompt is null"), *rows(3)[1:]]
    for drawn in (2, 0):
        summary = do(tmp_path, given)
        assert (summary.rows, summary.there, summary.drawn, summary.failed) == (3, 2 - drawn, drawn, 1)
        assert errors(tmp_path) == [{"row": 0, "kind": "row", "reason": "prompt is null", "prompt": None}]


def test_a_deleted_picture_is_drawn_again(tmp_path):
    do(tmp_path)
    (tmp_path / manifest(tmp_path)[4]["file"]).unlink()
    assert do(tmp_path).drawn == 1


def test_another_job_is_refused_and_overwritten_only_if_asked(tmp_path):
    do(tmp_path)
    for change in ({"count": 11}, {"settings": {**SETTINGS, "steps": 6}}, {"format": "tar"}):
        with pytest.raises(ValueError, match="has another job: .*; take another folder, or delete .* --overwrite"):
            do(tmp_path, **change)
    assert len(manifest(tmp_path)) == 10
    (tmp_path / "mine.txt").write_text("mine")
    assert do(tmp_path, count=3, overwrite=True).drawn == 3
    assert len(files(tmp_path)[0]) == 3 and (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    "content", ["{", "[1]", "null", "[" * 100_000, "{}", '{"bad_rows": [[1]]}', '{"bad_rows": [Infinity]}']
)
def test_a_damaged_job_is_an_error_that_says_what_to_do(content, tmp_path):
    do(tmp_path)
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(ValueError, match="--overwrite"):
        do(tmp_path)


def test_a_folder_of_somebody_elses_is_not_taken_for_a_job(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.png").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="has pictures, and no job.json .* take another folder"):
            do(tmp_path, overwrite=overwrite)
    assert (tmp_path / "pictures" / "holiday.png").read_bytes() == b"mine"


def test_a_damaged_shard_says_which_and_what_to_do(tmp_path):
    do(tmp_path, format="tar", shard_size=4)
    shard = tmp_path / "shards" / "shard-00001.tar"
    shard.write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="shard-00001.tar is no shard of ours .* delete it"):
        do(tmp_path, format="tar", shard_size=4)
    shard.unlink()
    assert do(tmp_path, format="tar", shard_size=4).drawn == 4


@pytest.mark.parametrize("option", [{"format": "jpg"}, {"manifest": "csv"}])
def test_unknown_words_are_refused(option, tmp_path):
    with pytest.raises(ValueError, match="is unknown; choose"):
        do(tmp_path, **option)


# ------------------------------------------------------------------------------------------- disks that take no more


def full_after(monkeypatch, count, number=errno.ENOSPC):
    """The disk is full after so many files."""
    left, sync = [count], os.fsync

    def fsync(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        sync(file)

    monkeypatch.setattr(bulk_files.os, "fsync", fsync)


def whole(outdir):
    """How many rows there are; what has a final name is whole."""
    there, parts = files(outdir)
    pictures = {name: (outdir / name).read_bytes() for name in there if name.endswith(".png")}
    assert not parts
    for name, content in pictures.items():
        assert content == picture(rows(40)[int(name[-12:-4])])
    packed = 0
    for name in there - set(pictures):
        with tarfile.open(outdir / name) as tar:
            packed += sum(member.name.endswith(".png") for member in tar)
    return len(pictures) + packed


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSPC, "the disk is full; make room"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only")],
)
@pytest.mark.parametrize("room", [2, 6, 7])  # a file more: job.json
def test_a_full_disk_stops_with_one_error_and_the_next_run_goes_on(room, number, why, format, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        full_after(patch, room, number)
        with pytest.raises(OSError, match=f"{tmp_path} cannot be written to: .*{why}"):
            do(tmp_path, **format)
    there = whole(tmp_path)
    assert there == (room - 1 if room < 7 or format["format"] == "png" else 5)  # the fifth completes a shard
    summary = do(tmp_path, **format)
    assert (summary.there, summary.drawn, summary.left) == (there, 10 - there, 0)
    assert whole(tmp_path) == 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def mounted(place, option):
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


def test_a_disk_that_is_really_full(small_disk, format):
    with pytest.raises(OSError, match="the disk is full; make room"):
        do(small_disk, count=60, **format)
    there, parts = files(small_disk)
    assert there and not parts
    mounted(small_disk, "size=8m")
    summary = do(small_disk, count=60, **format)
    assert 0 < summary.there < 60 and summary.there + summary.drawn == 60
    assert {row: picture_bytes(small_disk, r) for row, r in manifest(small_disk).items()} == {
        row.index: picture(row) for row in rows(60)
    }


def test_a_disk_that_is_really_read_only(small_disk):
    do(small_disk, count=2)
    mounted(small_disk, "ro")
    with pytest.raises(OSError, match="the disk is read-only; give another folder"):
        do(small_disk, count=2)
    mounted(small_disk, "rw")
    assert do(small_disk, count=2).there == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match="writing is not permitted"):
            do(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_an_interruption_within_a_file_leaves_none(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), bulk_files.writing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
