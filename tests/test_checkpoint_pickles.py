"""Pickles are read and nothing in them is run: what is data arrives, what is a call is refused by its name."""

import builtins
import os
import pickle
import subprocess

import pytest
import torch
from fuzzing.pickle_files import FORMATS, call, items, legacy_file, mapping, name, name4, number, text, whole, zip_file

from ldm.checkpoint.errors import CheckpointError, RefusedError
from ldm.checkpoint.files import load_state_dict

WEIGHTS = {"model.weight": torch.arange(6.0).reshape(2, 3), "model.bias": torch.tensor([1.5, -2.0]).half()}


# ------------------------------------------------------------------------------------------------- what is refused

OS, COMMAND = name("os", "system"), text("true")

CALLS = {
    "global": (call(OS, COMMAND), "os.system"),
    "as Linux names it": (call(name("posix", "system"), COMMAND), "os.system"),
    "as Windows names it": (call(name("nt", "system"), COMMAND), "os.system"),
    "stack global": (call(name4("os", "system"), COMMAND), "os.system"),
    "instance": (b"(" + COMMAND + b"ios\nsystem\n", "os.system"),
    "object": (b"(" + OS + COMMAND + b"o", "os.system"),
    "new object": (name("subprocess", "Popen") + items(COMMAND) + b"\x81", "subprocess.Popen"),
    "new object with keywords": (name("subprocess", "Popen") + items(COMMAND) + b"}\x92", "subprocess.Popen"),
    "from the memo": (OS + b"q\x05" + b"0" + b"h\x05" + items(COMMAND) + b"R", "os.system"),
    "only named": (OS, "os.system"),
    "as an argument": (call(name("some.package", "Runner"), OS, COMMAND), "os.system"),
    "in a partial": (call(name("functools", "partial"), OS, COMMAND), "os.system"),
    "what a partial made": (call(call(name("functools", "partial"), name("package", "run"))), "what functools.partial"),
    "what a class made": (call(call(name("package", "Maker")), COMMAND), "what package.Maker made"),
    "a text that is called": (call(text("os.system"), COMMAND), "a str"),
    "python 2's builtins": (call(name("__builtin__", "eval"), COMMAND), "builtins.eval"),
    "import": (call(name("builtins", "__import__"), COMMAND), "builtins.__import__"),
    "map": (call(name("builtins", "map"), name("package", "run"), b"]"), "builtins.map"),
    "getattr of a module": (call(name("builtins", "getattr"), text("os"), text("system")), "builtins.getattr"),
    "getattr of a class": (
        call(call(name("builtins", "getattr"), name("package", "Class"), text("run")), COMMAND),
        "package.Class.run",
    ),
    "getattr of a data type": (
        call(name("builtins", "getattr"), name("pathlib", "Path"), text("unlink")),
        "builtins.getattr",
    ),
    "dotted, through a package": (call(name4("torch.serialization", "os.system"), COMMAND), "torch.serialization.os"),
    "dotted, to a class": (call(name4("torch.serialization", "subprocess.Popen"), COMMAND), "subprocess.Popen"),
    "dotted, from a data type": (call(name4("pathlib", "os.system"), COMMAND), "pathlib.os.system"),
    "dotted, from a harmless one": (call(name4("collections", "OrderedDict.fromkeys"), COMMAND), "fromkeys"),
    "attrgetter": (call(name("operator", "attrgetter"), COMMAND), "operator.attrgetter"),
    "a function of a package": (call(name("numpy", "fromfile"), COMMAND), "numpy.fromfile"),
    "torch's nested pickle": (call(name("torch.storage", "_load_from_bytes"), b"C\x00"), "torch.storage._load_from_b"),
    "torch.load": (call(name("torch", "load"), COMMAND), "torch.load"),
    "torch.hub": (call(name("torch.hub", "load"), COMMAND), "torch.hub.load"),
    "a nested pickle": (call(name("pickle", "loads"), b"C\x02N."), "pickle.loads"),
    "code": (call(name("types", "CodeType"), number(0)), "types.CodeType"),
    "a library": (call(name("ctypes", "CDLL"), COMMAND), "ctypes.CDLL"),
    "runpy": (call(name("runpy", "run_path"), COMMAND), "runpy.run_path"),
    "pip": (call(name("pip._internal", "main"), COMMAND), "pip._internal.main"),
    "constructor by a helper": (
        call(name("copyreg", "__newobj__"), name("subprocess", "Popen"), COMMAND),
        "subprocess.Popen",
    ),
    "a helper's helper": (call(name("copy_reg", "_reconstructor"), name("some", "run"), COMMAND, b"N"), "some.run"),
    "a tensor of a function": (call(name("torch._tensor", "_rebuild_from_type_v2"), OS, b"N", b")", b"N"), "os.system"),
    "extension code": (b"\x82\x01", "EXT1"),
    "lone persistent id": (b"Pos.system\n", "PERSID"),
    "buffer from outside": (b"\x97", "NEXT_BUFFER"),
    "a name with control characters": (name4("os", "sys\x1b[2Jtem"), r"os\.sys\\x1b"),
}


@pytest.fixture
def nothing_runs(monkeypatch):
    """Whatever a pickle might call ends the test."""
    import importlib

    def forbidden(*_, **__):
        raise BaseException("something was run")  # no reader catches this

    for module, attribute in ((os, "system"), (subprocess, "Popen"), (builtins, "eval"), (importlib, "import_module")):
        monkeypatch.setattr(module, attribute, forbidden)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CALLS)
