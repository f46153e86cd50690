"""Pickles as plain values: a machine that knows pickle's operations, and that imports and calls nothing.

Python's unpickler is an interpreter: it imports and calls what the file names. Here a name stays a name: the few that
torch writes round a tensor have a meaning (`pickle_names`); other classes become an inert mark; and a file that asks
for anything else — a function, or what the standard library has beyond data types — is refused, by that name.
"""

from __future__ import annotations

import pickletools
from typing import Any, BinaryIO

from ldm.checkpoint.errors import CheckpointError, RefusedError, damaged, shown
from ldm.checkpoint.pickle_names import (
    Global,
    Inert,
    Parameters,
    Storage,
    StoredTensor,
    call,
    find,
    name_only,
    storage_of,
)

_MAX_OPERATIONS = 5_000_000  # a released model with its trainer's state has some 100,000; bounds time and memory


def read_pickle(stream: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """The next pickle of `stream`, which is left right behind it; `storages` gets those that it refers to.

    Returns None, bool, int, float, str, bytes, lists, tuples and dicts as they are, tensors as StoredTensor, all else
    as Inert; a dict's keys other than str likewise. CheckpointError (its message lacks the file's name) where the
    pickle is damaged, or asks for more than data.
    """
    try:
        return _Machine({} if storages is None else storages).run(stream)
    except CheckpointError:
        raise
    except (MemoryError, RecursionError, OverflowError) as error:
        raise damaged(f"its pickle asks for too much: {type(error).__name__}") from error
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise damaged(f"its pickle is not well-formed: {shown(str(error)) or type(error).__name__}") from error


class _Machine:
    """Pickle's stack machine: a stack, those below the marks, and the memo. A method per operation that is no value."""

    def __init__(self, storages: dict[str, Storage]):
        self.storages = storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            name = operation.name
            if count == _MAX_OPERATIONS:
                raise CheckpointError(f"holds a pickle of more than {count:,} operations; weights have no need of that")
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _NEW:
                self.stack.append(_NEW[name]())
            elif name == "STOP":
                return self.stack.pop()
            elif name in _OPERATIONS:
                _OPERATIONS[name](self, argument)
            else:  # extension codes stand for names that a registry elsewhere knows; buffers lie outside the file
                raise RefusedError(f"was refused: its pickle has the operation {name}, which torch never writes")
        raise damaged("its pickle has no end")  # not reached: the operations end with STOP or an error

    def top(self) -> Any:
        return self.stack[-1]

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise damaged("its pickle takes more than there is")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def to_mark(self) -> list[Any]:
        """What lies above the last mark."""
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def mark(self, _):
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _):
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def pop_mark(self, _):
        self.to_mark()

    def duplicate(self, _):
        self.stack.append(self.top())

    def get(self, index):
        self.stack.append(self.memo[index])

    def put(self, index):
        self.memo[index] = self.top()

    def memoize(self, _):
        self.memo[len(self.memo)] = self.top()

    # containers

    def tuple_of(self, count: int):
        self.stack.append(tuple(self.take(count)))

    def tuple_from_mark(self, _):
        items = self.to_mark()
        self.stack.append(tuple(items))

    def list_from_mark(self, _):
        items = self.to_mark()
        self.stack.append(items)

    def dict_from_mark(self, _):
        items = self.to_mark()
        self.stack.append({})
        self._set(items)

    def frozenset_from_mark(self, _):
        self.to_mark()
        self.stack.append(Inert("builtins.frozenset"))

    def append(self, _):
        self._extend(self.take(1))

    def appends(self, _):
        self._extend(self.to_mark())

    def add_items(self, _):
        self._extend(self.to_mark())

    def set_item(self, _):
        self._set(self.take(2))

    def set_items(self, _):
        self._set(self.to_mark())

    def _extend(self, items: list[Any]):
        if type(self.top()) is list:
            self.top().extend(items)
        else:
            self._must_be_inert("gets items")

    def _set(self, items: list[Any]):
        if len(items) % 2:
            raise damaged("its pickle has a key without a value")
        if type(self.top()) is dict:
            self.top().update((name_only(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        else:
            self._must_be_inert("gets items")

    def _must_be_inert(self, what: str):
        """A class itself is never changed: Python would let a pickle set the attributes of one."""
        if not isinstance(self.top(), Inert) or isinstance(self.top(), Global):
            raise damaged(f"its pickle has a {type(self.top()).__name__} that {what}")

    # names, and what would be calls

    def name(self, argument):
        module, _, name = argument.partition(" ")
        self.stack.append(find(module, name))

    def name_from_stack(self, _):
        self.stack.append(find(*self.take(2)))

    def reduce(self, _):
        callee, args = self.take(2)
        self.stack.append(call(callee, args))

    def new_with_keywords(self, _):
        callee, args, _keywords = self.take(3)
        self.stack.append(call(callee, args))

    def instance(self, argument):
        args = tuple(self.to_mark())
        self.name(argument)
        self.stack.append(call(self.stack.pop(), args))

    def instance_from_mark(self, _):
        callee, *args = self.to_mark()
        self.stack.append(call(callee, tuple(args)))

    def build(self, _):
        """The state of an object is left: an OrderedDict's `_metadata`, all that an inert one had but parameters."""
        (state,) = self.take(1)
        if isinstance(self.top(), Parameters):
            self.top().build(state)
        elif not isinstance(self.top(), (dict, StoredTensor)):
            self._must_be_inert("gets a state")

    def persistent(self, _):
        found = storage_of(self.stack.pop())
        self.stack.append(found)
        if isinstance(found, Storage):
            first = self.storages.setdefault(found.key, found)
            if (first.total, first.dtype.itemsize) != (found.total, found.dtype.itemsize):
                raise damaged(f"its storage {shown(found.key)} has two sizes")

    def nothing(self, _):
        pass


_VALUES = frozenset(
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    """.split()
)
_NEW = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Inert("builtins.set"),
}
_OPERATIONS = {
    "PROTO": _Machine.nothing,
    "FRAME": _Machine.nothing,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    "TUPLE": _Machine.tuple_from_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_from_mark,
    "DICT": _Machine.dict_from_mark,
    "FROZENSET": _Machine.frozenset_from_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.instance_from_mark,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
