"""Handwritten checkpoints: a pickle in each of torch's formats, the opcodes to write one with, safetensors headers."""

import io
import json
import pickle
import struct
import zipfile

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def zip_file(path, pickled, storages=None, compression=zipfile.ZIP_STORED, more=()):
    """The zip format: `storages` is {key: bytes}, `more` other records."""
    records = {"data.pkl": pickled, "byteorder": b"little", **{f"data/{k}": v for k, v in (storages or {}).items()}}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**records, **dict(more)}.items():
            record = zipfile.ZipInfo(f"archive/{name}")  # of no time: the same bytes whenever it is written
            record.compress_type = compression
            archive.writestr(record, content)
    return path


def legacy_file(path, pickled, storages=None, itemsize=4, machine=MACHINE):
    """The older format: pickles in a row, then each storage's length and its bytes."""
    file = io.BytesIO()
    for value in (MAGIC, VERSION, machine):
        pickle.dump(value, file, protocol=2)
    file.write(pickled)
    pickle.dump(sorted(storages or {}), file, protocol=2)
    for _, content in sorted((storages or {}).items()):
        file.write(struct.pack("<q", len(content) // itemsize) + content)
    path.write_bytes(file.getvalue())
    return path


def bare_file(path, pickled):
    path.write_bytes(pickled)
    return path


def safetensors_file(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


FORMATS = {"zip": zip_file, "legacy": legacy_file, "bare": bare_file}


# Opcodes, by what they leave on the stack. PROTO 2 in front makes a pickle of them that is known as one.


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def name4(module, attribute):
    """As protocol 4 writes it, where an attribute may have dots."""
    return text(module) + text(attribute) + b"\x93"


def items(*values):
    return b"(" + b"".join(values) + b"t"


def call(function, *arguments):
    return function + items(*arguments) + b"R"


def mapping(**values):
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def whole(body):
    return b"\x80\x02" + body + b"."


def storage(kind="FloatStorage", key="0", numel=6, legacy=False, module="torch"):
    view = b"N" if legacy else b""
    return items(text("storage"), name(module, kind), text(key), text("cpu"), number(numel), view) + b"Q"


def tensor(stored, offset=0, shape=(2, 3), stride=(3, 1), rebuild="_rebuild_tensor_v2"):
    sizes = (items(*map(number, values)) for values in (shape, stride))
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", rebuild), stored, number(offset), *sizes, b"\x89", hooks)
