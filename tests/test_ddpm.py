"""LatentDiffusion: schedule, conditioning, losses, averages."""

import numpy as np
import pytest
import torch
from torch import nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling import make_beta_schedule

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 4, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [1],
        "num_res_blocks": 1, "channel_mult": [1], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 8,
    },
}  # fmt: skip
FIRST_STAGE = {"target": "ldm.models.autoencoder.IdentityFirstStage"}


def build(**changes) -> LatentDiffusion:
    torch.manual_seed(0)
    settings = {"conditioning_key": "crossattn", "use_ema": False, "channels": 3, "image_size": 4, **changes}
    return LatentDiffusion(FIRST_STAGE, {"target": "torch.nn.Identity"}, unet_config=UNET, **settings)


class Answer(nn.Module):
    """In place of the network: what it would say if it took x_start for x0."""

    def __init__(self, model: LatentDiffusion, x0: torch.Tensor):
        super().__init__()
        self.answer = (model.parameterization, model.alphas_cumprod, x0)

    def forward(self, x, t, context=None, y=None):
        kind, alphas, x0 = self.answer
        a = alphas[t].reshape(-1, 1, 1, 1)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return {"eps": eps, "x0": x0, "v": a.sqrt() * eps - (1 - a).sqrt() * x0}[kind]


def test_the_schedule_is_the_product_of_the_betas():
    model = build(linear_start=0.00085, linear_end=0.012)
    betas = make_beta_schedule("linear", 1000, 0.00085, 0.012)
    np.testing.assert_allclose(model.alphas_cumprod.double(), np.cumprod(1 - betas), rtol=1e-6)
    assert model.num_timesteps == 1000 and model.alphas_cumprod_prev[0] == 1
    assert build(given_betas=[0.1, 0.2]).alphas_cumprod.tolist() == pytest.approx([0.9, 0.72])


@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()])
def test_converting_the_networks_leaves_the_schedule_alone(convert):
    model = build()
    before = model.alphas_cumprod.clone()
    convert(model)
    assert next(model.model.parameters()).dtype != torch.float32
    assert model.alphas_cumprod.dtype == torch.float32 and torch.equal(model.alphas_cumprod, before)
    assert "alphas_cumprod" in model.state_dict()
    assert convert(build(scale_by_std=True, scale_factor=0.18215)).scale_factor.item() == pytest.approx(
        0.18215, rel=1e-6
    )


def test_a_model_on_the_meta_device_can_be_emptied_and_filled():
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    model.load_state_dict(build().state_dict())
    assert torch.equal(model.betas, build().betas)


def averaged(**changes):
    return build(use_ema=True, scale_by_std=True, scale_factor=0.7, **changes)


def test_a_model_on_the_meta_device_is_whole_with_a_files_weights_alone():
    """No schedule, no scale factor and no counters in the file: released ones lack them, each another."""
    full = averaged()
    file = {k: v for k, v in full.state_dict().items() if not k.startswith("model_ema.")}
    file = {k: v for k, v in file.items() if k.startswith(("model.", "first_stage_model."))}
    averages = {k: v for k, v in full.model_ema.state_dict().items() if k not in ("decay", "num_updates")}
    with torch.device("meta"):
        model = averaged()
    assert next(model.model.parameters()).is_meta
    report = model.load_state_dict(file | {f"model_ema.{k}": v for k, v in averages.items()}, strict=False, assign=True)
    assert not report.unexpected_keys and not any(k.startswith("model.") for k in report.missing_keys)
    for name, value in model.state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name
    assert not [p for p in (*model.parameters(), *model.buffers()) if p.is_meta]
    assert model.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_schedule_in_half_precision_is_not_taken_from_a_file(dtype):
    full = averaged()
    file = {k: v.to(dtype) if v.is_floating_point() else v for k, v in full.state_dict().items()}
    for assign in (True, False):
        model = averaged()
        model.load_state_dict({**file, "scale_factor": torch.tensor(0.25, dtype=dtype)}, assign=assign)
        assert torch.equal(model.alphas_cumprod, full.alphas_cumprod)
        assert model.scale_factor.dtype == torch.float32
        assert model.scale_factor == 0.25  # measured in training: only the file has it
    stretched = {**full.state_dict(), "alphas_cumprod": full.alphas_cumprod.double() / 2}
    model.load_state_dict(stretched, assign=True)
    assert model.alphas_cumprod.dtype == torch.float32 and torch.equal(model.alphas_cumprod, full.alphas_cumprod / 2)


