"""A file's weights arrive whole, and a file that does not fit the model says how."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint import CheckpointError, load_model, load_state_dict, load_weights

LINEAR = {"model": {"target": "torch.nn.Linear", "params": {"in_features": 3, "out_features": 2}}}


@pytest.fixture
def weights():
    return nn.Linear(3, 2).state_dict()


def write(path, weights, form):
    if form == "safetensors":
        save_file(weights, path)
    else:
        content = {"state_dict": weights, "epoch": 3} if form == "wrapped" else weights
        torch.save(content, path, _use_new_zipfile_serialization=form != "old pickle")
    return path


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
    with pytest.raises(CheckpointError, match="its scale_factor is 0.76.*, the config's 1.0"):
        load_weights(Model(1.0), weights, "x.ckpt")


def test_another_schedule_than_the_configs_is_announced():
    model = nn.Linear(1, 1)
    model.register_buffer("betas", torch.tensor([0.1, 0.2]))
    with pytest.warns(UserWarning, match="another noise schedule"):
        load_weights(model, {**model.state_dict(), "betas": torch.tensor([0.1, 0.3])}, "x.ckpt")
    assert model.betas.tolist() == pytest.approx([0.1, 0.3])
