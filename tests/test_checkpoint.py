"""A file's weights arrive whole, a file that does not fit says how, and nothing in a file is run."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint import CheckpointError, load_model, load_state_dict, load_weights

OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
LINEAR = {"model": {"target": "torch.nn.Linear", "params": {"in_features": 3, "out_features": 2}}}


@pytest.fixture
def weights():
    return nn.Linear(3, 2).state_dict()


def write(path, weights, form):
    if form == "safetensors":
        save_file(weights, path)
    elif OLD_TORCH:
        pytest.skip("pickles are refused on torch before 2.6")
    else:
        content = {"state_dict": weights, "epoch": 3} if form == "wrapped" else weights
        torch.save(content, path, _use_new_zipfile_serialization=form != "old pickle")
    return path


@pytest.mark.parametrize("form", ["safetensors", "zip", "old pickle", "wrapped"])
def test_every_format_is_recognised_by_its_content_not_its_name(form, weights, tmp_path):
    found = load_state_dict(write(tmp_path / "weights.bin", weights, form))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("form", ["safetensors", "zip", "old pickle", "wrapped"])
def test_a_model_gets_the_files_weights_and_is_ready_to_sample(form, weights, tmp_path):
    model = load_model(LINEAR, write(tmp_path / "weights.bin", weights, form))
    assert torch.equal(model.weight, weights["weight"]) and not model.training


def test_half_precision_weights_go_into_a_float32_model(weights, tmp_path):
    half = {key: value.half() for key, value in weights.items()}
    model = load_model(LINEAR, write(tmp_path / "a.ckpt", half, "safetensors"))
    assert model.weight.dtype == torch.float32 and torch.allclose(model.weight, weights["weight"], atol=1e-3)


@pytest.mark.parametrize("form", ["safetensors", "zip", "old pickle"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_file_is_named_as_such(form, part, tmp_path):
    path = write(tmp_path / "a.ckpt", {"weight": torch.zeros(100, 100)}, form)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match="a.ckpt.*(truncated|damaged).*get the file again"):
        load_state_dict(path)


def test_a_header_longer_than_the_file_is_truncation(tmp_path):
    path = write(tmp_path / "a.ckpt", {"weight": torch.zeros(2)}, "safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="truncated"):
        load_state_dict(path)


@pytest.mark.parametrize("content, said", [(b"", "is empty"), (b"version https://git-lfs", "starts with b'version")])
def test_a_file_that_is_no_checkpoint_says_what_it_starts_with(content, said, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"not a checkpoint: it {said}"):
        load_state_dict(tmp_path / "a.ckpt")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt' does not exist"):
        load_state_dict(tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_state_dict(tmp_path)


class _Harm:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("form", ["zip", "old pickle", "bare pickle"])
def test_a_pickle_that_calls_a_function_is_refused_and_nothing_is_called(form, tmp_path):
    content = {"state_dict": {"weight": _Harm(tmp_path / "canary")}}
    if form == "bare pickle" and not OLD_TORCH:
        (tmp_path / "a.ckpt").write_bytes(pickle.dumps(content))
    else:
        write(tmp_path / "a.ckpt", content, form)
    with pytest.raises(CheckpointError, match="a.ckpt' (was refused.*mkdir|is damaged)"):
        load_state_dict(tmp_path / "a.ckpt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"weight": "text"}, {"state_dict": {"epoch": 3}}])
def test_a_file_without_named_tensors_says_what_it_holds(content, tmp_path):
    write(tmp_path / "a.ckpt", content, "zip")
    with pytest.raises(CheckpointError, match="a.ckpt' holds"):
        load_state_dict(tmp_path / "a.ckpt")


def test_keys_that_do_not_fit_are_an_error_that_lists_them(tmp_path):
    path = write(tmp_path / "a.ckpt", {"weight": torch.zeros(2, 4), "bais": torch.zeros(2)}, "safetensors")
    with pytest.raises(CheckpointError) as error:
        load_model(LINEAR, path)
    for said in ("1 missing: bias", "1 unexpected: bais", r"1 of another shape: weight (2, 4), the model's is (2, 3)"):
        assert said in str(error.value)


def test_a_long_list_of_keys_is_shortened_but_counted(weights, tmp_path):
    path = write(tmp_path / "a.ckpt", {**weights, **{f"k{n:02}": torch.zeros(1) for n in range(40)}}, "safetensors")
    with pytest.raises(CheckpointError, match="40 unexpected: k00, k01, k02, k03, k04, … and 35 more"):
        load_model(LINEAR, path)


def test_a_model_that_did_not_fit_was_not_changed(weights, tmp_path):
    from ldm.checkpoint import load_weights

    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(CheckpointError):
        load_weights(model, {"weight": weights["weight"] + 1}, "somewhere")
    assert torch.equal(model.weight, before)


def test_what_released_files_hold_beside_the_weights_is_no_error(weights, tmp_path):
    extra = ["betas", "alphas_cumprod_prev", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"]
    extra += ["posterior_mean_coef1", "model_ema.decay", "model_ema.diffusion_modeltime_embed0weight", "scale_factor"]
    extra += ["first_stage_model.loss.logvar", "cond_stage_model.transformer.text_model.embeddings.position_ids"]
    load_model(LINEAR, write(tmp_path / "a.ckpt", {**weights, **{k: torch.zeros(1) for k in extra}}, "safetensors"))


def test_a_config_without_a_model_or_with_a_wrong_parameter_is_an_error():
    with pytest.raises(ValueError, match="no 'model' section.*sampler"):
        load_model({"sampler": {}})
    with pytest.raises(ValueError, match="cannot be built.*wings"):
        load_model({"model": {"target": "torch.nn.Linear", "params": {"wings": 2}}})
    with pytest.raises(ValueError, match="os.system"):
        load_model({"model": {"target": "os.system", "params": {"command": "true"}}})


def test_a_measured_scale_factor_is_not_lost_silently(tmp_path):
    """A config that says scale_by_std: false would decode at another scale, with nothing to see it by."""

    class Model(nn.Module):
        def __init__(self, scale_factor):
            super().__init__()
            self.net, self.scale_factor = nn.Linear(1, 1), scale_factor

    weights = {**nn.Linear(1, 1).state_dict(prefix="net."), "scale_factor": torch.tensor(0.76)}
    load_weights(Model(0.76), weights, "x.ckpt")
    with pytest.raises(CheckpointError, match="1 unexpected: scale_factor"):
        load_weights(Model(1.0), weights, "x.ckpt")


def test_another_schedule_than_the_configs_is_announced():
    model = nn.Linear(1, 1)
    model.register_buffer("betas", torch.tensor([0.1, 0.2]))
    with pytest.warns(UserWarning, match="another noise schedule"):
        load_weights(model, {**model.state_dict(), "betas": torch.tensor([0.1, 0.3])}, "x.ckpt")
    assert model.betas.tolist() == pytest.approx([0.1, 0.3])


def test_pickles_are_refused_where_torch_cannot_read_them_safely(weights, tmp_path, monkeypatch):
    torch.save(weights, tmp_path / "a.ckpt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    with pytest.raises(CheckpointError, match="safe to read from torch 2.6 on; this is 2.5.1"):
        load_state_dict(tmp_path / "a.ckpt")
    save_file(weights, tmp_path / "a.safetensors")
    assert load_state_dict(tmp_path / "a.safetensors").keys() == weights.keys()