def test_a_file_that_asks_for_a_call_is_refused_by_its_name(case, form, tmp_path, nothing_runs):
    body, named = CALLS[case]
    path = FORMATS[form](tmp_path / "a.ckpt", whole(mapping(state_dict=mapping(weight=body))))
    with pytest.raises(RefusedError, match=f"a.ckpt' was refused: .*{named}"):
        load_state_dict(path)


class Harm:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".bin"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMATS)
def test_the_canary_lives(form, protocol, suffix, tmp_path):
    canary = tmp_path / "canary"
    pickled = pickle.dumps({"state_dict": {"weight": Harm(canary)}}, protocol)
    path = FORMATS[form](tmp_path / f"a{suffix}", pickled)
    with pytest.raises(RefusedError, match="run os.mkdir"):
        load_state_dict(path)
    assert not canary.exists()
    pickle.loads(pickled)
    assert canary.exists()  # so the file would have done it


@pytest.mark.parametrize("legacy", [False, True])
def test_so_it_does_in_what_torch_itself_saved_beside_good_weights(legacy, tmp_path):
    content = {"state_dict": WEIGHTS, "callbacks": [Harm(tmp_path / "canary")]}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(RefusedError, match="run os.mkdir"):
        load_state_dict(tmp_path / "a.ckpt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "changed",
    [
        name("collections", "OrderedDict"),
        name("torch._utils", "_rebuild_tensor_v2"),
        name("torch", "FloatStorage"),
        name("package", "Class"),
        b"]",
        text("text"),
    ],
)
def test_no_state_is_given_to_a_class_a_function_or_a_value(changed, tmp_path):
    """Python would set the attributes of the class itself."""
    body = changed + mapping(__call__=name("package", "run")) + b"b"
    with pytest.raises(CheckpointError, match="gets a state"):
        load_state_dict(zip_file(tmp_path / "a.ckpt", whole(mapping(weight=body))))


# ---------------------------------------------------------------------------------------------------- what costs much


def test_a_million_lists_in_each_other_are_an_error_not_a_crash(tmp_path):
    deep = whole(b"]" * 1_000_000 + b"a" * 999_999)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_state_dict(zip_file(tmp_path / "a.ckpt", deep))


def test_a_key_that_would_take_forever_to_hash_is_not_hashed(tmp_path):
    """A tuple of itself twice, sixty times over: a quintillion leaves in two hundred bytes."""
    body = b"}" + b")" + b"2\x86" * 60 + text("value") + b"s"
    with pytest.raises(CheckpointError, match="a tuple: a str"):
        load_state_dict(zip_file(tmp_path / "a.ckpt", whole(body)))


@pytest.mark.parametrize(
    "body",
    [
        b"]r\xff\xff\xff\xff",  # a memo of four billion places
        b"\x8e" + b"\xff" * 7 + b"\x7f",  # bytes without end
        b"\x8e" + b"\xff" * 8,
        b"\x96" + b"\xff" * 7 + b"\x7f",
        b"\x8b\xff\xff\xff\x7f",  # a number of two billion bytes
        b"T\xff\xff\xff\xff",
        b"L" + b"9" * 10_000 + b"L\n",
        call(name("builtins", "bytearray"), number(2**60)),
        call(name("builtins", "range"), number(2**60)),
        text("a" * 1000) + b"2\x93",  # a name too long
        call(name("package", "Class"), *[b"N"] * 1000),
    ],
)
def test_a_size_that_is_only_said_costs_nothing(body, tmp_path):
    with pytest.raises(CheckpointError):
        load_state_dict(zip_file(tmp_path / "a.ckpt", whole(body)))


def test_the_number_of_operations_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.checkpoint.pickles._MAX_OPERATIONS", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000 operations"):
        load_state_dict(zip_file(tmp_path / "a.ckpt", whole(b"N0" * 1000)))


@pytest.mark.parametrize(
    "broken", [b"", b"0.", b"t.", b"h\x01.", b"R.", b"a.", b"]N", b"(u.", b"b.", b"\xff.", b"\x93.", b"Q."]
)
@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_a_pickle_that_is_none_is_damage(write, broken, tmp_path):
    with pytest.raises(CheckpointError, match="damaged"):
        load_state_dict(write(tmp_path / "a.ckpt", b"\x80\x02" + broken))


@pytest.mark.parametrize("long", ["a" * 301, "a." * 11 + "B"])
def test_a_long_name_or_one_of_many_dots_is_damage(long, tmp_path):
    with pytest.raises(CheckpointError, match="has a name of"):
        load_state_dict(zip_file(tmp_path / "a.ckpt", whole(mapping(a=name4("package", long)))))


def test_only_a_union_of_types_may_be_reduced(tmp_path):
    union = call(name("_functools", "reduce"), name("_operator", "or_"), items(name("builtins", "int")))
    with pytest.raises(CheckpointError, match="a: a types.UnionType"):
        load_state_dict(zip_file(tmp_path / "a.ckpt", whole(mapping(a=union))))
    for refused in (call(name("functools", "reduce"), name("package", "run")), name("collections", "SomethingElse")):
        with pytest.raises(RefusedError):
            load_state_dict(zip_file(tmp_path / "a.ckpt", whole(mapping(a=refused))))
