"""What trainers keep beside the weights is no obstacle to reading them, and no module of it is imported."""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import sys
import types
import typing

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import load_checkpoint, load_state_dict

WEIGHTS = {"model.weight": torch.arange(6.0).reshape(2, 3), "model.bias": torch.tensor([1.5, -2.0]).half()}


@pytest.fixture
def trainer_state(monkeypatch):
    """What Lightning, omegaconf and Python leave in a checkpoint; no module of it can be imported when it is read."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")

    def define(cls):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__qualname__.rpartition("<locals>.")[2]
        setattr(module, cls.__name__, cls)
        return cls

    @define
    class ModelCheckpoint:
        class Inner:
            pass

        def __init__(self):
            self.best, self.inner = torch.tensor(0.5), self.Inner

    @define
    class AttributeDict(dict):
        def __reduce__(self):
            return AttributeDict, (), None, None, iter(self.items())

    @define
    class Slotted:
        __slots__ = ("value",)

        def __init__(self):
            self.value = [1]

    @define
    class Stage(enum.Enum):
        FITTING = "fit"

    @define
    class Names(list):
        pass

    ModelCheckpoint.Inner.__module__ = module.__name__
    ModelCheckpoint.Inner.__qualname__ = "ModelCheckpoint.Inner"
    for stem in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, stem, module)
    state = {
        "pytorch-lightning_version": "1.4.2",
        "global_step": 470000,
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.1), "where": pathlib.PurePosixPath("a/b")}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3), "step": 5}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"base_lrs": np.float64(1e-4), "lr_lambdas": [None], "seen": np.arange(3)}],
        "hyper_parameters": OmegaConf.create({"unet_config": {"params": {"mult": [1, 2], "dim": "${oc.env:HOME}"}}}),
        "hparams": AttributeDict(lr=1e-4),
        "objects": [ModelCheckpoint(), ModelCheckpoint.Inner, Slotted(), Stage.FITTING, Names(["a"]), nn.ReLU()],
        "library": [
            datetime.timedelta(minutes=3),
            datetime.datetime(2022, 8, 22, tzinfo=datetime.timezone.utc),
            argparse.Namespace(a=1),
            functools.partial(nn.LayerNorm, eps=1e-6),
            collections.defaultdict(list, a=[1]),
            collections.deque([1]),
            {1, 2},
            frozenset([3]),
            b"bytes",
            bytearray(b"more"),
            2**80,
            1j,
            range(3),
            typing.Optional[int],  # noqa: UP045
            torch.float16,
            torch.device("cpu"),
            torch.Size([1, 2]),
            np.random.RandomState(0).get_state(),
        ],
        "tuple keys": {(1, (2, 3)): 4},
    }

    def forget():
        for stem in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__, "omegaconf"):
            monkeypatch.setitem(sys.modules, stem, None)  # to import it is an error now

    return state, forget


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_trainers_state_is_no_obstacle_and_none_of_it_is_imported(legacy, protocol, trainer_state, tmp_path):
    state, forget = trainer_state
    content = {**state, "state_dict": collections.OrderedDict(WEIGHTS)}
    content["state_dict"]._metadata = collections.OrderedDict(version=1)
    zipped = {"_use_new_zipfile_serialization": not legacy}
    torch.save(content, tmp_path / "a.ckpt", pickle_protocol=protocol, **zipped)
    forget()
    found = load_checkpoint(tmp_path / "a.ckpt")
    assert found.global_step == 470000 and found.format == ("torch-legacy" if legacy else "torch")
    assert list(found.weights) == list(WEIGHTS)
    assert all(torch.equal(found.weights[key], WEIGHTS[key]) for key in WEIGHTS)


def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path):
    marked = torch.tensor([1.0, 2.0])
    marked.note = "kept beside the numbers"
    weights = {"parameter": nn.Parameter(torch.ones(2)), "marked": marked, "grad": torch.ones(1, requires_grad=True)}
    weights["marked parameter"] = nn.Parameter(torch.zeros(2))
    weights["marked parameter"].note = 1
    torch.save(weights, tmp_path / "a.ckpt")
    found = load_state_dict(tmp_path / "a.ckpt")
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert {(type(tensor), tensor.requires_grad) for tensor in found.values()} == {(torch.Tensor, False)}


@pytest.mark.parametrize(
    "odd, said",
    [
        (lambda: torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "QInt8Storage"),
        (lambda: torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (lambda: torch.tensor([1j]).conj(), "conjugated"),
        (lambda: torch.zeros(1).expand(4), "repeats the numbers .*contiguous"),
        (lambda: nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (lambda: 3, "int"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_is_no_plain_tensor_is_told_by_its_kind(odd, said, tmp_path):
    torch.save({"weight": torch.ones(1), "odd": odd()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=said):
        load_state_dict(tmp_path / "a.ckpt")