def test_q_sample_has_the_moments_of_the_forward_process():
    model = build()
    x0, t = torch.full((20000, 1, 1, 1), 2.0), torch.full((20000,), 300)
    x = model.q_sample(x0, t)
    a = model.alphas_cumprod[300]
    assert x.mean().item() == pytest.approx(2 * a.sqrt().item(), abs=4 * (1 - a).sqrt().item() / 20000**0.5)
    assert x.var().item() == pytest.approx((1 - a).item(), rel=0.05)
    noise = torch.randn(20000, 1, 1, 1)
    torch.testing.assert_close(model.q_sample(x0, t, noise), a.sqrt() * x0 + (1 - a).sqrt() * noise)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_network_that_knows_the_answer_has_no_loss(kind, gamma):
    model = build(parameterization=kind, min_snr_gamma=gamma)
    x0 = torch.randn(6, 3, 4, 4)
    model.model.diffusion_model = Answer(model, x0)
    loss, logged = model.p_losses(x0, torch.zeros(6, 1, 8), torch.tensor([0, 10, 100, 400, 800, 999]))
    assert loss.item() < 1e-5 and logged["train/loss"] == loss


def test_min_snr_weighs_one_prediction_alike_however_it_is_expressed():
    x0, guess = torch.randn(2, 6, 3, 4, 4)
    t, noise = torch.tensor([20, 100, 300, 500, 800, 990]), torch.randn(6, 3, 4, 4)
    losses = []
    for kind in ("eps", "v", "x0"):
        model = build(parameterization=kind, min_snr_gamma=5.0)
        model.model.diffusion_model = Answer(model, guess)
        losses.append(model.p_losses(x0, torch.zeros(6, 1, 8), t, noise)[0].item())
    a = model.alphas_cumprod[t]
    expected = ((a / (1 - a)).clamp(max=5) * (x0 - guess).square().mean((1, 2, 3))).mean().item()
    assert losses == pytest.approx([expected] * 3, rel=1e-4)


def test_conditionings_of_every_form_mean_the_same():
    model = build().eval()
    nn.init.normal_(model.model.diffusion_model.out[-1].weight)  # it starts at zero, and would hide everything
    for p in model.model.diffusion_model.parameters():
        nn.init.normal_(p, std=0.2)
    x, t, c = torch.randn(2, 3, 4, 4), torch.tensor([5, 900]), torch.randn(2, 4, 8)
    out = model.apply_model(x, t, c)
    torch.testing.assert_close(model.apply_model(x, t, [c]), out)
    torch.testing.assert_close(model.apply_model(x, t, {"c_crossattn": [c]}), out)
    torch.testing.assert_close(model.apply_model(x, t, {"c_crossattn": [c[:, :1], c[:, 1:]]}), out)
    assert (model.apply_model(x, t, c + 1) - out).abs().max() > 1e-4


def test_ema_scope_lends_the_averages_and_gives_the_weights_back():
    model = build(use_ema=True)
    weight = next(model.model.parameters())
    average = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="inside"), model.ema_scope():
        torch.testing.assert_close(weight.detach(), average)
        raise RuntimeError("inside")
    torch.testing.assert_close(weight.detach(), average + 1)


def test_the_latents_are_scaled_and_scaled_back():
    model = build(scale_factor=0.18215)
    z = model.get_first_stage_encoding(model.encode_first_stage(torch.ones(1, 3, 4, 4)))
    assert z.unique().item() == pytest.approx(0.18215)
    torch.testing.assert_close(model.decode_first_stage(z), torch.ones(1, 3, 4, 4))
    assert "scale_factor" in build(scale_by_std=True).state_dict() and "scale_factor" not in model.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameterization": "w"}, "'w'"),
        ({"conditioning_key": "telepathy"}, "telepathy"),
        ({"beta_schedule": "cubic"}, "cubic"),
    ],
)
def test_bad_parameters_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_unknown_parameters_are_refused_and_the_trainers_are_not():
    with pytest.raises(TypeError, match="linear_stop"):
        build(linear_stop=0.02)
    build(monitor="val/loss_simple_ema", log_every_t=200, num_timesteps_cond=1)


def test_every_name_of_the_originals_module_is_there():
    from ldm.models.diffusion import ddpm

    names = "DiffusionWrapper LatentDiffusion LatentFinetuneDiffusion LatentInpaintDiffusion".split()
    names += "LatentDepth2ImageDiffusion LatentUpscaleDiffusion DDPM".split()
    assert all(issubclass(getattr(ddpm, name), nn.Module) for name in names)
    assert {*names, "disabled_train", "uniform_on_device"} == set(ddpm.__all__)


