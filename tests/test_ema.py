"""The moving average of the weights against its definition."""

import pytest
import torch
from torch import nn

from ldm.modules.ema import LitEma


def trained(steps, ema=None, model=None):
    """A model whose weights are 1, 2, … after each step; calls `ema` on each."""
    for i in range(1, steps + 1):
        for p in model.parameters():
            nn.init.constant_(p, float(i))
        if ema is not None:
            ema(model)
    return model


@pytest.mark.parametrize("counted", [True, False])
def test_the_average_follows_its_definition(counted):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema, expected = LitEma(model, decay=0.5, use_num_upates=counted), 0.0
    trained(6, ema, model)
    for n in range(1, 7):
        d = min(0.5, (1 + n) / (10 + n)) if counted else 0.5
        expected = d * expected + (1 - d) * n
    assert ema.weight.item() == pytest.approx(expected, rel=1e-6)
    assert ema.num_updates.item() == (6 if counted else -1)


def test_buffers_have_the_parameters_names_without_dots():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    assert set(LitEma(model).state_dict()) == {"decay", "num_updates", "0weight", "1weight", "1bias"}


def test_the_average_is_swapped_in_and_the_weights_come_back():
    model = nn.Linear(2, 2)
    ema = LitEma(model)
    trained(3, ema, model)
    ema.store(model.parameters())
    ema.copy_to(model)
    assert torch.equal(model.weight, ema.weight) and not (model.weight == 3).any()
    ema.restore(model.parameters())
    assert (model.weight == 3).all() and model.weight.requires_grad


def test_the_average_goes_on_from_a_saved_state():
    model = nn.Linear(2, 2)
    whole = LitEma(model)
    first = LitEma(model)
    trained(3, first, model)
    second = LitEma(nn.Linear(2, 2))
    second.load_state_dict(first.state_dict())
    for ema in (first, second):
        ema(model)
    assert torch.equal(first.weight, second.weight) and second.num_updates == 4 and whole.num_updates == 0


def test_the_average_takes_no_part_in_training():
    model = nn.Linear(2, 2)
    ema = LitEma(model)
    ema(model)
    assert not list(ema.parameters()) and not ema.weight.requires_grad


def test_bad_averages_are_refused():
    with pytest.raises(ValueError, match=r"decay=1.5: choose a number from 0"):
        LitEma(nn.Linear(1, 1), decay=1.5)
    clash = nn.Module()
    clash.decay = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="the average of 'decay' would be called 'decay', which is taken"):
        LitEma(clash)


@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.to(torch.bfloat16)])
def test_half_precision_leaves_the_decay_alone(convert):
    ema = convert(LitEma(nn.Linear(2, 2)))
    assert ema.decay.item() == pytest.approx(0.9999) and ema.weight.dtype != torch.float32


def test_counting_again_from_zero_forgets_soon():
    model = nn.Linear(1, 1, bias=False)
    ema = LitEma(model)
    trained(50, ema, model)
    ema.reset_num_updates()
    assert ema.num_updates == 0 and "num_updates" in ema.state_dict()
    before = ema.weight.item()
    ema(model)
    d = (1 + 1) / (10 + 1)
    assert ema.weight.item() == pytest.approx(d * before + (1 - d) * 50)
