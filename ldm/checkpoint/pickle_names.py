"""What the names in a pickle mean here: tensors, dicts, an inert mark, or a reason to refuse the file."""

from __future__ import annotations

import builtins
import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ldm.checkpoint.errors import CheckpointError, RefusedError, damaged, shown

# Names and arguments can be used again and again at the cost of two bytes, so none may be long.
_LONGEST_NAME, _MOST_DOTS, _MOST_ARGUMENTS, _MOST_DIMENSIONS = 300, 10, 100, 32

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "posix": "os", "nt": "os", "_operator": "operator"}
_RENAMED |= {"_functools": "functools"}

# Data types and what pickle makes them with. Nothing is made of them here; they are no reason to refuse a file.
_HARMLESS = frozenset(
    """
    builtins.set builtins.frozenset builtins.list builtins.tuple builtins.int builtins.long builtins.float
    builtins.complex builtins.bool builtins.str builtins.unicode builtins.bytes builtins.bytearray builtins.object
    builtins.slice builtins.range builtins.xrange builtins.type builtins.Ellipsis builtins.NotImplemented
    _codecs.encode collections.deque collections.Counter collections.UserDict operator.getitem operator.or_
    functools.partial re._compile string.Template array.array array._array_reconstructor
    datetime.date datetime.time datetime.datetime datetime.timedelta datetime.timezone
    decimal.Decimal fractions.Fraction uuid.UUID argparse.Namespace types.SimpleNamespace types.GenericAlias
    pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.Path pathlib._local.PosixPath pathlib._local.WindowsPath
    typing.Any typing.Union typing.Optional typing.Dict typing.List typing.Tuple typing.Set typing.Sequence
    typing.Mapping typing.Callable typing.Literal typing.Type typing.Iterable
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
    numpy.random._pickle.__bit_generator_ctor numpy.random._pickle.__generator_ctor
    numpy.random._pickle.__randomstate_ctor numpy.random.bit_generator.__pyx_unpickle_SeedSequence
    torch.device torch.serialization._get_layout torch._utils._rebuild_qtensor torch._utils._rebuild_sparse_tensor
    torch._utils._rebuild_sparse_csr_tensor torch._utils._rebuild_nested_tensor torch._utils._rebuild_wrapper_subclass
    torch._utils._rebuild_meta_tensor_no_storage torch._utils._rebuild_device_tensor_from_numpy
    torch._utils._rebuild_device_tensor_from_cpu_tensor torch._utils._rebuild_xla_tensor
    """.split()
) | {
    f"builtins.{name}"
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_STORAGES = {f"{home}.{kind}Storage": dtype for home in ("torch", "torch.cuda") for kind, dtype in _DTYPES.items()}
_STORAGES |= {"torch.storage.UntypedStorage": torch.uint8, "torch.storage._UntypedStorage": torch.uint8}
# The dtypes that have no storage class: their tensors name them beside an untyped storage.
_NAMED_DTYPES = {
    str(dtype): dtype
    for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, *_DTYPES.values())
}


@dataclass(frozen=True, eq=False)
class Storage:
    """`numel` elements of `dtype` from element `start` on, of the `total` that the file keeps under `key`."""

    key: str
    dtype: torch.dtype
    total: int
    start: int
    numel: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor whose numbers are still in the file; it has been checked to lie within its storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """What stands for an object of a class that is not known here, or for a value that nothing here needs."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Parameters(Inert):
    """torch's ParameterDict, in which textual inversion's own files keep their vectors. `found`: name → tensor."""

    __slots__ = ("found",)

    def __init__(self, *_: Any):
        super().__init__("ParameterDict")
        self.found: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Takes the parameters out of the module's state."""
        parameters = state.get("_parameters") if type(state) is dict else None
        self.found = parameters if type(parameters) is dict else {}


class Global(Inert):
    """A name in the file. `foreign_class`: by its look a class, and of a package outside the standard library."""

    __slots__ = ("foreign_class",)

    def __init__(self, name: str, foreign_class: bool):
        super().__init__(name)
        self.foreign_class = foreign_class


def refused(name: str) -> RefusedError:
    return RefusedError(
        f"was refused: reading it as Python does would run {shown(name)}, which weights have no need of, and the file "
        "may do harm elsewhere; take one from a source that you trust, best as safetensors"
    )


def find(module: Any, name: Any) -> Global:
    """The name that the file asks for; the standard library's are refused at once, all but data types."""
    if type(module) is not str or type(name) is not str:
        raise damaged("its pickle has a name that is no text")
    if len(module) + len(name) > _LONGEST_NAME:
        raise damaged(f"its pickle has a name of {len(module) + len(name):,} letters")
    return _find(module, name)


@lru_cache(maxsize=1000)  # a pickle may ask for one name a million times; nothing changes a Global
def _find(module: str, name: str) -> Global:
    module = _RENAMED.get(module, module)
    full = f"{module}.{name}"
    if full.count(".") > _MOST_DOTS:
        raise damaged(f"its pickle has a name of {full.count('.')} dots")
    if full in _MEANING or full in _HARMLESS:
        return Global(full, foreign_class=False)
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise refused(full)
    return Global(full, foreign_class=all(part.lstrip("_")[:1].isupper() for part in name.split(".")))


