"""A model takes the file's tensors as they are: nothing drawn first, nothing held twice, averages on request."""

import copy
import sys

import pytest
import torch
from _txt2img import CONFIG
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint import Checkpoint, CheckpointError, identify, load_checkpoint, load_model
from ldm.util import instantiate_from_config


def small_config(**params):
    return {"model": {**CONFIG["model"], "params": {**CONFIG["model"]["params"], **params}}}


@pytest.fixture(scope="module")
def weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return instantiate_from_config(small_config()["model"]).state_dict()


def saved(path, weights):
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path


def test_the_parameters_are_the_files_tensors_not_copies(weights, tmp_path):
    file = load_checkpoint(saved(tmp_path / "a.safetensors", weights))
    model = load_model(small_config(), file)
    of_file = {tensor.data_ptr() for tensor in file.weights.values()}
    assert all(p.data_ptr() in of_file for p in model.parameters())


def test_no_random_number_is_drawn_to_build_a_model_that_a_file_fills(weights, tmp_path):
    path = saved(tmp_path / "a.safetensors", weights)
    torch.manual_seed(5)
    load_model(small_config(), path)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_a_file_without_the_schedule_gives_the_same_model(weights, tmp_path):
    whole = load_model(small_config(), saved(tmp_path / "a.safetensors", weights)).state_dict()
    pruned = {key: value for key, value in weights.items() if "." in key}
    assert len(pruned) < len(weights)
    found = load_model(small_config(), saved(tmp_path / "b.safetensors", pruned)).state_dict()
    assert found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_dtype_is_that_of_the_networks_and_not_of_the_schedule(weights, dtype, tmp_path):
    model = load_model(small_config(), saved(tmp_path / "a.safetensors", weights), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.alphas_cumprod.dtype == torch.float32
    assert torch.equal(model.alphas_cumprod, weights["alphas_cumprod"])
    kept = load_model(small_config(), tmp_path / "a.safetensors").to(dtype).state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


def test_a_half_precision_file_computes_in_float32_unless_told_otherwise(weights, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    path = saved(tmp_path / "a.safetensors", half)
    assert {p.dtype for p in load_model(small_config(), path).parameters()} == {torch.float32}
    model = load_model(small_config(), path, dtype=torch.float16)
    assert all(torch.equal(value, half[key]) for key, value in model.named_parameters())


class WithAConstant(nn.Module):
    """A foreign module whose constant no file holds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("constant", torch.arange(3.0), persistent=False)


class ComputesWhileBuilt(nn.Module):
    """A foreign module that looks at its weights, which have no values on the meta device."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.positive = bool(self.layer.weight.abs().sum() > 0)


@pytest.mark.parametrize("kind", [WithAConstant, ComputesWhileBuilt])
def test_a_foreign_module_that_needs_real_tensors_while_it_is_built_gets_them(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(nn, "Foreign", kind, raising=False)
    monkeypatch.setattr(kind, "__module__", "torch.nn")
    weights = kind().state_dict()
    model = load_model({"model": {"target": "torch.nn.Foreign"}}, saved(tmp_path / "a.safetensors", weights))
    assert torch.equal(model.layer.weight, weights["layer.weight"])
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert getattr(model, "constant", torch.arange(3.0)).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------ averages


def with_average(weights, plus):
    """As LitEma keeps it: the network's keys without "model." and dots."""
    network = {key: value for key, value in weights.items() if key.startswith("model.")}
    averages = {"model_ema." + key[len("model.") :].replace(".", ""): value + plus for key, value in network.items()}
    counters = {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(7)}
    return {**weights, **averages, **counters}


def test_the_averaged_weights_are_taken_on_request_only(weights, tmp_path):
    path = saved(tmp_path / "a.safetensors", with_average(weights, 1))
    key = "model.diffusion_model.time_embed.0.weight"
    plain, average = (load_model(small_config(), path, ema=ema).state_dict() for ema in (False, True))
    assert torch.equal(plain[key], weights[key]) and torch.equal(average[key], weights[key] + 1)
    assert torch.equal(plain["first_stage_model.quant_conv.weight"], average["first_stage_model.quant_conv.weight"])


def test_averages_that_are_not_there_are_an_error(weights, tmp_path):
    with pytest.raises(CheckpointError, match="a.safetensors' holds no averaged weights.*without ema"):
        load_model(small_config(), saved(tmp_path / "a.safetensors", weights), ema=True)
    partly = with_average(weights, 1)
    del partly["model_ema.diffusion_modeltime_embed0weight"]
    with pytest.raises(CheckpointError, match="1 of its .* averages are missing"):
        load_model(small_config(), saved(tmp_path / "b.safetensors", partly), ema=True)


def test_a_model_that_keeps_an_average_has_the_files(weights, tmp_path):
    model = load_model(small_config(use_ema=True), saved(tmp_path / "a.safetensors", with_average(weights, 1)))
    key = "model.diffusion_model.time_embed.0.weight"
    with model.ema_scope():
        assert torch.equal(model.state_dict()[key], weights[key] + 1)
    assert torch.equal(model.state_dict()[key], weights[key])


def test_an_average_begins_at_the_weights_of_a_file_without_one(weights, tmp_path):
    path = saved(tmp_path / "a.safetensors", weights)
    with pytest.warns(UserWarning, match="a.safetensors' holds no averaged weights"):
        model = load_model(small_config(use_ema=True), path)
    network = dict(model.model.named_parameters())
    shadow = model.model_ema.diffusion_modeltime_embed0weight
    assert torch.equal(shadow, network["diffusion_model.time_embed.0.weight"])
    assert shadow.data_ptr() != network["diffusion_model.time_embed.0.weight"].data_ptr()
    assert float(model.model_ema.decay) == pytest.approx(0.9999)


# ------------------------------------------------------------------------------------------- what other tools write


def betas_of(end):
    from ldm.sampling import NoiseSchedule, make_beta_schedule

    buffers = NoiseSchedule.from_betas(make_beta_schedule("linear", 100, 0.00085, end)).buffers()
    return {name: torch.from_numpy(values).float() for name, values in buffers.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_files_own_schedule_is_used_whatever_precision_it_was_saved_in(weights, dtype, tmp_path):
    other = betas_of(0.03)
    file = {**weights, **{name: value.to(dtype) for name, value in other.items()}}
    with pytest.warns(UserWarning, match="another noise schedule than the config's; the file's is used"):
        model = load_model(small_config(), saved(tmp_path / "a.safetensors", file))
    torch.testing.assert_close(model.alphas_cumprod, other["alphas_cumprod"], rtol=0, atol=1e-2)
    assert model.alphas_cumprod.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_rounded_schedule_gives_way_to_the_configs_without_a_word(weights, dtype, tmp_path, recwarn):
    own = betas_of(0.012)
    file = {**weights, **{name: value.to(dtype) for name, value in own.items()}}
    model = load_model(small_config(), saved(tmp_path / "a.safetensors", file))
    assert torch.equal(model.alphas_cumprod, weights["alphas_cumprod"]) and not recwarn.list


def test_a_wrappers_prefix_is_taken_off(weights, tmp_path):
    file = {"module." + key: value for key, value in weights.items()}
    model = load_model(small_config(), saved(tmp_path / "a.safetensors", file))
    assert torch.equal(model.state_dict()["betas"], weights["betas"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_quantized_weights_are_refused(weights, dtype, tmp_path):
    key = "model.diffusion_model.out.2.weight"
    with pytest.raises(CheckpointError, match=f"1 quantized.*{key}"):
        load_model(small_config(), saved(tmp_path / "a.safetensors", {**weights, key: weights[key].to(dtype)}))


def test_a_config_may_name_files_that_its_parts_began_from(weights, tmp_path):
    config = copy.deepcopy(small_config(ckpt_path="nowhere/base.ckpt", ignore_keys=["betas"]))
    config["model"]["params"]["first_stage_config"]["params"]["ckpt_path"] = "nowhere/kl.ckpt"
    load_model(config, saved(tmp_path / "a.safetensors", weights))


def test_one_stray_key_does_not_make_another_model_of_a_file(weights, tmp_path):
    for key in ("lora_te_x.lora_up.weight", "denoiser.sigmas"):
        with pytest.raises(CheckpointError, match=f"does not fit the config's model: 1 unexpected: {key}$"):
            load_model(small_config(), saved(tmp_path / "a.safetensors", {**weights, key: torch.zeros(1)}))


def test_names_from_a_file_reach_the_terminal_without_their_control_characters(weights, tmp_path):
    with pytest.raises(CheckpointError) as error:
        name = "\x1b[31m" + "x" * 999
        load_model(small_config(), saved(tmp_path / "a.safetensors", {**weights, name: torch.zeros(1)}))
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def open_clip(layers, layer):
    return {
        "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
        "params": {"layer": layer, "text_config": {"width": 16, "heads": 2, "layers": layers, "embed_dim": 16}},
    }


def test_what_stable_diffusion_2_never_uses_may_be_missing(tmp_path):
    config = small_config(cond_stage_config=open_clip(3, "penultimate"))
    weights = load_model(config).state_dict()
    unused = ("text_projection", "logit_scale", "attn_mask", "resblocks.2.")
    pruned = {key: value for key, value in weights.items() if not any(name in key for name in unused)}
    assert len(pruned) < len(weights) - 10
    whole, found = (
        load_model(config, saved(tmp_path / f"{k}.safetensors", w)).get_learned_conditioning(["a star"])
        for k, w in enumerate((weights, pruned))
    )
    assert torch.equal(whole, found)
    with pytest.raises(CheckpointError, match="missing: .*resblocks.2"):
        load_model(small_config(cond_stage_config=open_clip(3, "last")), tmp_path / "1.safetensors")


def test_no_two_weights_share_memory(weights, tmp_path):
    """A file may hold one tensor under two names, and an average taken for the weights is still the average."""
    one = torch.randn(2, 2)
    file = {"0.weight": one, "1.weight": one, "0.bias": torch.zeros(2), "1.bias": torch.zeros(2)}
    torch.save(file, tmp_path / "a.ckpt")

    class Two(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(2, 2), nn.Linear(2, 2))

    Two.__module__, nn.Two = "torch.nn", Two
    try:
        model = load_model({"model": {"target": "torch.nn.Two"}}, tmp_path / "a.ckpt")
    finally:
        del nn.Two
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(model[1].weight, one)

    path = saved(tmp_path / "b.safetensors", with_average(weights, 1))
    model = load_model(small_config(use_ema=True), path, ema=True)
    parameter = dict(model.model.named_parameters())["diffusion_model.time_embed.0.weight"]
    average = model.model_ema.diffusion_modeltime_embed0weight
    assert torch.equal(parameter, average) and parameter.data_ptr() != average.data_ptr()


def test_a_missing_parameter_is_missing_whatever_its_name(tmp_path, monkeypatch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_temperature = nn.Parameter(torch.zeros(1))
            self.layer = nn.Linear(1, 1)

    monkeypatch.setattr(nn, "Foreign", Model, raising=False)
    monkeypatch.setattr(Model, "__module__", "torch.nn")
    path = saved(tmp_path / "a.safetensors", {"layer.weight": torch.zeros(1, 1), "layer.bias": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="1 missing: log_temperature"):
        load_model({"model": {"target": "torch.nn.Foreign"}}, path)


def test_a_first_stage_that_conditions_may_have_been_saved_twice_and_nothing_else_may(weights, tmp_path):
    twice = {"cond_stage_model." + k[18:]: v.clone() for k, v in weights.items() if k.startswith("first_stage_model.")}
    network = {k: v for k, v in weights.items() if not k.startswith("cond_stage_model.")}
    config = small_config(cond_stage_config="__is_first_stage__")
    load_model(config, saved(tmp_path / "a.safetensors", {**network, **twice}))
    with pytest.raises(CheckpointError, match="unexpected: cond_stage_model.decoder"):
        load_model(small_config(), saved(tmp_path / "b.safetensors", {**weights, **twice}))


def test_some_averages_are_not_enough_for_a_model_that_keeps_them(weights, tmp_path):
    partly = with_average(weights, 1)
    del partly["model_ema.diffusion_modeltime_embed0weight"]
    with pytest.raises(CheckpointError, match="1 missing: model_ema.diffusion_modeltime_embed0weight"):
        load_model(small_config(use_ema=True), saved(tmp_path / "a.safetensors", partly))


def test_the_model_goes_where_it_is_asked_to(weights, tmp_path):
    model = load_model(small_config(), saved(tmp_path / "a.safetensors", weights), device="meta")
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("says_v", [True, False])
def test_stable_diffusion_2_is_what_its_network_says(says_v, monkeypatch):
    module = sys.modules[identify.__module__]
    monkeypatch.setattr(module, "recognise", lambda *_: [module._V, module._EPS])
    monkeypatch.setattr(module, "_network", lambda *_: None)
    monkeypatch.setattr(module, "predicts_v", lambda _: says_v)
    assert identify(Checkpoint({}, "torch")) == "stable-diffusion/v2-inference" + ("-v" if says_v else "")
