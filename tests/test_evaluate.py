"""scripts/evaluate.py: its distances against closed forms, its mixture against a sampler's order, and its tables."""

import json
from pathlib import Path

import _config
import evaluate
import numpy as np
import pytest
import torch
from evaluation import NOISE, mixture, scenes
from evaluation.distances import frechet, sliced_wasserstein


def gaussian(n, mean, scale, seed):
    return np.random.default_rng(seed).normal(size=(n, 2)) * scale + mean


def test_frechet_is_that_of_gaussians():
    a, b = gaussian(200_000, [0, 0], [1, 2], 0), gaussian(200_000, [3, 0], [2, 2], 1)
    assert frechet(a, b) == pytest.approx(9 + 1, rel=0.01)  # |μ|² + (1 − 2)²
    turned = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet(a @ turned, b @ turned) == pytest.approx(frechet(a, b))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9) and frechet(a, b) == pytest.approx(frechet(b, a))


def test_sliced_wasserstein_of_a_shift_is_its_mean_shadow():
    a = gaussian(500, [0, 0], 1, 0)
    assert sliced_wasserstein(a, a[::-1]) == 0
    assert sliced_wasserstein(a, a + [3, 4]) == pytest.approx(5 * 2 / np.pi, rel=0.06)  # the mean of |cos| is 2/π


def test_the_mixtures_denoiser_is_the_best_one():
    """E[eps | x_t], by many draws of (x0, eps) whose x_t falls near a point."""
    model, t = mixture.Circle(), 300
    bar = float(model.alphas_cumprod[t])
    x0, eps = mixture.drawn(4_000_000, 3), np.random.default_rng(4).normal(size=(4_000_000, 2))
    x = bar**0.5 * x0 + (1 - bar) ** 0.5 * eps
    for point in ([0.3, 0.2], [-0.5, 0.4]):
        near = np.linalg.norm(x - point, axis=1) < 0.04
        given = torch.tensor(point).view(1, 2, 1, 1).double()
        found = model.apply_model(given, torch.tensor([t]), None).flatten().numpy()
        assert near.sum() > 1000 and np.abs(found - eps[near].mean(0)).max() < 0.06


def test_more_steps_come_nearer_and_little_noise_is_best_at_few():
    few, many = mixture.table([10, 100], 4000)
    assert many["0"] < few["0"] / 2 and many["0"] < 4 * mixture.floor(4000)
    assert few["0"] < few["1"] < few["σ̂"]


def test_without_a_model_the_tables_are_printed_and_kept(tmp_path, capsys):
    evaluate.main(["--parts", "mixture", "--steps", "3", "5", "--points", "500", "--outdir", str(tmp_path)])
    ((title, rows),) = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8")).items()
    assert [row["S"] for row in rows] == [3, 5, 1000] and set(NOISE) < set(rows[0])
    assert title in capsys.readouterr().out


@pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout")
def test_the_bundled_model_is_held_against_fresh_scenes_and_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "FRESH", 80)
    monkeypatch.setattr(scenes, "NOISE", few := {name: NOISE[name] for name in ("0", "σ̂")})
    flags = ["--parts", "steps", "scale", "--steps", "1", "5", "--scales", "1", "3", "--n", "40", "--batch", "40"]
    evaluate.main([*flags, "--outdir", str(tmp_path)])
    found = list(json.loads((Path(tmp_path) / "evaluation.json").read_text(encoding="utf-8")).values())
    distances, captions, alike, scales = found
    assert all(distances[1][name] < distances[0][name] for name in few)  # one step is not enough
    assert captions[1]["0"] > captions[0]["0"] and captions[1]["0"] > 20
    assert alike[1]["from the picture of S = 5"] == 0 < alike[0]["from the picture of S = 5"]
    assert [row["scale"] for row in scales] == [1, 3]
