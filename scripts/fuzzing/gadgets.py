"""Pickles that would do something where Python reads them, in every way that a pickle can ask for a call.

Each hides one of GADGETS behind one of WAYS, in one of torch's containers, alone or beside good weights; where Python
would make a call, the file must be refused.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path

from fuzzing.cases import Case
from fuzzing.checkpoints import load_state_dict
from fuzzing.pickle_files import (
    FORMATS,
    call,
    items,
    legacy_file,
    mapping,
    name,
    name4,
    number,
    storage,
    tensor,
    text,
    whole,
    zip_file,
)
from ldm.checkpoint import load_embeddings
from ldm.checkpoint.errors import CheckpointError, RefusedError

# What attackers call, as published for pickles and found in model files. (Classes outside the standard library are no
# reason to refuse a file: they become inert marks.)
GADGETS = """
os.system os.popen os.execv os.spawnl os.remove os.mkdir posix.system nt.system posixpath.os.system
subprocess.Popen subprocess.run subprocess.check_output subprocess.getoutput commands.getoutput
builtins.eval builtins.exec builtins.compile builtins.open builtins.__import__ builtins.getattr builtins.setattr
builtins.delattr builtins.globals builtins.vars builtins.map builtins.filter builtins.apply builtins.input
builtins.breakpoint __builtin__.eval __builtin__.execfile __builtin__.file __builtin__.apply __builtin__.reduce
importlib.import_module importlib.reload importlib.util.spec_from_file_location importlib.machinery.SourceFileLoader
imp.load_source zipimport.zipimporter pkgutil.get_data pkgutil.resolve_name
functools.reduce functools.partialmethod functools.singledispatch _functools.reduce
operator.attrgetter operator.methodcaller operator.itemgetter _operator.methodcaller itertools.starmap
copyreg.add_extension copyreg.pickle copyreg.__newobj_ex__ copyreg.constructor copy.deepcopy copy_reg._reconstructor
pickle.loads pickle.Unpickler _pickle.loads cPickle.loads marshal.loads shelve.open dill.loads cloudpickle.loads
joblib.load types.FunctionType types.CodeType types.MethodType code.interact code.InteractiveInterpreter codeop.Compile
torch.load torch.jit.load torch.hub.load torch.storage._load_from_bytes torch.serialization.load
torch.serialization.legacy_load torch._utils._import_dotted_name torch.ops.load_library torch.classes.load_library
torch.utils.cpp_extension.load torch._dynamo.guards.GuardBuilder.get torch.fx.graph._forward_from_src
torch.fx._symbolic_trace.wrap torch.fx.graph_module._deserialize_graph_module torch.fx.graph_module.reduce_graph_module
torch.distributed.rpc.rpc_sync torch._inductor.codecache.compile_file torch._classes.load_library
torch.utils._config_module.load_config torch.utils.collect_env.run torch.utils.bottleneck.__main__.run_cprofile
numpy.load numpy.fromfile numpy.testing._private.utils.runstring numpy.f2py.crackfortran.myeval numpy.save
pandas.read_pickle pandas.eval transformers.AutoModel.from_pretrained diffusers.utils.import_utils.run
ctypes.CDLL ctypes.cdll.LoadLibrary ctypes.util.find_library _ctypes.dlopen
runpy.run_path runpy.run_module runpy._run_code pip._internal.main pip.main setuptools.sandbox.run_setup
codecs.open codecs.decode codecs.lookup _codecs.lookup socket.create_connection socket.socket ssl.create_connection
http.client.HTTPConnection urllib.request.urlopen urllib.request.urlretrieve webbrowser.open asyncio.run requests.get
asyncio.create_subprocess_shell multiprocessing.Process multiprocessing.util.spawnv_passfds threading.Thread
concurrent.futures.ProcessPoolExecutor shutil.rmtree shutil.copy pathlib.Path.unlink pathlib.Path.write_text
tempfile.mktemp io.open io.FileIO _io.open fileinput.input logging.config.dictConfig logging.config._resolve
logging.FileHandler timeit.timeit timeit.main trace.Trace profile.run cProfile.run cProfile.runctx pdb.run pdb.Pdb
bdb.Bdb doctest.debug_script doctest.testsource idlelib.pyshell.main idlelib.run.Executive
lib2to3.pgen2.pgen.ParserGenerator
distutils.spawn.spawn distutils.file_util.write_file test.support.script_helper.assert_python_ok venv.create
ensurepip.bootstrap pty.spawn signal.signal sys.settrace sys.exit sys.modules.clear gc.get_objects inspect.getsource
site.addpackage sqlite3.connect xmlrpc.client.ServerProxy smtplib.SMTP ftplib.FTP telnetlib.Telnet platform.popen
uuid._get_command_stdout nturl2path.url2pathname _osx_support._read_output _aix_support._read_cmd_output
pydoc.pipepager pydoc.tempfilepager pydoc.locate mailcap.findmatch atexit.register weakref.finalize
contextlib.ExitStack.callback enum._decompose typing.get_type_hints dataclasses.make_dataclass collections.namedtuple
string.Formatter.format ast.literal_eval xml.etree.ElementTree.parse gettext.GNUTranslations configparser.ConfigParser
some_package.tools.run thinc.shims.load yaml.unsafe_load yaml.load jsonpickle.decode keras.models.load_model
""".split()

COMMAND = "touch canary"


def _split(full: str) -> tuple[str, str]:
    module, _, attribute = full.rpartition(".")
    return module, attribute


def _harm(chance: random.Random) -> tuple[bytes, bytes]:
    """A function's name on the stack, and an argument."""
    full = chance.choice(GADGETS)
    module, attribute = _split(full)
    argument = chance.choice([text(COMMAND), text("__import__('os').system('touch canary')"), b"C\x02N.", b"N", b")"])
    if chance.random() < 0.5:
        return name(module, attribute), argument
    home = chance.choice([module, "torch.serialization", "collections", "pathlib", "torch._utils"])
    return name4(home, attribute if home == module else full), argument


