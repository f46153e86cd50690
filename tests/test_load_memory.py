"""Loading holds the model once: in the dtype it computes in, without the file beside it, and without the compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.checkpoint import load_checkpoint, load_model
from ldm.util import allow_targets

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).stem
MB = 2**20


class Stack(nn.Module):
    """16 layers of 2**20 weights: 64 MB in float32."""

    def __init__(self, layers=16):
        super().__init__()
        self.model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(layers)))
        nn.init.normal_(self.model[0].weight)
        self.model[1].weight.data.normal_()  # as a foreign module may do it


class Pictures(nn.Module):
    """Keeps its weights as convolutions like them best."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)


def config(kind):
    return {"model": {"target": f"{HERE}.{kind.__name__}"}}


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setattr("ldm.util._allowed_everywhere", ["ldm", HERE])


def status(name):
    """Of this process, in MB: VmRSS is what it has now, VmHWM the most since the last `forget_the_peak`."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def forget_the_peak():
    Path("/proc/self/clear_refs").write_text("5")


def growth(path, dtype, ema):
    """MB at the peak of loading, and of having read every page of every weight, above what was there before."""
    forget_the_peak()
    before = status("VmRSS")
    model = load_model(config(Stack), path, dtype=dtype, ema=ema)
    sum(p.view(-1)[::512].float().sum() for p in model.parameters())
    return status("VmHWM") - before


def measure(folder):
    """In a process of its own: {case: MB}, and which modules were imported that loading has no need of."""
    allow_targets(HERE)
    weights = {key: torch.ones(1024, 1024) for key in Stack().state_dict()}
    averages = {"model_ema." + key[len("model.") :].replace(".", ""): value for key, value in weights.items()}
    torch.save({"state_dict": weights}, folder / "a.ckpt")
    torch.save({"state_dict": {**weights, **averages}}, folder / "both.ckpt")
    torch.save({key: value.half() for key, value in weights.items()}, folder / "half.ckpt")
    del weights, averages
    growth(folder / "half.ckpt", None, False)  # torch's own one-time memory
    cases = {
        "float32": growth(folder / "a.ckpt", None, False),
        "bfloat16": growth(folder / "a.ckpt", torch.bfloat16, False),
        "float16": growth(folder / "a.ckpt", torch.float16, False),
        "of half": growth(folder / "half.ckpt", None, False),
        "averages": growth(folder / "both.ckpt", torch.bfloat16, True),
        "beside averages": growth(folder / "both.ckpt", torch.bfloat16, False),
    }
    return cases, [name for name in ("torch._dynamo", "sympy") if name in sys.modules]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' count of a process's memory")
def test_at_the_peak_loading_has_a_third_more_than_the_weights_in_their_dtype(tmp_path):
    code = f"import json, pathlib, {HERE} as t; print(json.dumps(t.measure(pathlib.Path({str(tmp_path)!r}))))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives back what is freed
    environment = {**os.environ, **at_once, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, needless = json.loads(done.stdout)
    wide = {name: mb for name, mb in found.items() if name in ("float32", "of half")}
    narrow = {name: mb for name, mb in found.items() if name not in wide}
    assert len(wide) == 2 and all(60 < mb < 1.33 * 64 for mb in wide.values()), found
    assert len(narrow) == 4 and all(30 < mb < 1.33 * 32 for mb in narrow.values()), found
    assert needless == [], "building a model imports the compiler"


@pytest.mark.parametrize("write", [lambda w: w.fill_(2), lambda w: w.numpy().fill(2)], ids=["torch", "numpy"])
def test_a_tensor_that_was_changed_in_memory_stays_changed_when_a_model_has_taken_it(write, tmp_path):
    torch.save(Stack(2).state_dict(), tmp_path / "a.ckpt")
    opened = load_checkpoint(tmp_path / "a.ckpt")
    first, second = opened.weights.values()
    kept = second.clone()
    write(first)
    two = {"model": {**config(Stack)["model"], "params": {"layers": 2}}}
    model = load_model(two, opened, dtype=torch.bfloat16)
    assert (model.model[0].weight == 2).all() and torch.equal(model.model[1].weight, kept.bfloat16())
    assert (first == 2).all() and torch.equal(second, kept)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_take_the_memory_layout_that_the_model_gives_them(dtype, tmp_path):
    weights = Pictures().state_dict()
    torch.save({key: value.contiguous() for key, value in weights.items()}, tmp_path / "a.ckpt")
    layer = load_model(config(Pictures), tmp_path / "a.ckpt", dtype=dtype).layer
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, weights["layer.weight"].to(dtype or torch.float32))
