"""The numbers and the checks of diffusers' own tests of its DDIMScheduler, on ours: they need no diffusers."""

import pytest
import torch

from ldm.sampling import DDIMScheduler


def ramp():
    return torch.arange(768).reshape(3, 8, 8, 4).div(768).permute(3, 0, 1, 2)


def loop(scheduler, x, timesteps):
    """The sum and the mean of |x| after the steps, with a model that says x t/(t + 1)."""
    for t in timesteps:
        x = scheduler.step(x * t / (t + 1), t, x, 0.0).prev_sample
    return x.abs().sum().item(), x.abs().mean().item()


@pytest.mark.parametrize(
    "options, total, mean",
    [
        ({}, 172.0067, 0.223967),
        ({"prediction_type": "v_prediction"}, 52.5302, 0.0684),
        ({"set_alpha_to_one": True, "beta_start": 0.01}, 149.8295, 0.1951),
        ({"set_alpha_to_one": False, "beta_start": 0.01}, 149.0784, 0.1941),
    ],
)
@pytest.mark.parametrize("rule", ["next", "stride"])
def test_whole_loops_have_the_published_sums(options, total, mean, rule):
    ours = DDIMScheduler(**options, step_rule=rule)
    ours.set_timesteps(10)
    assert loop(ours, ramp(), ours.timesteps) == (pytest.approx(total, abs=1e-2), pytest.approx(mean, abs=1e-3))


def test_a_loop_from_a_noised_start_has_the_published_sum():
    ours = DDIMScheduler()
    ours.set_timesteps(10)
    noise = torch.arange(768).flip(-1).reshape(3, 8, 8, 4).div(768).permute(3, 0, 1, 2)
    timesteps = ours.timesteps[8:]
    x = ours.add_noise(ramp(), noise, timesteps[:1])
    assert loop(ours, x, timesteps) == (pytest.approx(354.5418, abs=1e-2), pytest.approx(0.4616, abs=1e-3))


@pytest.mark.parametrize(
    "t, previous, variance",
    [(0, 0, 0.0), (420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02)],
)
def test_variances_are_the_published_ones(t, previous, variance):
    assert DDIMScheduler()._get_variance(t, previous).item() == pytest.approx(variance, abs=1e-5)


def test_an_offset_of_one_gives_the_published_timesteps():
    ours = DDIMScheduler(steps_offset=1)
    ours.set_timesteps(5)
    assert ours.timesteps.tolist() == [801, 601, 401, 201, 1]


PUBLISHED = [
    *({"num_train_timesteps": n} for n in (100, 500, 1000)),
    *({"steps_offset": n} for n in (0, 1)),
    *({"beta_start": a, "beta_end": b} for a, b in zip([0.0001, 0.001, 0.01, 0.1], [0.002, 0.02, 0.2, 2])),
    *({"beta_schedule": name} for name in ("linear", "squaredcos_cap_v2")),
    *({"prediction_type": name} for name in ("epsilon", "v_prediction")),
    *({"clip_sample": flag} for flag in (True, False)),
    *({"timestep_spacing": name} for name in ("trailing", "leading")),
    *({"rescale_betas_zero_snr": flag} for flag in (True, False)),
    *(
        {"thresholding": True, "prediction_type": name, "sample_max_value": limit}
        for name in ("epsilon", "v_prediction")
        for limit in (0.5, 1.0, 2.0)
    ),
]


@pytest.mark.filterwarnings("ignore:betas reach 2")
@pytest.mark.parametrize("rule", ["next", "stride"])
@pytest.mark.parametrize("options", PUBLISHED, ids=str)
def test_saved_and_loaded_it_takes_the_same_steps(options, rule, tmp_path):
    ours, x = DDIMScheduler(**options, step_rule=rule), torch.rand(4, 3, 8, 8)
    ours.save_config(tmp_path)
    other = DDIMScheduler.from_pretrained(tmp_path)
    for s, t, eta in ((50, 0, 0.0), (50, 1, 0.0), (10, 1, 0.5), (50, 49, 1.0)):
        found = []
        for one in (ours, other):
            one.set_timesteps(s)
            found.append(one.step(0.1 * x, t, x, eta, generator=torch.manual_seed(0)).prev_sample)
        assert found[0].shape == x.shape and torch.equal(*found)