# A call of `f` with `a`, by every operation that has one, and from where else it can come.
WAYS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "REDUCE": call,
    "OBJ": lambda f, a: b"(" + f + a + b"o",
    "NEWOBJ": lambda f, a: f + items(a) + b"\x81",
    "NEWOBJ_EX": lambda f, a: f + items(a) + b"}\x92",
    "only the name": lambda f, a: f,
    "from the memo": lambda f, a: f + b"q\x05" + b"0" + b"h\x05" + items(a) + b"R",
    "memoized": lambda f, a: f + b"\x94" + b"0" + b"h\x00" + items(a) + b"R",
    "popped after": lambda f, a: call(f, a) + b"0N",
    "under a mark": lambda f, a: b"(" + call(f, a) + b"1N",
    "in a partial": lambda f, a: call(name("functools", "partial"), f, a),
    "what a partial made": lambda f, a: call(call(name("functools", "partial"), f), a),
    "mapped": lambda f, a: call(name("builtins", "map"), f, a),
    "reduced": lambda f, a: call(name("functools", "reduce"), f, items(a, a)),
    "by a helper": lambda f, a: call(name("copyreg", "__newobj__"), f, a),
    "by a helper with keywords": lambda f, a: call(name("copyreg", "__newobj_ex__"), f, items(a), b"}"),
    "by a reconstructor": lambda f, a: call(name("copy_reg", "_reconstructor"), f, name("builtins", "object"), b"N"),
    "by getattr": lambda f, a: call(call(name("builtins", "getattr"), f, text("__call__")), a),
    "by a chain of getattr": lambda f, a: call(
        name("builtins", "getattr"), call(name("builtins", "getattr"), f, text("__globals__")), text("system")
    ),
    "by attrgetter": lambda f, a: call(call(name("operator", "attrgetter"), text("system")), f),
    "state of a class": lambda f, a: name("package", "Class") + mapping(__call__=f) + b"b",
    "state of an object": lambda f, a: call(name("package", "Class")) + mapping(__setstate__=call(f, a)) + b"b",
    "a default factory": lambda f, a: call(name("collections", "defaultdict"), f),
    "a storage's class": lambda f, a: items(text("storage"), f, text("0"), text("cpu"), number(6)) + b"Q",
    "a module's class": lambda f, a: items(text("module"), f, text("a.py"), text("import os")) + b"Q" + items(a) + b"R",
    "a persistent id": lambda f, a: call(f, a) + b"Q",
    "a lone persistent id": lambda f, a: b"Pos.system\n",
    "an extension": lambda f, a: b"\x82\x01",
    "an extension of two bytes": lambda f, a: b"\x83\x01\x01" + items(a) + b"R",
    "an extension of four bytes": lambda f, a: b"\x84\x01\x01\x01\x01" + items(a) + b"R",
    "a buffer": lambda f, a: b"\x97\x98",
    "a tensor's function": lambda f, a: call(name("torch._tensor", "_rebuild_from_type_v2"), f, b"N", items(a), b"N"),
    "a tensor's hooks": lambda f, a: (
        name("torch._utils", "_rebuild_tensor_v2")
        + items(storage(), number(0), items(number(2)), items(number(1)), b"\x89", call(f, a))
        + b"R"
    ),
    "a tensor's storage": lambda f, a: tensor(call(f, a)),
    "a tensor's stride": lambda f, a: call(
        name("torch._utils", "_rebuild_tensor_v2"), storage(), number(0), items(number(2)), call(f, a), b"\x89", b"N"
    ),
    "a parameter": lambda f, a: call(name("torch._utils", "_rebuild_parameter"), call(f, a), b"\x88", b"N"),
    "a parameter with state": lambda f, a: call(
        name("torch._utils", "_rebuild_parameter_with_state"), call(f, a), b"\x88", b"N", b"}"
    ),
    "a wrapped tensor": lambda f, a: call(name("torch._utils", "_rebuild_wrapper_subclass"), f, call(f, a)),
    "a quantized one": lambda f, a: call(name("torch._utils", "_rebuild_qtensor"), storage(), call(f, a)),
    "a key": lambda f, a: b"}" + call(f, a) + b"Ns",
    "a set's item": lambda f, a: b"\x8f(" + call(f, a) + b"\x90",
    "a frozen set's": lambda f, a: b"(" + call(f, a) + b"\x91",
    "a list's": lambda f, a: b"]" + call(f, a) + b"a",
    "a state that is a call": lambda f, a: call(name("package", "Class")) + call(f, a) + b"b",
    "twice": lambda f, a: call(call(f, a), a),
}

