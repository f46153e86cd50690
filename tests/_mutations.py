"""Files that are almost right: seeded changes to the bytes of good ones."""

import io
import pickle
import random
import struct
import zipfile

import torch
from safetensors.torch import save

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import load_state_dict

WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.ones(3).half(), "count": torch.tensor(7)}
CONTENT = {"global_step": 3, "callbacks": {"x": [1, (2, 3), {4}, b"5", 6.0]}, "state_dict": WEIGHTS}
TELLING = [struct.pack("<q", n) for n in (-1, 0, 1, 2**31, 2**63 - 1)] + [b"R", b"b", b"c", b"\x93", b"Q", b"(", b"."]


def saved(form):
    if form == "safetensors":
        return save(WEIGHTS)
    file = io.BytesIO()
    torch.save(CONTENT, file, _use_new_zipfile_serialization=form != "torch-legacy")
    return file.getvalue()


def good_files():
    """Every format as bytes, each with what puts a changed one together again."""

    def zipped(records):
        def pack(pickled):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                for name, content in {**records, "archive/data.pkl": pickled}.items():
                    archive.writestr(name, content)
            return file.getvalue()

        return pack

    with zipfile.ZipFile(io.BytesIO(saved("torch"))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    safetensors = saved("safetensors")
    begin = 8 + int.from_bytes(safetensors[:8], "little")
    return {
        "torch": (saved("torch"), bytes),
        "torch's pickle": (records["archive/data.pkl"], zipped(records)),
        "torch-legacy": (saved("torch-legacy"), bytes),
        "bare pickle": (pickle.dumps({"a": [1, "b", {2: (3,)}]}, 0), bytes),
        "safetensors": (safetensors, bytes),
        "safetensors' header": (safetensors[8:begin], lambda h: len(h).to_bytes(8, "little") + h + safetensors[begin:]),
    }


def changed(content, chance):
    """One to four changes: a bit, a byte, a telling number or opcode, a cut, or a piece elsewhere again."""
    content = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, end = (chance.randrange(len(content) + 1) for _ in range(2)) if content else (0, 0)
        match chance.randrange(6):
            case 0 if place < len(content):
                content[place] ^= 1 << chance.randrange(8)
            case 1 if place < len(content):
                content[place] = chance.randrange(256)
            case 2:
                new = chance.choice(TELLING)
                content[place : place + len(new)] = new
            case 3:
                content[place:place] = chance.choice(TELLING)
            case 4:
                del content[place : place + chance.choice([1, 2, 8, len(content)])]
            case 5:
                content[place:place] = content[end : end + chance.randrange(1, 40)]
    return bytes(content)


def outcomes(path, form, count, seed=0):
    """How often a changed file was read and how often refused; any other outcome is an exception from here."""
    content, pack = good_files()[form]
    chance, found = random.Random(f"{form} {seed}"), {"read": 0, "refused": 0}
    for _ in range(count):
        path.write_bytes(pack(changed(content, chance)))
        try:
            weights = load_state_dict(path)
        except CheckpointError as error:
            assert repr(str(path)) in str(error) and str(error).isprintable()
            found["refused"] += 1
        else:
            assert all(isinstance(key, str) for key in weights)
            for tensor in weights.values():
                tensor.clone()  # reads all of it
                assert tensor.numel() * tensor.element_size() <= path.stat().st_size
            found["read"] += 1
    return found
