"""Which released model a file holds: by the real checkpoints' keys and shapes, pruned and dressed in every way."""

import math
from types import SimpleNamespace

import _config
import pytest
import torch
from _released import LDM, RELEASED, SD, facts

from ldm.checkpoint import load_model
from ldm.checkpoint.recognise import config_path, predicts_v, recognise
from ldm.sampling import NoiseSchedule, make_beta_schedule

FACES = [f"{LDM}/celebahq-ldm-vq-4", f"{LDM}/ffhq-ldm-vq-4", f"{LDM}/lsun_bedrooms-ldm-vq-4"]
V2 = [f"{SD}/v2-inference-v", f"{SD}/v2-inference"]
EXPECTED = {
    "sd-v1": [f"{SD}/v1-inference"],
    "sd-v2-v": V2,
    "sd-v2-inpainting": [f"{SD}/v2-inpainting-inference"],
    "ldm-text2img-large": [f"{LDM}/txt2img-1p4B-eval"],
    "ldm-celebahq-vq-4": FACES,
    "ldm-lsun-beds": FACES,
    "ldm-lsun-churches-kl-8": [f"{LDM}/lsun_churches-ldm-kl-8"],
    "ldm-cin256-v2": [f"{LDM}/cin256-v2"],
    "ldm-inpainting-big": [f"{LDM}/inpainting_big"],
}
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def dressed(shapes):
    """As released: with a schedule, averages and a loss around the weights."""
    more = {"betas": [1000], "alphas_cumprod": [1000], "model_ema.decay": [], "model_ema.num_updates": []}
    averages = {"model_ema." + k[6:].replace(".", ""): v for k, v in shapes.items() if k.startswith("model.")}
    return {**more, **shapes, **averages, "first_stage_model.loss.logvar": []}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_released_checkpoint_is_recognised(name):
    shapes = facts(name)
    assert set(EXPECTED[name]) >= {config for config, fact in RELEASED.items() if fact == name}
    assert recognise(shapes) == recognise(dressed(shapes)) == EXPECTED[name]
    with torch.device("meta"):
        assert recognise({k: torch.empty(v, dtype=torch.float16) for k, v in shapes.items()}) == EXPECTED[name]


def test_the_text_encoders_keys_may_be_old_or_new():
    shapes = facts("sd-v1")
    new = {k.replace(".text_model.", "."): v for k, v in shapes.items() if not k.endswith("position_ids")}
    assert new.keys() != shapes.keys() and recognise(new) == EXPECTED["sd-v1"]


def test_the_step_that_v2_base_was_saved_at_puts_it_first():
    shapes = facts("sd-v2-v")
    assert recognise(shapes, global_step=110000) == V2
    assert recognise(shapes, global_step=875000) == V2[::-1]
    assert recognise(facts("sd-v1"), global_step=875000) == EXPECTED["sd-v1"]


@pytest.mark.parametrize(
    ("like", "channels", "expected"),
    [
        ("sd-v1", 9, [f"{SD}/v1-inpainting-inference"]),
        ("sd-v2-v", 9, [f"{SD}/v2-inpainting-inference"]),
        ("sd-v2-v", 5, [f"{SD}/v2-midas-inference"]),
        ("sd-v1", 8, []),  # InstructPix2Pix
    ],
)
def test_the_first_layer_tells_what_the_network_is_shown(like, channels, expected):
    assert recognise({**facts(like), FIRST: [320, channels, 3, 3]}) == expected


def test_every_config_is_recognised_by_its_own_model():
    from ldm.util import instantiate_from_config

    for name in (f"{SD}/x4-upscaling", f"{SD}/v2-midas-inference", f"{LDM}/ffhq-ldm-vq-4"):
        with torch.device("meta"):
            model = instantiate_from_config(_config.load_config(config_path(name)).model)
        assert name in recognise(model.state_dict())


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {k: v for k, v in facts("sd-v1").items() if k.startswith("first_stage_model.")},
        {k: v for k, v in facts("sd-v1").items() if k.startswith("model.")},
        {**facts("sd-v2-v"), "model.diffusion_model.label_emb.0.0.weight": [1280, 2048]},
        {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": [320, 4]},
        {k: torch.zeros(1) for k in facts("sd-v1")},
    ],
    ids=["nothing", "an autoencoder", "a network", "unCLIP", "LoRA", "other shapes"],
)
def test_what_is_none_of_them_is_not_recognised(weights):
    assert recognise(weights) == []


def test_every_name_has_its_config():
    names = {str(path.relative_to(_config.ROOT / "configs"))[:-5] for path in _config.ROOT.glob("configs/*/*.yaml")}
    assert names >= {name for expected in EXPECTED.values() for name in expected}
    assert all(config_path(name) == _config.ROOT / "configs" / f"{name}.yaml" for name in names)
    with pytest.raises(ValueError, match="'sdxl' is unknown; choose one of stable-diffusion/v1-inference"):
        config_path("sdxl")


def test_an_installed_packages_own_configs_come_first(tmp_path, monkeypatch):
    import ldm.checkpoint.recognise as module

    monkeypatch.setattr(module, "__file__", str(tmp_path / "ldm/checkpoint/recognise.py"))
    name = f"{SD}/v1-inference"
    with pytest.raises(FileNotFoundError, match="install the package again"):
        config_path(name)
    for folder in ("configs", "ldm/configs"):
        path = tmp_path / folder / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.touch()
        assert config_path(name) == path


# --- eps or v


class OfGaussianData:
    """The exact model for data N(mean, std²) in each entry: it knows E[x0 | x_t] in closed form."""

    channels, num_timesteps, device = 4, 1000, torch.device("cpu")
    model = SimpleNamespace(diffusion_model=SimpleNamespace(context_dim=16))

    def __init__(self, predicts, mean=0.3, std=0.8):
        betas = make_beta_schedule("linear", 1000, 0.00085, 0.012)
        self.alpha_bar = NoiseSchedule.from_betas(betas).alpha_bar
        self.predicts, self.mean, self.std = predicts, mean, std

    def apply_model(self, x, t, c):
        assert t.tolist() == [999] and c["c_crossattn"][0].shape == (1, 1, 16) and not c["c_crossattn"][0].any()
        a = self.alpha_bar[t.item()]
        x0 = self.mean + math.sqrt(a) * self.std**2 * (x - math.sqrt(a) * self.mean) / (a * self.std**2 + 1 - a)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        return {"eps": eps, "v": math.sqrt(a) * eps - math.sqrt(1 - a) * x0}[self.predicts]


@pytest.mark.parametrize("std", [0.01, 0.5, 1.0, 3.0])
def test_an_exact_network_is_asked_once(std):
    assert predicts_v(OfGaussianData("v", std=std)) is True
    assert predicts_v(OfGaussianData("eps", std=std)) is False


def test_a_trained_network_is_seen_through(monkeypatch):
    model = load_model(_config.load_config(None), _config.BUNDLED_CKPT)
    assert model.parameterization == "v" and predicts_v(model) is True
    as_v, a = model.apply_model, model.alphas_cumprod[-1]
    monkeypatch.setattr(model, "apply_model", lambda x, t, c: a.sqrt() * as_v(x, t, c) + (1 - a).sqrt() * x)
    assert predicts_v(model) is False
    monkeypatch.undo()
    state = torch.get_rng_state()
    predicts_v(model)
    assert torch.equal(torch.get_rng_state(), state)