def test_the_conditioning_key_is_inferred_by_the_originals_rule():
    for key in (None, "crossattn"):
        m = LatentDiffusion(FIRST_STAGE, "__is_unconditional__", unet_config=UNET, conditioning_key=key, use_ema=False)
        assert m.model.conditioning_key is None
    with pytest.raises(ValueError, match="unconditional"):
        m.get_learned_conditioning(["a star"])
    first_stage = "__is_first_stage__"
    assert LatentDiffusion(FIRST_STAGE, first_stage, unet_config=UNET, use_ema=False).model.conditioning_key == "concat"
    crossattn = LatentDiffusion(FIRST_STAGE, first_stage, unet_config=UNET, concat_mode=False, use_ema=False)
    assert crossattn.model.conditioning_key == "crossattn"


def test_a_missing_or_idle_conditioning_is_named():
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([5, 900])
    with pytest.raises(ValueError, match="c_crossattn"):
        build().apply_model(x, t, None)
    with pytest.raises(ValueError, match="does not take c_concat: leave it out"):
        build().apply_model(x, t, {"c_crossattn": [torch.zeros(2, 1, 8)], "c_concat": [x]})


class Encoder(nn.Module):
    """A conditioner with one weight, and a dropout that shows the mode it is in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.dropout = nn.Dropout(0.5)

    def forward(self, c):
        return self.dropout(c * self.weight)


@pytest.fixture
def trained(monkeypatch):
    """A function that builds a model in train() whose conditioner may be trained or not."""
    monkeypatch.setattr(nn, "Foreign", Encoder, raising=False)
    monkeypatch.setattr(Encoder, "__module__", "torch.nn")

    def build(**changes):
        settings = {"conditioning_key": "crossattn", "use_ema": False, "channels": 3, "image_size": 4} | changes
        torch.manual_seed(0)
        return LatentDiffusion(FIRST_STAGE, {"target": "torch.nn.Foreign"}, unet_config=UNET, **settings).train()

    return build


def test_what_is_frozen_stays_in_eval_and_gets_no_gradient(trained):
    model = trained()
    assert model.training and model.model.training
    assert not model.first_stage_model.training and not model.cond_stage_model.dropout.training
    assert not any(p.requires_grad for p in model.cond_stage_model.parameters())
    model = trained(cond_stage_trainable=True)
    assert model.cond_stage_model.dropout.training and model.cond_stage_model.weight.requires_grad


def test_forward_trains_the_conditioner_where_it_is_to_be_trained(trained):
    x, c = torch.randn(4, 3, 4, 4), torch.randn(4, 1, 8)
    model = trained(cond_stage_trainable=True)
    for p in model.model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # else the zero-initialised layers hide the conditioning
    model(x, c)[0].backward()
    assert model.cond_stage_model.weight.grad.abs().sum() > 0
    assert trained()(x, c)[0].isfinite()  # a frozen one's output is given, not what goes into it


def test_forward_asks_at_timesteps_all_over_the_schedule_one_for_each_sample(trained, monkeypatch):
    model, asked = trained(timesteps=10), []
    monkeypatch.setattr(model, "p_losses", lambda x, c, t: asked.append(t))
    for _ in range(60):
        model(torch.zeros(4, 3, 4, 4), None)
    assert {tuple(t.shape) for t in asked} == {(4,)} and any(len(set(t.tolist())) > 1 for t in asked)
    assert set(torch.cat(asked).tolist()) == set(range(10))


def test_the_loss_is_the_square_or_the_absolute_error(trained):
    x, noise = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 3.0)
    t, c = torch.tensor([5, 900]), torch.zeros(2, 1, 8)
    losses = []
    for kind in ("l2", "l1"):
        model = trained(loss_type=kind)
        model.model.diffusion_model.forward = lambda x, t, context: torch.zeros_like(x)
        losses.append(model.p_losses(x, c, t, noise)[0].item())
    assert losses == pytest.approx([9.0, 3.0])
    with pytest.raises(ValueError, match="loss_type='huber' is unknown; choose one of l2, l1"):
        trained(loss_type="huber")


@pytest.mark.parametrize("name, value", [("original_elbo_weight", 0.1), ("learn_logvar", True), ("l_simple_weight", 2)])
def test_what_would_change_the_loss_is_refused_and_its_default_accepted(trained, name, value):
    default = {"original_elbo_weight": 0.0, "learn_logvar": False, "l_simple_weight": 1.0}[name]
    trained(**{name: default})
    with pytest.raises(ValueError, match=f"{name}={value!r} is not supported"):
        trained(**{name: value})


@pytest.mark.parametrize("factor", [0, -1.0, "abc", None, True])
def test_a_scale_factor_that_cannot_be_one_is_an_error(factor):
    with pytest.raises(ValueError, match="give a number above 0"):
        build(scale_factor=factor)
