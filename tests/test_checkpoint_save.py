"""What is saved comes back bit by bit, in the layout that others read; a file appears whole or not at all."""

import errno
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ldm.checkpoint.digest import weights_sha256
from ldm.checkpoint.files import load_checkpoint, load_state_dict
from ldm.checkpoint.save import save_checkpoint

SUFFIXES = [".safetensors", ".ckpt"]


@pytest.fixture
def weights():
    made = torch.Generator().manual_seed(0)
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    named = {
        f"layer.{dtype}".replace("torch.", ""): (torch.randn(3, 5, generator=made) * 9).to(dtype) for dtype in dtypes
    }
    tied, base = torch.randn(4, generator=made), torch.arange(12.0)
    views = {"turned": base.view(3, 4).t(), "part": base[3:7], "expanded": torch.ones(1).expand(2, 2)}
    odd = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(2, 0),
        "Größe": torch.ones(1),
        "parameter": nn.Parameter(tied),
    }
    return {**named, **views, **odd, "tied": tied, "tied too": tied, "complex": torch.tensor([1 + 2j]).conj()}


def same(found, weights):
    return sorted(found) == sorted(weights) and all(
        found[key].dtype == weights[key].dtype and torch.equal(found[key], weights[key].detach()) for key in weights
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_saved_comes_back(suffix, weights, tmp_path):
    save_checkpoint(weights, tmp_path / f"a{suffix}")
    found = load_state_dict(tmp_path / f"a{suffix}")
    assert same(found, weights)
    assert all(type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in found.values())


def test_other_readers_read_it_too(weights, tmp_path):
    del weights["complex"]  # which older ones do not know
    save_checkpoint(weights, tmp_path / "a.safetensors")
    save_checkpoint(weights, tmp_path / "a.ckpt")
    assert same(load_file(tmp_path / "a.safetensors"), weights)
    assert same(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"], weights)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_of_a_large_storage_is_saved_without_the_rest(suffix, tmp_path):
    save_checkpoint({"row": torch.zeros(1000, 1000)[7]}, tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").stat().st_size < 10_000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_stands_beside_the_weights(suffix, tmp_path):
    save_checkpoint({"a": torch.ones(1)}, tmp_path / f"a{suffix}", metadata={"global_step": 7, "title": "a model"})
    assert load_checkpoint(tmp_path / f"a{suffix}").global_step == 7


def test_files_of_the_same_weights_have_the_same_digest_and_others_another(weights, tmp_path):
    made = {weights_sha256(weights)}
    for suffix in SUFFIXES:
        save_checkpoint(weights, tmp_path / f"a{suffix}")
        made.add(weights_sha256(load_state_dict(tmp_path / f"a{suffix}")))
    assert len(made) == 1
    one, name = weights["layer.float32"], "layer.float32"
    changed = one.clone()
    changed[2, 4] = torch.nextafter(changed[2, 4], torch.tensor(9.0))
    others = [{name: changed}, {name: one.view(5, 3)}, {name: one.view(torch.int32)}, {f"{name}x": one, name: None}]
    for other in others:
        made.add(weights_sha256({k: v for k, v in {**weights, **other}.items() if v is not None}))
    assert len(made) == 1 + len(others)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.steps = nn.Linear(2, 3), nn.Embedding(4, 2)
        self.register_buffer("betas", torch.tensor([1e-7, 0.3]))
        self.register_buffer("sqrt_one_minus_alphas_cumprod", torch.tensor([0.123456789]))
        self.register_buffer("scale_factor", torch.tensor(0.18215))
        self.register_buffer("count", torch.tensor(3))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("as_dict", [False, True])
def test_half_precision_is_for_weights_not_for_the_schedule(as_dict, suffix, tmp_path):
    model = Model()
    save_checkpoint(model.state_dict() if as_dict else model, tmp_path / f"a{suffix}", dtype=torch.float16)
    found = load_state_dict(tmp_path / f"a{suffix}")
    assert {key: tensor.dtype for key, tensor in found.items()} == {
        **dict.fromkeys(["model.weight", "model.bias", "steps.weight"], torch.float16),
        **dict.fromkeys(["betas", "sqrt_one_minus_alphas_cumprod", "scale_factor"], torch.float32),
        "count": torch.int64,
    }
    assert torch.equal(found["model.weight"], model.model.weight.detach().half())
    assert torch.equal(found["betas"], model.betas) and model.model.weight.dtype == torch.float32


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_replaced_only_on_request_and_its_tensors_outlive_it(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    save_checkpoint({"a": torch.ones(3)}, path)
    with pytest.raises(FileExistsError, match="is there already.*overwrite=True"):
        save_checkpoint({"a": torch.zeros(3)}, path)
    old = load_state_dict(path)["a"]
    save_checkpoint({"a": old * 2}, path, overwrite=True)
    assert old.tolist() == [1, 1, 1] and load_state_dict(path)["a"].tolist() == [2, 2, 2]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_no_part_of_a_file_and_the_old_one(there, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    if there:
        save_checkpoint({"a": torch.ones(3)}, path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"a": torch.zeros(3)}, path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ([path.name] if there else [])
    assert not there or load_state_dict(path)["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_so_does_an_interruption(stop, suffix, tmp_path, monkeypatch):
    def interrupted(*_):
        raise stop

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(stop):
        save_checkpoint({"a": torch.zeros(3)}, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_torchs_word_for_a_failed_write_is_an_error_of_the_system(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("unexpected pos 768 vs 662")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="a.ckpt' could not be written; is the disk full.*unexpected pos"):
        save_checkpoint({"a": torch.zeros(3)}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="there are no such permissions")
def test_others_may_read_the_file_as_far_as_the_user_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        save_checkpoint({"a": torch.zeros(3)}, tmp_path / "a.ckpt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.ckpt").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "tensors, options, name, error, said",
    [
        ({"a": torch.ones(1)}, {}, "a.pt", ValueError, "not '.pt'"),
        ({"a": torch.ones(1)}, {}, "nowhere/a.ckpt", FileNotFoundError, "make the folder .*nowhere' first"),
        ({"a": torch.ones(1)}, {"dtype": torch.int8}, "a.ckpt", ValueError, "dtype=torch.int8"),
        ({"a": torch.ones(1)}, {"metadata": {"state_dict": 1}}, "a.ckpt", ValueError, "metadata: state_dict"),
        ({"a": torch.ones(1)}, {"metadata": {"config": {}}}, "a.safetensors", ValueError, "metadata: config"),
        ({"a": 3}, {}, "a.ckpt", ValueError, "only tensors.*: a"),
        ({}, {}, "a.ckpt", ValueError, "no weights"),
        ({"a": torch.ones(1, device="meta")}, {}, "a.safetensors", ValueError, "1 weights have a shape but no values"),
        ({"a": torch.eye(2).to_sparse()}, {}, "a.ckpt", ValueError, "sparse"),
        ({"a": torch.zeros(1, dtype=torch.complex128)}, {}, "a.safetensors", ValueError, "cannot hold 'a'.*complex128"),
        ({"__metadata__": torch.ones(1)}, {}, "a.safetensors", ValueError, "cannot hold '__metadata__'"),
    ],
)
def test_what_cannot_be_saved_is_named_before_anything_is_written(tensors, options, name, error, said, tmp_path):
    with pytest.raises(error, match=said):
        save_checkpoint(tensors, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_value_too_large_for_half_precision_is_named_and_infinity_stays(suffix, tmp_path):
    with pytest.raises(ValueError, match="'a' has values beyond 65504"):
        save_checkpoint({"a": torch.tensor([1e6])}, tmp_path / f"a{suffix}", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    save_checkpoint({"a": torch.tensor([float("inf")])}, tmp_path / f"a{suffix}", dtype=torch.float16)


@pytest.mark.skipif(os.name != "posix", reason="there are no such permissions or links")
def test_what_is_replaced_keeps_its_permissions_and_a_link_stays_one(tmp_path):
    path, link = tmp_path / "a.ckpt", tmp_path / "link.ckpt"
    save_checkpoint({"a": torch.zeros(3)}, path)
    path.chmod(0o600)
    link.symlink_to(path)
    save_checkpoint({"a": torch.ones(3)}, link, overwrite=True)
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_state_dict(path)["a"].tolist() == [1, 1, 1]
