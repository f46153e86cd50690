"""Which timesteps a DDIMScheduler visits, and what it takes for one."""

import numpy as np
import pytest
import torch
from _scheduler import scheduler, start

from ldm.sampling import DDIMScheduler


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor, lambda t: torch.tensor([t])])
def test_a_timestep_may_be_any_whole_number(kind):
    ours, x = scheduler(), start()
    assert torch.equal(ours.step(x, kind(900), x).prev_sample, ours.step(x, 900, x).prev_sample)


def test_an_element_of_the_timesteps_is_not_read_from_its_device():
    ours, x = scheduler(), start()
    expected = [ours.step(x, t, x).prev_sample for t in ours.timesteps.tolist()]
    ours.set_timesteps(10, device="meta")  # holds no numbers at all: to read one is an error
    for t, out in zip(ours.timesteps, expected):
        assert torch.equal(ours.step(x, t, x).prev_sample, out)
    for t, out in zip(ours.timesteps[4:], expected[4:]):  # as image-to-image does
        assert torch.equal(ours.step(x, t, x).prev_sample, out)


def test_a_list_of_timesteps_is_walked_as_it_is():
    ours = DDIMScheduler()
    ours.set_timesteps(timesteps=[999, 850, 400, 24])
    assert ours.timesteps.tolist() == [999, 850, 400, 24] and ours.num_inference_steps == 4
    assert ours._levels(850) == (ours._level(850), ours._level(400)) and ours._levels(24)[1] == 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"timesteps": [1, 500, 999]}, "fall from each to the next"),
        ({"timesteps": [999, 999, 1]}, "without repeats"),
        ({"timesteps": [1000, 1]}, "runs from 1 to 1000"),
        ({"timesteps": []}, "give one or more"),
        ({"timesteps": [9], "num_inference_steps": 1}, "one of them"),
        ({}, "one of them"),
        ({"num_inference_steps": 0}, "num_inference_steps = 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps = 1001: choose from 1 to 1000"),
    ],
)
def test_timesteps_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDIMScheduler().set_timesteps(**arguments)


def test_an_offset_past_the_last_timestep_is_refused():
    ours = DDIMScheduler(steps_offset=1)
    with pytest.raises(ValueError, match="steps_offset = 1 asks for timestep 1000"):
        ours.set_timesteps(1000)
    ours.set_timesteps(999)
    assert ours.timesteps[[0, -1]].tolist() == [999, 1]


def test_assigned_timesteps_are_obeyed():
    ours = scheduler()
    ours.timesteps = torch.tensor([800, 300])
    assert ours._levels(ours.timesteps[0]) == (ours._level(800), ours._level(300))


def test_from_a_timestep_that_is_not_visited_next_leads_to_the_next_that_is_and_stride_as_far_as_ever():
    ours = scheduler()
    assert ours._levels(950) == (ours._level(950), ours._level(900))
    assert ours._levels(1)[1] == ours._level(0) and ours._levels(0)[1] == ours._level(None)
    assert scheduler(step_rule="stride")._levels(950)[1] == ours._level(850)
    for rule in ("next", "stride"):
        with pytest.raises(ValueError, match="timestep = 1000: choose from 0 to 999"):
            scheduler(step_rule=rule).step(start(), 1000, start())


def test_what_no_step_can_be_taken_from_is_refused():
    x = start()
    with pytest.raises(ValueError, match="call set_timesteps"):
        DDIMScheduler().step(x, 900, x)
    with pytest.raises(ValueError, match=r"shape \(2,\): give one timestep"):
        scheduler().step(x, torch.tensor([900, 800]), x)
    with pytest.raises(TypeError, match="timestep = 900.0"):
        scheduler().step(x, 900.0, x)
    with pytest.raises(ValueError, match=r"give model_output\[:, :1\]"):
        scheduler().step(torch.cat([x, x], 1), 900, x)