# These call nothing, in Python either: a function of a package outside the standard library may stand there, inert.
_ONLY_NAMED = frozenset({"only the name", "in a partial", "a default factory"})


class Nested:
    """Pickles as a call that makes a call: what pickle's own writer makes of `__reduce__`."""

    def __init__(self, depth: int):
        self.depth = depth

    def __reduce__(self):
        import os

        return (os.mkdir, (f"canary{self.depth}",)) if not self.depth else (list, ([Nested(self.depth - 1)],))


def case(chance: random.Random, folder: Path) -> Case:
    form, path = chance.choice(list(FORMATS)), folder / chance.choice(["a.ckpt", "a.safetensors", "a.bin", "a.pt"])
    shape, way = chance.randrange(5), chance.choice(list(WAYS))
    if shape == 0:
        way, pickled = "", pickle.dumps({"state_dict": {"a": Nested(chance.randrange(4))}}, chance.randrange(6))
    elif shape == 1:
        module, attribute = _split(chance.choice(GADGETS))
        way, pickled = "INST", whole(b"(" + text(COMMAND) + f"i{module}\n{attribute}\n".encode())
    else:
        body = WAYS[way](*_harm(chance))
        good = tensor(storage(legacy=form == "legacy"))  # a file of weights that all else would take
        inside = chance.choice([lambda b: mapping(state_dict=mapping(a=b)), lambda b: mapping(other=b), bytes,
                                lambda b: mapping(callbacks=b, state_dict=mapping(a=good))])  # fmt: skip
        pickled = whole(inside(body))
        pickled = pickled[:1] + bytes([chance.randrange(6)]) + pickled[2:]
    _written(form, path, pickled, chance)
    reader = load_embeddings if chance.random() < 0.2 else load_state_dict
    refusals = (CheckpointError, RefusedError)
    return Case(path, lambda: reader(path), refusals, repr(str(path)), hostile=way not in _ONLY_NAMED)


def _written(form: str, path: Path, pickled: bytes, chance: random.Random) -> None:
    """In a container; of the older format's five pickles any may be the hostile one."""
    if form == "legacy":
        legacy_file(path, pickled, {"0": bytes(24)}, **({"machine": {}} if chance.random() < 0.1 else {}))
        if chance.random() < 0.3:
            path.write_bytes(pickled + path.read_bytes())
    elif form == "zip":
        zip_file(path, pickled, {"0": bytes(24)})
    else:
        path.write_bytes(pickled)


def warm(folder: Path) -> None:
    good = whole(mapping(weight=tensor(storage())))
    load_state_dict(zip_file(folder / "a.ckpt", good, {"0": bytes(24)}))
    old = whole(mapping(weight=tensor(storage(legacy=True))))
    load_state_dict(legacy_file(folder / "b.ckpt", old, {"0": bytes(24)}))
