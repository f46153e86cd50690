"""The sampler's options and those of diffusers that mean the same, on the same timesteps and noise."""

import inspect

import pytest
import torch
from _mixture import MixtureModel, randn, sd_betas, two_modes

from ldm.sampling import DDIMSampler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

S, B, SHAPE = 20, 3, (1, 2, 2)
X_T, NOISE = randn(B, *SHAPE), [randn(B, *SHAPE, seed=50 + i) for i in range(S)]
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def theirs(model, kind="DDIMScheduler", eta=0.0, rederive=False, **config):
    """Their loop, in double precision."""
    scheduler = getattr(diffusers, kind)(
        trained_betas=sd_betas(), prediction_type=PREDICTION[model.parameterization], **{"clip_sample": False} | config
    )
    if not config.get("rescale_betas_zero_snr"):
        scheduler.alphas_cumprod = torch.as_tensor(model.alpha_bar)
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(S)
    x = X_T
    for i, t in enumerate(scheduler.timesteps):
        out = model.apply_model(x, torch.full((B,), int(t)), None)
        options = {"eta": eta, "use_clipped_model_output": rederive, "variance_noise": NOISE[i] if eta else None}
        x = scheduler.step(out, int(t), x, **options if kind == "DDIMScheduler" else {}).prev_sample
    return x


def ours(model, eta=0.0, **options):
    noise = {"normals_sequence": NOISE} if eta else {}
    options = {"ddim_discretize": "leading", "final_alpha": "one", "progress": False} | noise | options
    return DDIMSampler(model).sample(S, B, SHAPE, x_T=X_T, eta=eta, **options)[0]


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(
    "config, options",
    [
        ({"steps_offset": 7}, {"steps_offset": 7}),
        ({"clip_sample": True, "clip_sample_range": 0.6}, {"clip_x0": 0.6}),
        ({"clip_sample": True, "clip_sample_range": 0.6, "rederive": True}, {"clip_x0": 0.6, "rederive_eps": True}),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.1},
            {"dynamic_threshold": 0.7, "dynamic_threshold_max": 1.1},
        ),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 50.0, "rederive": True},
            {"dynamic_threshold": 0.7, "rederive_eps": True},
        ),
    ],
    ids=lambda o: "-".join(o),
)
def test_an_option_means_what_theirs_does(kind, eta, config, options):
    model = MixtureModel(two_modes(), kind)
    expected = theirs(model, eta=eta, **config)
    torch.testing.assert_close(ours(model, eta, **options), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(expected, ours(model, eta), atol=1e-3), "the option is not felt"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_zero_snr_and_given_betas_mean_what_theirs_do(eta):
    model = MixtureModel(two_modes(), "v", betas=sd_betas() * 0.9)  # its own are not asked for
    options = {"betas": sd_betas(), "zero_terminal_snr": True, "ddim_discretize": "trailing"}
    expected = theirs(model, eta=eta, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    torch.testing.assert_close(ours(model, eta, **options), expected, rtol=0, atol=2e-4)  # their ᾱ are float32


def test_sigma_large_is_their_ddpm_with_fixed_large(monkeypatch):
    model, drawn = MixtureModel(two_modes()), iter(NOISE)
    module = inspect.getmodule(diffusers.DDPMScheduler)
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(drawn))
    expected = theirs(model, "DDPMScheduler", variance_type="fixed_large", clip_sample=True, timestep_spacing="leading")
    options = {"eta": 1.0, "sigma": "large", "clip_x0": True, "rederive_eps": True}
    torch.testing.assert_close(ours(model, **options), expected, rtol=0, atol=1e-10)
