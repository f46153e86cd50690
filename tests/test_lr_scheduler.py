"""The learning-rate factors of CompVis' configs against their closed forms."""

import math

import pytest
import torch

from ldm.lr_scheduler import LambdaLinearScheduler, LambdaWarmUpCosineScheduler, LambdaWarmUpCosineScheduler2
from ldm.util import instantiate_from_config

CYCLES = {
    "warm_up_steps": [4, 10],
    "f_min": [0.1, 0.2],
    "f_max": [1.0, 0.8],
    "f_start": [0.01, 0.3],
    "cycle_lengths": [20, 50],
}


def test_the_cosine_warms_up_falls_by_half_a_wave_and_stays():
    factor = LambdaWarmUpCosineScheduler(10, 0.1, 1.0, 0.2, 110)
    assert [factor(n) for n in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])
    for n in range(10, 111):
        assert factor(n) == pytest.approx(0.1 + 0.9 * math.cos((n - 10) / 200 * math.pi) ** 2)
    assert factor(111) == factor(10**9) == pytest.approx(0.1) and factor.last_lr == factor(110)


def test_cycles_of_cosines_each_have_their_own_numbers():
    factor = LambdaWarmUpCosineScheduler2(**CYCLES)
    for n in range(71):
        i = int(n > 20)  # a cycle ends with its last step
        m, start, low, high = n - 20 * i, CYCLES["f_start"][i], CYCLES["f_min"][i], CYCLES["f_max"][i]
        warm, length = CYCLES["warm_up_steps"][i], CYCLES["cycle_lengths"][i]
        wave = low + (high - low) * math.cos((m - warm) / (length - warm) * math.pi / 2) ** 2
        assert factor(n) == pytest.approx(start + (high - start) * m / warm if m < warm else wave)
        assert factor.find_in_interval(n) == i


def test_the_linear_one_falls_from_the_cycles_beginning():
    factor = LambdaLinearScheduler(**CYCLES)
    for n in range(71):
        i = int(n > 20)
        m, start, low, high = n - 20 * i, CYCLES["f_start"][i], CYCLES["f_min"][i], CYCLES["f_max"][i]
        warm, length = CYCLES["warm_up_steps"][i], CYCLES["cycle_lengths"][i]
        line = low + (high - low) * (length - m) / length
        assert factor(n) == pytest.approx(start + (high - start) * m / warm if m < warm else line)


@pytest.mark.parametrize("cls", [LambdaWarmUpCosineScheduler2, LambdaLinearScheduler])
def test_after_the_last_cycle_the_factor_stays(cls):
    factor = cls(**CYCLES)
    assert factor(10**6) == factor(71) == factor(70) == pytest.approx(0.2)


def test_stable_diffusions_config_trains_with_it():
    """Warm up, then stay, as its configs say with a cycle that never ends."""
    params = {"warm_up_steps": [100], "cycle_lengths": [10**13], "f_start": [1e-6], "f_max": [1.0], "f_min": [1.0]}
    factor = instantiate_from_config({"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": params})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=factor.schedule)
    rates = []
    for _ in range(150):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[50] == pytest.approx(0.25, rel=1e-5) and rates[100:] == [0.5] * 50


@pytest.mark.parametrize("cls", [LambdaWarmUpCosineScheduler2, LambdaLinearScheduler])
def test_no_warm_up_and_nothing_but_warm_up_are_fine(cls):
    assert cls([0], [0.0], [1.0], [0.5], [10])(0) == 1.0
    assert cls([10], [1.0], [1.0], [0.0], [10])(10) == 1.0
    assert LambdaWarmUpCosineScheduler(10, 0.5, 1.0, 0.0, 10)(10) == 1.0


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="'f_min': 1.*give each as many as there are cycles"):
        LambdaLinearScheduler(**{**CYCLES, "f_min": [0.1]})
    with pytest.raises(ValueError, match="1 or more"):
        LambdaLinearScheduler([], [], [], [], [])


@pytest.mark.parametrize(
    "factor",
    [
        LambdaWarmUpCosineScheduler(2, 0, 1, 0, 4, verbosity_interval=5),
        LambdaLinearScheduler([2], [0], [1], [0], [99], 5),
    ],
    ids=["cosine", "linear"],
)
def test_every_so_many_steps_it_is_logged_and_nothing_is_printed(factor, caplog, capsys):
    caplog.set_level("INFO")
    for n in range(11):
        factor(n)
    assert len(caplog.records) == 3 and "step 5" in caplog.text and capsys.readouterr() == ("", "")
