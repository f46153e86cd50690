"""What multiplies the learning rate: ends, middles and where the pieces meet."""

import pytest

from ldm.lr_scheduler import LambdaLinearScheduler, LambdaWarmUpCosineScheduler, LambdaWarmUpCosineScheduler2
from ldm.util import instantiate_from_config


def test_a_warm_up_and_then_half_a_cosine():
    rate = LambdaWarmUpCosineScheduler(warm_up_steps=10, lr_min=0.1, lr_max=1.0, lr_start=0.2, max_decay_steps=110)
    assert rate(0) == 0.2 and rate(5) == pytest.approx(0.6) and rate(10) == 1.0
    assert rate(35) == pytest.approx(0.55 + 0.45 * 0.5**0.5) and rate(60) == pytest.approx(0.55)
    assert rate(110) == pytest.approx(0.1) == rate.schedule(10_000)


CYCLES = {"warm_up_steps": [2, 0], "f_start": [0.0, 9.0], "f_max": [1.0, 0.5], "f_min": [0.2, 0.1]}


def test_cycles_follow_each_other_each_with_values_of_its_own():
    rate = LambdaWarmUpCosineScheduler2(**CYCLES, cycle_lengths=[10, 20])
    assert [rate(n) for n in (0, 1, 2, 6, 10)] == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2])
    assert [rate(n) for n in (11, 20, 30, 31, 999)] == pytest.approx([0.4975, 0.3, 0.1, 0.1, 0.1], abs=1e-4)


def test_the_lines_are_compvis_with_their_jump():
    rate = LambdaLinearScheduler(**CYCLES, cycle_lengths=[10, 20])
    assert [rate(n) for n in (1, 2, 10, 20)] == pytest.approx([0.5, 0.84, 0.2, 0.3])


def test_the_usual_config_warms_up_and_stays():
    params = {"warm_up_steps": [100], "cycle_lengths": [10**13], "f_start": [1e-6], "f_max": [1.0], "f_min": [1.0]}
    rate = instantiate_from_config({"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": params})
    assert rate.schedule(0) == 1e-6 and rate.schedule(50) == pytest.approx(0.5, abs=1e-5)
    assert rate.schedule(100) == 1.0 == rate.schedule(10**9)


def test_a_cycle_without_a_value_is_named():
    with pytest.raises(ValueError, match="a value for each cycle.*'f_min': 2.*'cycle_lengths': 1"):
        LambdaLinearScheduler(**CYCLES, cycle_lengths=[10])
