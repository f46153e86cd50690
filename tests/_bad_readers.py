"""Readers that do what none may, one for each seed, for the fuzzer to catch; after them, two that do nothing wrong."""

import ctypes
import os
import pickle
import random
import socket
from pathlib import Path

from fuzzing.cases import Case


def runs(path):
    os.system("true")


def imports(path):
    import this  # noqa: F401


def evaluates(path):
    return eval("1 + 1")


def unpickles(path):
    return pickle.loads(b"cos\ngetpid\n(tR.")


def connects(path):
    socket.create_connection(("127.0.0.1", 9), timeout=0.1)


def writes(path):
    path.with_name("canary").write_text("was here")


def reads_elsewhere(path):
    return Path("/etc/passwd").read_text()


def hides_what_it_ran(path):
    try:
        os.system("true")
    except BaseException:
        raise ValueError(f"{path} is damaged") from None


def crashes(path):
    _library.raise_(11)


def exits(path):
    os._exit(0)


def hangs_in_c(path):
    _library.sleep(1_000_000)


def another_error(path):
    return {}[path]


def a_kind_of_our_error(path):
    return b"\xff".decode()


def says_no_name(path):
    raise ValueError("something is damaged")


def answers_wrongly(path):
    return "wrong"


def accepts(path):
    return "hostile"


def reads(path):
    return path.read_bytes()


def refuses(path):
    raise ValueError(f"{path} is damaged")


READERS = (
    runs, imports, evaluates, unpickles, connects, writes, reads_elsewhere, hides_what_it_ran, crashes, exits,
    hangs_in_c, another_error, a_kind_of_our_error, says_no_name, answers_wrongly, accepts, reads, refuses,
)  # fmt: skip
_library = ctypes.PyDLL(None)  # which keeps Python's lock, so that no alarm is heard
_library.sleep, _library.raise_ = _library["sleep"], _library["raise"]


# `case` is told no seed; the first number of its chance says which it was.
_BY_NUMBER = {random.Random(f"_bad_readers {seed}").random(): read for seed, read in enumerate(READERS)}


def case(chance, folder):
    read = _BY_NUMBER[chance.random()]
    path = folder / "a"
    path.write_bytes(b"ab")
    wrong = {"wrong": "it is wrong"}.get
    return Case(path, lambda: read(path), (ValueError,), str(path), wrong=wrong, hostile=read is accepts)


def warm(folder):
    pass
