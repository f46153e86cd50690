"""DDIMInverseScheduler undoes DDIMScheduler."""

import warnings

import pytest
import torch
from _mixture import two_modes
from _scheduler import KINDS, PLAIN, denoiser, scheduler, start

from ldm.sampling import DDIMInverseScheduler, DDIMScheduler


def pair(s, **options):
    return scheduler(s, **options), scheduler(s, DDIMInverseScheduler, **options)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("rule", ["next", "stride"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", [1, 7, 50])
def test_the_same_outputs_lead_back_exactly(kind, rule, spacing, s):
    options = {"prediction_type": kind, "step_rule": rule, "timestep_spacing": spacing}
    forward, inverse = pair(s, **options, set_alpha_to_one=kind != "sample")
    assert inverse.timesteps.tolist() == forward.timesteps.tolist()[::-1]
    x, outputs, x0 = start(), [], []
    for t in forward.timesteps.tolist():
        outputs.append(denoiser(x, forward._level(t), kind))
        x, predicted = forward.step(outputs[-1], t, x, return_dict=False)
        x0.append(predicted)
    for t in inverse.timesteps.tolist():
        x, predicted = inverse.step(outputs.pop(), t, x, return_dict=False)
        torch.testing.assert_close(predicted, x0.pop(), rtol=0, atol=1e-9)
    torch.testing.assert_close(x, start(), rtol=0, atol=1e-9)


def test_inversion_with_a_model_loses_less_with_more_steps():
    mixture, errors = two_modes(), []
    for s in (10, 20, 40, 80):
        forward, inverse = pair(s)
        x0 = x = mixture.means.flatten(0, 1)[:, None] * 0.9
        for t in inverse.timesteps.tolist():
            x = inverse.step(mixture.eps(x, inverse._level(t)), t, x).prev_sample
        for t in forward.timesteps.tolist():
            x = forward.step(mixture.eps(x, forward._level(t)), t, x).prev_sample
        errors.append((x - x0).square().mean().sqrt().item())
    assert all(b < 0.7 * a for a, b in zip(errors, errors[1:])), errors


def test_a_schedulers_config_makes_its_mirror():
    forward = DDIMScheduler(**PLAIN, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inverse = DDIMInverseScheduler.from_config(forward.config)
    assert inverse.config._class_name == "DDIMInverseScheduler" and inverse.config.timestep_spacing == "trailing"
    assert torch.equal(inverse.alphas_cumprod, forward.alphas_cumprod)


def test_a_list_of_timesteps_rises():
    inverse = DDIMInverseScheduler()
    inverse.set_timesteps(timesteps=[1, 400, 900])
    assert inverse._levels(400) == (inverse._level(400), inverse._level(1))
    with pytest.raises(ValueError, match="which rise from each to the next"):
        inverse.set_timesteps(timesteps=[900, 400])


def test_zero_terminal_snr_can_be_undone_for_v():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    forward, inverse = pair(10, **options)
    x, output = start(), start(seed=1)
    torch.testing.assert_close(inverse.step(output, 999, forward.step(output, 999, x)[0])[0], x, rtol=0, atol=1e-10)


def test_what_cannot_be_undone_is_said():
    x = start()
    with pytest.raises(ValueError, match="leaves nothing but x0, and cannot be undone: set_alpha_to_one=False"):
        pair(10, prediction_type="sample")[1].step(x, 0, x)
    for options in ({"clip_sample": True}, {"thresholding": True}, {"eta": 0.5}, {"use_clipped_model_output": True}):
        with pytest.warns(UserWarning, match=f"{next(iter(options))} has no effect on DDIMInverseScheduler"):
            DDIMInverseScheduler(**{**PLAIN, **options})
