"""scripts/evaluate.py: its distances against closed forms, its mixture against a sampler's order, and its tables."""

import json

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
    few, many = mixture.by_steps([10, 100], 4000)
    assert many["0"] < few["0"] / 2 and many["0"] < 4 * mixture.floor(4000)
    assert few["0"] < few["1"] < few["σ̂"]


def test_without_a_model_the_tables_are_printed_and_kept(tmp_path, capsys):
    kept = tmp_path / "evaluation.json"
    kept.write_text('{"an earlier table": [{"S": 1}]}', encoding="utf-8")
    evaluate.main(["--parts", "mixture", "--steps", "3", "5", "--points", "500", "--outdir", str(tmp_path)])
    earlier, (title, rows), (of_spacings, spacings) = json.loads(kept.read_text(encoding="utf-8")).items()
    assert earlier == ("an earlier table", [{"S": 1}])
    assert [row["S"] for row in rows] == [3, 5, 1000] and set(NOISE) < set(rows[0])
    assert [row["S"] for row in spacings] == [3, 5] and spacings[0]["uniform"] == rows[0]["0"]
    assert title in (said := capsys.readouterr().out) and of_spacings in said and earlier[0] not in said


def test_a_file_that_no_run_has_written_is_not_written_over(tmp_path):
    (tmp_path / "evaluation.json").write_text("mine")
    with pytest.raises(ValueError, match=r"evaluation\.json is not what an earlier run wrote; move it away"):
        evaluate.main(["--parts", "mixture", "--outdir", str(tmp_path)])
    assert (tmp_path / "evaluation.json").read_text() == "mine"


@pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout")
def test_the_bundled_model_is_held_against_fresh_scenes_and_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "FRESH", 80)
    monkeypatch.setattr(scenes, "REAL", 1)
    monkeypatch.setattr(scenes, "NOISE", few := {name: NOISE[name] for name in ("0", "1")})
    monkeypatch.setattr(scenes, "SPACINGS", ("uniform", "trailing"))
    flags = ["--parts", "steps", "spacing", "scale", "noise", "--steps", "1", "5", "--scales", "1", "3"]
    evaluate.main([*flags, "--scale", "1", "--n", "40", "--batch", "40", "--outdir", str(tmp_path)])
    found = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    evaluate.main(
        ["--parts", "steps", "--steps", "1", "--n", "40", "--batch", "40", "--seed", "9", "--outdir", str(tmp_path)]
    )
    assert len(json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))) == len(found) + 2
    distances, captions, spacings, scales, alike = found.values()
    assert all("scale 1" in title for title in [*found][:3])
    assert all(distances[1][name] < distances[0][name] for name in few)  # one step is not enough
    assert captions[1]["0"] > captions[0]["0"] and captions[1]["0"] > 20
    assert {name: spacings[1][f"uniform, {name}"] for name in few} == pytest.approx(
        {name: distances[1][name] for name in few}
    )
    assert spacings[1]["trailing, 0"] < spacings[1]["uniform, 0"]  # which begins at a level that is not pure noise
    assert alike[1]["from the picture of S = 5"] == 0 < alike[0]["from the picture of S = 5"]
    assert [row["scale"] for row in scales] == [1, 3]


@pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout")
def test_real_scenes_are_nearer_to_others_than_noise_is(monkeypatch):
    monkeypatch.setattr(scenes, "FRESH", 200)
    opt = evaluate.parse([])
    config, checkpoint, _ = evaluate._model.open_model(opt)
    made = scenes.Scenes(*evaluate._session.measured(config, checkpoint, opt), 60, 60)
    chance = np.random.default_rng(0)
    noise = [chance.integers(0, 256, (64, 64, 3), np.uint8) for _ in made.descriptions]
    monkeypatch.setattr(scenes, "REAL", 2)
    made.seed = 60  # the second half of the seeds from 30 has the noise of the first half of those from 60
    (later, _), made.seed = made.draw(30, S=1), 30
    made.descriptions = made.descriptions[:30] * 2
    assert np.array_equal(later, made.draw(S=1)[0][30:])
    one, other = made.real()
    assert one != other and 0 < max(one, other) < made.distance(noise) / 5
