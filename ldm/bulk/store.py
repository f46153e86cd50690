"""The output of a job, which can be killed at any time and begun again.

OUTDIR/pictures/… or OUTDIR/shards/…   the finished rows (`places`): a row whose picture is there is finished
OUTDIR/manifest.jsonl, or .parquet     a line for each of them, written at the end of every run
OUTDIR/errors.jsonl                    a line for each row that the last run could not draw
OUTDIR/job.json                        what decides the pictures, so that a run with other settings is refused; rows
                                       that failed may be other ones in the next run: mended
OUTDIR/checksums.jsonl                 of the pictures so far, so that the end need not read them all again
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.bulk.files import PART, explained, write
from ldm.bulk.lock import Lock
from ldm.bulk.places import Folder, Shards
from ldm.bulk.rows import BadRow, Row

FORMATS = ("png", "tar")
MANIFESTS = ("jsonl", "parquet")
_JOB, _ERRORS, _SUMS = "job.json", "errors.jsonl", "checksums.jsonl"
# In the order in which they are deleted: what has lost its job would be nobody's.
_OURS = (_ERRORS, _SUMS, "manifest.jsonl", "manifest.parquet", "pictures", "shards", _JOB)
_OF_FILES = ("file", "member", "sha256")  # of the manifest: no column of one's own can pass for them
_OF_ROWS = ("negative_prompt", "steps", "scale", "width", "height")  # a row's own, or as for the whole job


class Store:
    """The folder of one job, for one run at a time: as a context, as another run may have it outside.

    Inside, `done` has the indices of the finished rows, and `failed` tells how many this run could not draw.
    """

    def __init__(
        self,
        outdir: str | Path,
        rows: Sequence[Row | BadRow],
        settings: Mapping[str, Any],
        *,
        format: str = "png",
        shard_size: int = 1000,
        manifest: str = "jsonl",
        overwrite: bool = False,
    ):
        """`settings`: what decides the pictures, beside the rows: values for JSON, which the manifest repeats.

        `format`: "png" or "tar", with `shard_size` rows in a shard; `overwrite`: delete what an earlier job has left.
        ValueError for an unknown one; on entering, ValueError where the folder has another job, and OSError where
        another run has it, or it cannot be written to.
        """
        for name, value, choices in (("format", format, FORMATS), ("manifest", manifest, MANIFESTS)):
            if value not in choices:
                raise ValueError(f"{name} {value!r} is unknown; choose {' or '.join(choices)}")
        if manifest == "parquet":
            _pyarrow()
        self.outdir, self.rows, self.settings, self.manifest = Path(outdir), rows, dict(settings), manifest
        self._overwrite = overwrite
        self._places: Folder | Shards = Folder(self.outdir, self._known)
        if format == "tar":
            self._places = Shards(self.outdir, shard_size, len(rows), self.about, self._known)
        self.done: set[int] = set()
        self.failed = 0
        self._bad: set[int] = set()
        self._sums: dict[int, str] = {}

    def __enter__(self) -> Store:
        with explained(self.outdir), contextlib.ExitStack() as stack:
            self.outdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(self.outdir))
            if self._overwrite and (self.outdir / _JOB).exists():  # else it is no job of ours
                self._delete()
            self._same_job()
            self._delete_parts()
            self.done = self._places.finished()
            self._sums = self._read_sums()
            self._errors = stack.enter_context((self.outdir / _ERRORS).open("w", encoding="utf-8"))
            self._log = stack.enter_context((self.outdir / _SUMS).open("a", encoding="utf-8"))
            self._log.write("\n")  # after a line that was cut off
            for index in self._sums.keys() - self.done:  # its picture is gone; the next may differ by rounding
                self._log.write(f"{json.dumps([index, None])}\n")
                del self._sums[index]
            for row in self.rows:
                if isinstance(row, BadRow):
                    self.fail(row.index, "row", row.reason)
            self.flush()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # a full disk's; the next run writes it again
            self._stack.close()

    def _known(self, index: int) -> bool:
        return index < len(self.rows) and isinstance(self.rows[index], Row)

    def _delete_parts(self) -> None:
        """Of a run that was killed. The folder may hold half-written files of others, too: downloads, for example."""
        own = (self.outdir / f"{name}{PART}" for name in _OURS)
        for pattern in (f"pictures/*/*.png{PART}", f"shards/shard-*.tar{PART}"):
            own = itertools.chain(own, self.outdir.glob(pattern))
        for part in own:
            part.unlink(missing_ok=True)

    def _delete(self) -> None:
        for path in files_of(self.outdir):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _same_job(self) -> None:
        """Write what the job is, or find that it is the same; ValueError where it is not."""
        path, remedy = self.outdir / _JOB, "take another folder, or delete what is there with --overwrite"
        bad = {row.index for row in self.rows if isinstance(row, BadRow)}
        if not path.exists():
            if there := [name for name in _OURS if (self.outdir / name).exists()]:
                raise ValueError(
                    f"{self.outdir} has {there[0]}, and no {_JOB} that says of what: it may be somebody else's; take "
                    "another folder"
                )
            self._write_job(bad)
            return
        try:
            earlier = dict(json.loads(path.read_text(encoding="utf-8")))
            job = self._job({int(index) for index in earlier.get("bad_rows", ())})
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({str(error)[:100]}); {remedy}") from error
        if changed := [name for name in {**earlier, **job} if earlier.get(name) != job.get(name)]:
            said = [_changed(name, earlier.get(name), job.get(name)) for name in changed]
            raise ValueError(f"{self.outdir} has another job: {', '.join(said)}; {remedy}")
        if set(job["bad_rows"]) != bad:
            self._write_job(bad)  # before any is drawn: then it may not change again

    def _job(self, bad: Container[int]) -> dict[str, Any]:
        """What the next run has to agree with; of the `bad` rows, which are not drawn, only which they are."""
        told = [BadRow(row.index, "") if row.index in bad else row for row in self.rows]
        listed = [row.index for row in told if row.index in bad]
        made = {**self.settings, "rows": _digest(told), "bad_rows": listed, "output": self._places.kind}
        return json.loads(json.dumps(made))

    def _write_job(self, bad: Container[int]) -> None:
        write(self.outdir / _JOB, json.dumps(self._job(bad), indent=1).encode())

    def _read_sums(self) -> dict[int, str]:
        sums: dict[int, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.outdir / _SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # cut off
                    index, sha256 = json.loads(line)
                    sums[index] = sha256
                    if sha256 is None:  # it was of a picture that was deleted
                        del sums[index]
        return sums

    # ---------------------------------------------------------------------------------------------------- as it runs

    def about(self, index: int) -> dict[str, Any]:
        """What is said of a row's picture, beside where it is."""
        row = self.rows[index]
        own = {name: value for name in _OF_ROWS if (value := getattr(row, name)) is not None}
        extra = {name: value for name, value in row.extra.items() if name not in _OF_FILES}
        return {**extra, "row": index, "prompt": row.prompt, "seed": row.seed, **self.settings, **own}

    def add(self, index: int, png: bytes) -> None:
        """A row is finished. OSError where its picture cannot be written: then it is not there at all."""
        with explained(self.outdir):
            self._sums[index] = hashlib.sha256(png).hexdigest()
            self._places.add(index, png)
            self.done.add(index)
            self._log.write(f"{json.dumps([index, self._sums[index]])}\n")

    def fail(self, index: int, kind: str, reason: str) -> None:
        """A row cannot be drawn; `kind`: "row", "memory" or "numbers"."""
        self.failed += 1
        self._bad.add(index)
        about = {"row": index, "kind": kind, "reason": reason, "prompt": getattr(self.rows[index], "prompt", None)}
        with explained(self.outdir):
            self._errors.write(f"{json.dumps(about)}\n")

    def flush(self) -> None:
        """What is written by now is there for who kills the process next."""
        with explained(self.outdir):
            self._errors.flush()
            self._log.flush()

    def finish(self, complete: bool) -> Path:
        """Write the manifest of all that is finished; its path. `complete`: all rows have been tried."""
        path = self.outdir / f"manifest.{self.manifest}"
        with explained(self.outdir):
            self.flush()
            if complete:
                self._places.close()
            records = (self._record(index) for index in sorted(self.done))
            write(path, _parquet(list(records)) if self.manifest == "parquet" else _jsonl(records))
            if self._bad:  # they may be mended by the next run
                self._write_job(self._bad)
            for other in set(MANIFESTS) - {self.manifest}:  # of an earlier run, and no longer true
                (self.outdir / f"manifest.{other}").unlink(missing_ok=True)
        return path

    def _record(self, index: int) -> dict[str, Any]:
        if index not in self._sums:  # the run that drew it was killed just then
            self._sums[index] = hashlib.sha256(self._places.read(index)).hexdigest()
        return {**self.about(index), **self._places.where(index), "sha256": self._sums[index]}


