"""Parquet files of prompts, changed, with lying footers, odd types, and tables that unpack to very much."""

from __future__ import annotations

import datetime
import decimal
import importlib
import io
import random
from contextlib import suppress
from functools import cache
from pathlib import Path

from fuzzing import prompts
from fuzzing.cases import Case
from fuzzing.mutate import changed
from ldm.bulk.rows import read_rows


def _written(columns: dict, **options) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, **options)
    return file.getvalue()


@cache
def _good() -> tuple[bytes, ...]:
    import pyarrow as pa

    text = ["a cat", "ünï", None, "", "b"] * 4
    plain = {"prompt": text, "seed": list(range(20)), "scale": [7.5, float("nan"), None, 1e300] * 5}
    dates = [datetime.datetime(2001, 1, 1)] * 20
    odd = {
        "prompt": text, "bytes": [b"\xff"] * 20, "list": [[1, None]] * 20, "dict": [{"a": {"b": "c"}}] * 20,
        "map": pa.array([[("k", 1)]] * 20, pa.map_(pa.string(), pa.int64())), "decimal": [decimal.Decimal("1.5")] * 20,
        "date": dates, "zone": pa.array(dates, pa.timestamp("us", "Europe/Berlin")), "none": [None] * 20,
        "nanoseconds": pa.array([2**62 + 1] * 20, pa.timestamp("ns")), "time": [datetime.time(1, 2, 3, 4)] * 20,
        "length": [datetime.timedelta(1)] * 20, "truth": [True] * 20, "half": pa.array([1.0] * 20, pa.float16()),
        "dictionary": pa.array(["x", "y"] * 10).dictionary_encode(), "large": pa.array(["x"] * 20, pa.large_string()),
        "width": pa.array([2**64 - 1] * 20, pa.uint64()), "\0": [1] * 20,
    }  # fmt: skip
    made = [_written(plain, compression=c) for c in ("none", "snappy", "gzip", "zstd", "brotli", "lz4")]
    made += [_written(plain, use_dictionary=False, data_page_version="2.0", row_group_size=3), _written(odd)]
    made += [_written({"prompt": [1, 2, None]}), _written({"prompt": [b"\xff\xfe"]}), _written({"a": ["b"]})]
    made += [
        _written({"prompt": ["a"], "x": pa.array([0], pa.timestamp("us", zone))}) for zone in ("No/Zone", "../../a")
    ]
    return (*made, _written({"prompt": ["a"] * 3}, use_byte_stream_split=False, store_decimal_as_integer=True))


@cache
def _bomb(which: str) -> bytes:
    """Much from few bytes: a long text many times, one text very long, very many rows, very many columns."""
    import pyarrow as pa

    if which == "a long text many times":
        long = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * 2_000_000]))
        return _written({"prompt": ["a"] * 5000, "own": long}, compression="zstd", store_schema=False)
    if which == "one text":
        return _written(
            {"prompt": ["a" * 200_000_000]}, compression="zstd", use_dictionary=False, write_statistics=False
        )
    if which == "rows":
        one = pa.DictionaryArray.from_arrays(pa.array([0] * 9_000_000, pa.int32()), pa.array(["a"]))
        return _written({"prompt": one}, compression="zstd", row_group_size=9_000_000, store_schema=False)
    if which == "nulls":
        return _written({"prompt": pa.nulls(9_000_000, pa.string())}, compression="zstd", row_group_size=9_000_000)
    return _written({"prompt": ["a"], **{f"c{k}": [k] for k in range(3000)}}, compression="none")


_BOMBS = ("a long text many times", "one text", "rows", "nulls", "columns")


@cache
def _extensions() -> tuple[bytes, ...]:
    """Arrow's schema, which may name Python classes: releases before 14.0.1 unpickled what stands there."""
    import pickle

    import pyarrow as pa

    from fuzzing.gadgets import Nested

    made = []
    for name in (b"arrow.py_extension_type", b"ldm.evil", b"arrow.json", b"arrow.uuid", b"arrow.opaque"):
        metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": pickle.dumps(Nested(0))}
        schema = pa.schema([pa.field("prompt", pa.string()), pa.field("x", pa.string(), metadata=metadata)])
        file = io.BytesIO()
        from pyarrow import parquet

        parquet.write_table(pa.table({"prompt": ["a"], "x": ["b"]}, schema=schema), file)
        made.append(file.getvalue())
    return tuple(made)


def case(chance: random.Random, folder: Path) -> Case:
    path = folder / "a.parquet"
    which = chance.random()
    if which < 0.02:
        made = _bomb(chance.choice(_BOMBS))
    elif which < 0.1:
        made = chance.choice(_extensions())
        made = changed(made, chance) if chance.random() < 0.5 else made
    else:
        made = chance.choice(_good())
        footer = len(made) - 8 - int.from_bytes(made[-8:-4], "little")
        if chance.random() < 0.6:  # in the footer, where sizes, types and places are said
            made = made[:footer] + changed(made[footer:-8], chance) + made[-8:]
            made = made[:-8] + (len(made) - 8 - footer).to_bytes(4, "little") + made[-4:]
        else:
            made = changed(made, chance)
    path.write_bytes(made)
    return prompts.of(path)


def warm(folder: Path) -> None:
    import pyarrow

    for module in ("pytz", "zoneinfo", "importlib.resources", "importlib.readers"):  # for time zones, when one comes
        with suppress(ImportError):
            importlib.import_module(module)
    for zone in ("Europe/Berlin", "No/Where"):
        with suppress(Exception):  # whatever it raises, its modules are there now
            pyarrow.array([0], pyarrow.timestamp("s", zone)).to_pylist()
    for content in (*_good(), *_extensions()):
        (folder / "a.parquet").write_bytes(content)
        try:
            read_rows(folder / "a.parquet", 42)
        except ValueError:
            continue
    for which in _BOMBS:
        _bomb(which)