def call(callee: Any, args: Any) -> Any:
    """What is here for `callee(*args)`."""
    if not isinstance(callee, Global):
        raise refused(f"what {callee.name} made" if isinstance(callee, Inert) else f"a {type(callee).__name__}")
    if type(args) is not tuple or len(args) > _MOST_ARGUMENTS:
        raise damaged("its pickle has arguments that are no tuple, or too many of them")
    if meaning := _MEANING.get(callee.name):
        return meaning(*args)
    if callee.foreign_class or callee.name in _HARMLESS:
        return Inert(callee.name)
    raise refused(callee.name)


def _dict(*args: Any) -> dict | Inert:
    """Made empty and filled by the operations that follow; Python 2 gave an OrderedDict its items at once."""
    return Inert("OrderedDict that Python 2 wrote") if args else {}


def name_only(key: Any) -> Any:
    """Only names matter. Others might be costly to hash (tuples that hold a tuple twice, forty levels deep)."""
    return key if type(key) is str else Inert(type(key).__name__)


def _attribute(owner: Any = None, name: Any = None, *_: Any) -> Global:
    """`getattr` is how older protocols name a class inside a class, and good for nothing else."""
    if isinstance(owner, Global) and owner.foreign_class:
        return find(owner.name, name)
    raise refused("builtins.getattr")


def _union(function: Any = None, *_: Any) -> Inert:
    """`int | None` is `reduce(or_, (int, NoneType))` in a pickle; with another function it would be run."""
    if isinstance(function, Global) and function.name == "operator.or_":
        return Inert("types.UnionType")
    raise refused("functools.reduce")


def _size(sizes: Any = (), *_: Any) -> Any:
    return sizes


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _attributed(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """A tensor of a subclass, or with attributes of its own, which are left; Python would call `function`."""
    return call(function, args)


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any = None, _hooks: Any = None, *meta: Any):
    return _tensor(storage, storage.dtype if isinstance(storage, Storage) else None, offset, shape, stride, *meta)


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *meta: Any):
    name = dtype.name if isinstance(dtype, Inert) else ""
    if name not in _NAMED_DTYPES:
        raise CheckpointError(f"holds a tensor of an unknown dtype ({shown(name) or 'none'}); save it as a common one")
    return _tensor(storage, _NAMED_DTYPES[name], offset, shape, stride, *meta)


def _tensor(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any, meta: Any = None) -> StoredTensor | Inert:
    """Checks what torch would grow the storage for, or read past its end."""
    if not isinstance(storage, Storage):
        raise damaged("a tensor has no storage")
    if meta:  # conjugate or negative bits: no weights have them
        return Inert("lazily conjugated tensor")
    shape, stride = _integers(shape), _integers(stride)
    (offset,) = _integers((offset,))
    if len(shape) != len(stride):
        raise damaged(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    size = dtype.itemsize
    room = storage.numel * storage.dtype.itemsize // size
    numel, last = 1, offset
    for n, step in zip(shape, stride, strict=True):
        numel, last = numel * n, last + (n - 1) * step
    if math.prod(max(n, 1) for n in shape) >= 2**62:  # more than torch can count, even where another size is 0
        raise damaged(f"a tensor has the shape {shape}")
    if numel > room > last:
        expanded = f"a tensor of shape {shape} that repeats the numbers of its storage, which has {room}"
        raise CheckpointError(f"holds {expanded}: it was expanded; save its .contiguous()")
    if numel > room or (numel and last >= room) or offset > room:
        raise damaged(f"a tensor of shape {shape} reaches beyond its storage of {room} elements")
    return StoredTensor(storage, dtype, offset, shape, stride)


def _integers(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > _MOST_DIMENSIONS:
        raise damaged("a tensor's sizes are no tuple of integers")
    if not all(type(n) is int and 0 <= n < 2**62 for n in values):
        raise damaged("a tensor has a size, stride or offset that is negative, too large or no integer")
    return values


_PLAIN_TENSORS = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}
_MEANING = {
    **_PLAIN_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _attributed,
    "torch.Size": _size,
    "torch.nn.modules.container.ParameterDict": Parameters,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _dict,
    "builtins.getattr": _attribute,
    "builtins.reduce": _union,
    "functools.reduce": _union,
    "copyreg.__newobj__": lambda kind, *args: call(kind, args),
    "copyreg._reconstructor": lambda kind, *_: call(kind, ()),
}


def storage_of(reference: Any) -> Storage | Global:
    """("storage", class, key, location, numel) in the zip format; the older one adds None or (key, start, numel)."""
    shape = (reference[0], len(reference)) if type(reference) is tuple and reference else None
    if shape == ("module", 4) and isinstance(reference[1], Global):
        return reference[1]  # a network's class, beside which the older format keeps its source
    if shape not in (("storage", 5), ("storage", 6)):
        raise damaged("its pickle refers to something that is no storage")
    _, kind, key, _location, numel, *view = reference
    name = kind.name if isinstance(kind, Inert) else ""
    if name not in _STORAGES:
        what = shown(name) or "of no class"
        raise CheckpointError(f"holds a storage that cannot be read here ({what}): save its tensors as plain ones")
    if type(key) is not str:
        raise damaged("a storage's key is no text")
    start, part = _integers((view[0][1], view[0][2])) if view and type(view[0]) is tuple else (0, numel)
    total, part = _integers((numel, part))
    if start + part > total:
        raise damaged("a view reaches beyond its storage")
    return Storage(key, _STORAGES[name], total, start, part)
