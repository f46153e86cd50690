"""The training loop of scripts/train_shapes.py: what is interrupted goes on as if it had not been."""

import pytest
import torch
from _training import Stage, learning_rate
from torch import nn


def train(path, steps, stop=None):
    """A small regression; with `stop` it is interrupted there, as by a power cut after the last save."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    stage = Stage(path, net, steps, peak=1e-2, ema=0.9)

    def loss(step):
        if step == stop:
            stage._save()
            raise KeyboardInterrupt
        x = torch.randn(16, 4)
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    stage.run(loss)
    return net.state_dict()


def test_a_resumed_training_ends_where_an_undisturbed_one_does(tmp_path):
    whole = train(tmp_path / "whole.pt", 60)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut.pt", 60, stop=23)
    resumed = train(tmp_path / "cut.pt", 60)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value)


def test_training_lowers_the_loss(tmp_path):
    net = nn.Linear(4, 1)
    losses = []

    def loss(step):
        x = torch.randn(32, 4)
        losses.append((net(x) - x.sum(1, keepdim=True)).square().mean())
        return losses[-1]

    Stage(tmp_path / "s.pt", net, 300, peak=3e-2, ema=0.9).run(loss)
    assert losses[-1] < 0.05 * losses[0]


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_state(tmp_path):
    net = nn.Linear(1, 1)
    stage = Stage(tmp_path / "s.pt", net, 10, peak=1e-3, ema=0.9)
    with pytest.raises(RuntimeError, match="nan at step 3"):
        stage.run(lambda step: net(torch.ones(1, 1)).sum() * (float("nan") if step == 3 else 1))
    assert all(p.isfinite().all() for p in net.parameters())


def test_the_rate_warms_up_stays_and_falls_to_zero():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == 0.01 and rates[300] == 1.0 == rates[500] and rates[999] < 1e-4
    assert all(a >= b for a, b in zip(rates[500:], rates[501:], strict=False))
