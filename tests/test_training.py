"""The training loop of scripts/train_shapes.py: what is interrupted goes on as if it had not been."""

import subprocess
import sys

import _config
import pytest
import torch
from _training import Stage, learning_rate
from torch import nn

from ldm.checkpoint import load_model
from ldm.sampling import DDIMSampler


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


def test_the_recipe_runs_from_nothing_to_a_model_that_draws(tmp_path):
    """Three stages of two steps each, in a checkout's way: no installation, from another folder; then it goes on."""
    script = _config.ROOT / "scripts" / "train_shapes.py"
    flags = ["--ae_steps=2", "--caption_steps=2", "--steps=2", "--batch=4", "--scenes=70", "--device=cpu"]
    for steps in ("2", "3"):
        command = [sys.executable, str(script), f"--out={tmp_path}", *flags, f"--steps={steps}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert f"diffusion {steps}/{steps}" in done.stderr
    assert "autoencoder 2/2" not in done.stderr  # the second run found it trained
    model = load_model(_config.load_config(None), tmp_path / "shapes.safetensors")
    latents, _ = DDIMSampler(model).sample(
        2, 1, (8, 8, 8), model.get_learned_conditioning(["a red star"]), seeds=[0], verbose=False
    )
    assert model.decode_first_stage(latents).shape == (1, 3, 64, 64)


def test_a_bad_flag_is_one_line():
    script = _config.ROOT / "scripts" / "train_shapes.py"
    done = subprocess.run([sys.executable, str(script), "--scenes=0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("train_shapes: error: argument --scenes: '0'")
