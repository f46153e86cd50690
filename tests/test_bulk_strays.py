"""What else lies in a job's folder is left alone and counts for nothing; what rows carry along cannot spoil the end."""

import errno
import hashlib
import json
import os
import tarfile

import pytest
from _bulk_jobs import files, manifest, picture_bytes
from _bulk_process import failing, maker, picture, rows

from ldm.bulk import BadRow, Row, Store, run
from ldm.bulk import lock as bulk_lock


def do(outdir, given=None, draw=None, **options):
    with Store(outdir, rows(10) if given is None else given, {"scale": 2}, **options) as store:
        return run(store, draw or maker(), batch_size=3, progress=False)


@pytest.fixture(params=["png", "tar"])
def format(request):
    return {"format": request.param, "shard_size": 4}


# ------------------------------------------------------------------------------------------------------ in the folder


def test_half_written_files_of_others_are_left_alone_and_ours_are_deleted(format, tmp_path):
    do(tmp_path, **format)
    others = [tmp_path / "movie.mkv.part", tmp_path / "downloads" / "picture.png.part"]
    ours = [tmp_path / "manifest.jsonl.part", tmp_path / "job.json.part"]
    ours.append(tmp_path / "pictures/00000/00000003.png.part")  # as one waits there for its shard, too
    ours += [tmp_path / "shards/shard-00000.tar.part"] * (format["format"] == "tar")
    for path in [*others, *ours]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    do(tmp_path, **format)
    assert [path.exists() for path in [*others, *ours]] == [True] * 2 + [False] * len(ours)


@pytest.mark.parametrize("stray", ["00099/00099999.png", "00000/5.png", "00007/00000005.png", "00000/00000002.png"])
def test_a_picture_that_is_no_rows_counts_for_none(stray, format, tmp_path):
    given = [*rows(10)[:2], BadRow(2, "no prompt"), *rows(10)[3:]]
    path = tmp_path / "pictures" / stray
    do(tmp_path, given, **format)
    for there in files(tmp_path)[0]:
        (tmp_path / there).unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"stray")
    summary = do(tmp_path, given, **format)
    assert (summary.there, summary.drawn, summary.failed, summary.left) == (0, 9, 1, 0)
    assert all(picture_bytes(tmp_path, record) == picture(rows(10)[row]) for row, record in manifest(tmp_path).items())
    assert path.read_bytes() == b"stray"


def test_a_copy_of_a_shard_counts_for_nothing_and_another_jobs_shard_is_an_error(tmp_path):
    tar = {"format": "tar", "shard_size": 4}
    do(tmp_path, **tar)
    shard, other = (tmp_path / "shards" / f"shard-0000{k}.tar" for k in (0, 1))
    (tmp_path / "shards" / "shard-00000 (copy).tar").write_bytes(b"x")
    assert do(tmp_path, **tar).there == 10
    other.write_bytes(shard.read_bytes())
    with pytest.raises(ValueError, match="shard-00001.tar is no shard of ours .*picture of row 0.* delete it"):
        do(tmp_path, **tar)


def test_a_file_where_the_folder_should_be_says_what_to_do(tmp_path):
    (tmp_path / "out").write_text("mine")
    for outdir in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(OSError, match="a file is where a folder should be; give another folder"):
            do(outdir)


def test_a_lock_that_nobody_may_read_is_an_error_all_the_same(tmp_path, monkeypatch):
    def taken(self):
        self._file.close()  # so that reading fails, as on Windows
        self._file = Unreadable()
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    class Unreadable:
        def seek(self, place):
            pass

        def read(self, count):
            raise PermissionError

        def close(self):
            pass

    monkeypatch.setattr(bulk_lock.Lock, "_take", taken)
    with pytest.raises(BlockingIOError, match=r"is in use by another run \(\?\)"):
        do(tmp_path)


# ------------------------------------------------------------------------------------------------------- mended rows


