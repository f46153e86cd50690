"""Another noise schedule than the model's: given betas, zero terminal SNR."""

import math

import numpy as np
import pytest
import torch
from _mixture import MixtureModel, randn, sd_betas, two_modes
from _small_model import SHAPE, X_T, Model, run

from ldm.sampling import DDIMSampler, NoiseSchedule, rescale_zero_terminal_snr


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_the_models_own_betas_change_nothing_bit_for_bit(kind):
    model = MixtureModel(two_modes(torch.float32))
    x_T, options = randn(3, 1, 2, 2, dtype=torch.float32), {"progress": False, "eta": 0.5, "seeds": [1, 2, 3]}
    plain, _ = DDIMSampler(model).sample(10, 3, (1, 2, 2), x_T=x_T, **options)
    for betas in (sd_betas(), model.betas.numpy()):  # as they were made, and as they were rounded to be stored
        out, _ = DDIMSampler(model).sample(10, 3, (1, 2, 2), x_T=x_T, betas=kind(betas.tolist()), **options)
        assert torch.equal(out, plain)


def test_given_betas_are_those_of_a_model_that_has_them():
    mix, x_T, betas = two_modes(), randn(3, 1, 2, 2), np.linspace(1e-4, 0.02, 1000)
    theirs = MixtureModel(mix, betas=betas)
    model = MixtureModel(mix)
    model.apply_model = theirs.apply_model
    sampler = DDIMSampler(model, betas=betas.tolist())
    out, _ = sampler.sample(10, 3, mix.shape, x_T=x_T, progress=False)
    expected, _ = DDIMSampler(theirs).sample(10, 3, mix.shape, x_T=x_T, progress=False)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(sampler.betas, torch.as_tensor(betas, dtype=torch.float32))
    torch.testing.assert_close(sampler.alphas_cumprod, theirs.alphas_cumprod.float())


@pytest.mark.parametrize(
    "betas, message",
    [
        ([0.1] * 7, r"betas has shape \(7,\), but the model knows 100 timesteps"),
        ([[0.1] * 100], r"betas has shape \(1, 100\)"),
        ([0.1] * 99 + [1.5], "betas holds values from 0.1 to 1.5: each must be from 0 to 1"),
        ([0.1] * 99 + [math.nan], "betas holds values"),
        (["a"] * 100, "betas = .*: give 100 numbers from 0 to 1"),
        ("linear", "betas = 'linear': give 100 numbers"),
        (0.1, r"betas has shape \(\)"),
    ],
)
def test_betas_that_cannot_be_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        run(betas=betas)


@pytest.mark.parametrize("changed", [{"zero_terminal_snr": True}, {"betas": [0.02] * 100}])
def test_a_mask_noises_the_known_region_to_the_levels_that_are_sampled(changed):
    class Host(Model):
        def q_sample(self, x_start, t, noise=None):
            raise AssertionError("this is the model's schedule, not that of the run")

    sampler, mask = DDIMSampler(Host("v")), torch.ones(SHAPE)
    torch.manual_seed(0)
    first = next(sampler.steps(5, 3, SHAPE, x_T=X_T, mask=mask, x0=X_T, **changed))
    torch.manual_seed(0)
    a = sampler.levels().alpha_bar[-1]
    torch.testing.assert_close(first.x_t, a**0.5 * X_T + (1 - a) ** 0.5 * torch.randn(X_T.shape))


# zero terminal SNR


def test_zero_snr_ends_at_nothing_keeps_the_start_and_shows_in_the_buffers():
    sampler = DDIMSampler(Model("v"), zero_terminal_snr=True)
    sampler.make_schedule(5, verbose=False)
    assert torch.equal(sampler.alphas_cumprod, sampler.model.alphas_cumprod), "make_schedule takes its own arguments"
    run(sampler=sampler, ddim_discretize="trailing")
    assert sampler.alphas_cumprod[-1] == 0 == sampler.ddim_alphas[-1] and sampler.levels().alpha_bar[-1] == 0
    torch.testing.assert_close(sampler.alphas_cumprod[0], sampler.model.alphas_cumprod[0])
    expected = NoiseSchedule.from_betas(rescale_zero_terminal_snr(sampler.model.betas.numpy()))
    np.testing.assert_allclose(sampler.betas, expected.betas, rtol=1e-6)
    assert sampler.levels(True).alpha_bar == tuple(expected.alpha_bar)


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_zero_snr_is_a_model_that_was_made_so(kind):
    options = {"ddim_discretize": "trailing", "eta": 0.7, "seeds": [1, 2, 3], "final_alpha": "one"}
    made = run(sampler=DDIMSampler(Model(kind, zero_snr=True)), **options)
    torch.testing.assert_close(run(sampler=DDIMSampler(Model(kind)), zero_terminal_snr=True, **options), made)
    again = run(sampler=DDIMSampler(Model(kind, zero_snr=True)), zero_terminal_snr=True, **options)
    assert torch.equal(again, made)
    twice = run(sampler=DDIMSampler(Model(kind)), betas=[0.02] * 98 + [1.0, 0.5], zero_terminal_snr=True)
    assert torch.isfinite(twice).all(), "at nothing before the end"


def test_zero_snr_with_an_eps_model_is_refused_where_it_matters_alone():
    sampler = DDIMSampler(Model())
    with pytest.raises(ValueError, match=r"ᾱ is 0 at timestep 99 \(zero terminal SNR\).*v or x0"):
        run(sampler=sampler, zero_terminal_snr=True, ddim_discretize="trailing")
    assert torch.isfinite(run(sampler=sampler, zero_terminal_snr=True, ddim_discretize="leading")).all()


def test_zero_snr_of_a_schedule_without_noise_is_refused():
    with pytest.raises(ValueError, match="zero_terminal_snr has nothing to stretch"):
        run(betas=[0.0] * 100, zero_terminal_snr=True)
