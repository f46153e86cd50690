"""DDIMSampler and diffusers' DDIMScheduler, an independent implementation, on the same timesteps and noise."""

import numpy as np
import pytest
import torch
from _mixture import MixtureModel, randn, sd_betas, two_modes, zero_terminal_snr_betas

from ldm.sampling import DDIMSampler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

B, SHAPE = 3, (1, 2, 2)
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def theirs(model, x, s, *, spacing, final, eta, noise, betas):
    """A diffusers loop: (samples, the timesteps in the order that they ran)."""
    scheduler = diffusers.DDIMScheduler(
        trained_betas=betas,
        clip_sample=False,
        set_alpha_to_one=final == "one",
        steps_offset=1 if spacing == "leading" else 0,
        prediction_type=PREDICTION[model.parameterization],
        timestep_spacing=spacing,
    )
    scheduler.alphas_cumprod = torch.as_tensor(model.alpha_bar)  # in double precision, like ours
    scheduler.final_alpha_cumprod = torch.tensor(1.0 if final == "one" else model.alpha_bar[0], dtype=torch.float64)
    scheduler.set_timesteps(s)
    for i, t in enumerate(scheduler.timesteps):
        out = model.apply_model(x, torch.full((B,), int(t)), None)
        x = scheduler.step(out, int(t), x, eta=eta, variance_noise=noise[i] if eta else None).prev_sample
    return x, scheduler.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("final", ["first", "one"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_the_same_timesteps_and_noise_give_the_same_samples(kind, eta, final, spacing):
    s, x_T = 20, randn(B, *SHAPE)
    noise = [randn(B, *SHAPE, seed=50 + i) for i in range(s)]
    model = MixtureModel(two_modes(), kind)
    expected, t = theirs(model, x_T, s, spacing=spacing, final=final, eta=eta, noise=noise, betas=sd_betas())
    sampler = DDIMSampler(model)
    # "leading" with an offset of 1 is CompVis' "uniform"
    out, _ = sampler.sample(
        s, B, SHAPE, x_T=x_T, eta=eta, final_alpha=final, progress=False,
        ddim_discretize="uniform" if spacing == "leading" else spacing,
        normals_sequence=noise if eta else None,
    )  # fmt: skip
    assert np.sort(np.asarray(sampler.ddim_timesteps)).tolist() == sorted(t)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_zero_terminal_snr_agrees_too(eta):
    s, x_T, betas = 10, randn(B, *SHAPE), zero_terminal_snr_betas()
    noise = [randn(B, *SHAPE, seed=50 + i) for i in range(s)]
    model = MixtureModel(two_modes(), "v", betas=betas)
    expected, _ = theirs(model, x_T, s, spacing="trailing", final="one", eta=eta, noise=noise, betas=betas)
    out, _ = DDIMSampler(model).sample(
        s, B, SHAPE, x_T=x_T, eta=eta, final_alpha="one", progress=False, ddim_discretize="trailing",
        normals_sequence=noise if eta else None,
    )  # fmt: skip
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_a_given_list_of_their_timesteps_is_their_run():
    model, x_T = MixtureModel(two_modes()), randn(B, *SHAPE)
    expected, t = theirs(model, x_T, 8, spacing="leading", final="one", eta=0.0, noise=None, betas=sd_betas())
    out, _ = DDIMSampler(model).sample(8, B, SHAPE, x_T=x_T, timesteps=t, final_alpha="one", progress=False)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