def test_rows_that_failed_may_be_mended_and_are_drawn(format, tmp_path):
    whole = [*rows(10)[:3], Row(3, 3, "mended"), *rows(10)[4:7], Row(7, 7, "mended, too"), *rows(10)[8:]]
    broken = [BadRow(3, "no prompt") if row.index == 3 else row for row in rows(10)]
    assert do(tmp_path, broken, draw=failing(7), **format).failed == 2
    summary = do(tmp_path, whole, **format)
    assert (summary.there, summary.drawn, summary.failed) == (8, 2, 0)
    told = manifest(tmp_path)
    assert [told[k]["prompt"] for k in (3, 7)] == ["mended", "mended, too"]
    assert all(picture_bytes(tmp_path, told[row.index]) == picture(row) for row in whole)
    for index in range(10):  # now they are finished
        with pytest.raises(ValueError, match="has another job: other rows"):
            do(tmp_path, [Row(index, 99, "x") if row.index == index else row for row in whole], **format)


def test_no_other_row_may_change_with_those_that_are_mended(tmp_path):
    broken = [BadRow(3, "no prompt") if row.index == 3 else row for row in rows(10)]
    do(tmp_path, broken)
    changed = [Row(5, 5, "other") if row.index == 5 else row for row in rows(10)]
    for given in (changed, rows(11), rows(9), [BadRow(5, "") if row.index == 5 else row for row in broken]):
        with pytest.raises(ValueError, match="has another job: other rows"):
            do(tmp_path, given)


def test_a_mended_row_that_was_drawn_by_a_run_that_was_killed_may_not_change_again(tmp_path):
    broken = [BadRow(3, "no prompt") if row.index == 3 else row for row in rows(10)]
    do(tmp_path, broken)
    with Store(tmp_path, rows(10), {"scale": 2}) as store:
        store.add(3, picture(rows(10)[3]))  # and no more
    with pytest.raises(ValueError, match="has another job: other rows"):
        do(tmp_path, [Row(3, 5, "other") if row.index == 3 else row for row in rows(10)])
    assert do(tmp_path).there == 10


# ------------------------------------------------------------------------------------------------------- the manifest


def test_the_checksum_of_a_picture_that_is_drawn_again_is_not_the_old_ones(tmp_path):
    """Though the run that drew it again was killed before it could write the checksum."""
    do(tmp_path)
    path = tmp_path / manifest(tmp_path)[4]["file"]
    path.unlink()
    with Store(tmp_path, rows(10), {"scale": 2}):
        pass  # killed as the picture has its name, and the checksum is not written
    path.write_bytes(b"another")
    assert do(tmp_path).there == 10
    assert manifest(tmp_path)[4]["sha256"] == hashlib.sha256(b"another").hexdigest()


def test_a_column_of_ones_own_does_not_pass_for_a_member_of_a_shard(format, tmp_path):
    do(tmp_path, [Row(0, 7, "a", extra={"member": "x.png", "sha256": "", "file": "y"})], **format)
    told = manifest(tmp_path)[0]
    assert told.get("member") == {"png": None, "tar": "00000000.png"}[format["format"]]
    if "member" in told:
        with tarfile.open(tmp_path / told["file"]) as tar:
            assert not {"member", "sha256", "file"} & json.load(tar.extractfile("00000000.json")).keys()


def test_a_parquet_takes_endless_numbers_and_keeps_numbers_that_are_mixed(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    given = [Row(0, 7, "a", scale=1.5, extra={"id": 10**30}), Row(1, 8, "b", extra={"id": 3}), BadRow(2, "no prompt")]
    do(tmp_path / "a", given, manifest="parquet")
    one, other = parquet.read_table(tmp_path / "a" / "manifest.parquet").to_pylist()
    assert [json.loads(record["id"]) for record in (one, other)] == [10**30, 3]
    assert (one["scale"], other["scale"]) == (1.5, 2.0)
    do(tmp_path / "b", [BadRow(0, "no prompt")], manifest="parquet")
    assert parquet.read_table(tmp_path / "b" / "manifest.parquet").num_rows == 0


def test_there_is_one_manifest(tmp_path):
    pytest.importorskip("pyarrow")
    for kind, other in (("jsonl", "parquet"), ("parquet", "jsonl"), ("jsonl", "parquet")):
        do(tmp_path, manifest=kind)
        assert (tmp_path / f"manifest.{kind}").exists() and not (tmp_path / f"manifest.{other}").exists()