def files_of(outdir: str | Path) -> list[Path]:
    """What a job may have in its folder, and `overwrite` deletes: files and folders, in the order of deletion."""
    return [Path(outdir, name) for name in _OURS]


def _digest(rows: Sequence[Row | BadRow]) -> str:
    """Of what is asked for, so that other rows are noticed."""
    made = hashlib.sha256()
    for row in rows:
        told = (row.index, row.seed, row.prompt, row.negative_prompt, *row.likeness) if isinstance(row, Row) else None
        made.update(f"{json.dumps(told)}\n".encode())
    return f"{len(rows)}, {made.hexdigest()[:16]}"


def _changed(name: str, was: Any, now: Any) -> str:
    """In words; digests would say nothing."""
    if name == "rows":
        return "other rows"
    if name.endswith("_sha256"):
        what = name.removesuffix("_sha256")
        return f"another {what}" if was else f"its {what} was not noted by the version that began it"
    return f"{name} was {json.dumps(was)[:80]}, and is {json.dumps(now)[:80]} now"


def _jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()


def _parquet(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A table; what is no text, number or truth is JSON in it, and so is a column whose values are of several kinds, or
    have more than 64 bits."""
    pyarrow = _pyarrow()
    from pyarrow import parquet

    names = {name: None for record in records for name in record}
    columns = {name: _column([record.get(name) for record in records]) for name in names}
    made = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), made)
    return made.getvalue()


def _column(values: Sequence[Any]) -> Sequence[Any]:
    """Values that pyarrow can make a column of."""
    kinds = {type(value) for value in values if value is not None}
    endless = any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values)
    if kinds == {int, float} and not endless:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1 or kinds & {list, dict} or endless:
        return [None if value is None else json.dumps(value) for value in values]
    return values


def _pyarrow():
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError("a manifest in parquet needs pyarrow (pip install pyarrow); or take jsonl") from error
    return pyarrow
