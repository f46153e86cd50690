"""What DDIMScheduler says of options and arguments that cannot be, and what must change nothing."""

import pytest
import torch
from _scheduler import scheduler

from ldm.sampling import DDIMScheduler


def test_moving_the_levels_changes_nothing():
    ours = DDIMScheduler(beta_start=0.0002, set_alpha_to_one=False)
    ours.set_timesteps(10)
    before = [ours._levels(t) for t in ours.timesteps]
    ours.alphas_cumprod = ours.alphas_cumprod.to("cpu")
    assert [ours._levels(t) for t in ours.timesteps] == before
    ours.alphas_cumprod = ours.alphas_cumprod * 0.5
    assert ours._levels(0) == (ours._level(0), ours._level(0)) and ours._level(0) < 0.51


@pytest.mark.parametrize(
    "options, said",
    [
        ({"use_clipped_model_output": "False"}, "use_clipped_model_output = 'False': choose True or False"),
        ({"use_clipped_model_output": float("nan")}, "choose True or False"),
        ({"beta_start": None}, "beta_start = None: give a number"),
        ({"beta_end": "0.1"}, "beta_end = '0.1': give a number"),
        ({"trained_betas": "linear"}, "trained_betas = 'linear': give a list"),
        ({"trained_betas": 3}, "trained_betas = 3: give a list"),
        ({"beta_schedule": ["linear"]}, r"beta_schedule = \['linear'\]: choose one of"),
        ({"num_train_timesteps": 10**9}, "give a whole number from 1 to a million"),
        ({"trained_betas": [0.1, 1, 0.1], "rescale_betas_zero_snr": True}, "needs betas below 1"),
    ],
)
def test_options_that_cannot_be_are_told_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        DDIMScheduler(**options)


def test_a_config_without_betas_is_refused():
    with pytest.raises(ValueError, match="of a FlowMatchEulerDiscreteScheduler, which has no betas"):
        DDIMScheduler.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


def test_whole_numbers_are_stepped_in_float32():
    ours, x = scheduler(), torch.arange(8).reshape(1, 2, 2, 2)
    assert torch.equal(ours.step(x, 900, x).prev_sample, ours.step(x.float(), 900, x.float()).prev_sample)


@pytest.mark.parametrize("t", [torch.tensor([0.5, 1.0]), torch.tensor([True, False]), torch.tensor([1, 2, 3])])
def test_add_noise_says_which_timesteps_it_takes(t):
    x = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="give whole numbers, one for each sample"):
        DDIMScheduler().add_noise(x, x, t)
    few = torch.tensor([3, 200], dtype=torch.uint8)
    assert torch.equal(DDIMScheduler().add_noise(x, x + 1, few), DDIMScheduler().add_noise(x, x + 1, few.long()))
