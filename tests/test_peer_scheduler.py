"""DDIMScheduler and diffusers' own, an independent implementation: the same numbers, files and pipelines."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from _mixture import randn
from _scheduler import KINDS, SD, SHAPE, B, denoiser, start, trajectory

from ldm.sampling import DDIMInverseScheduler, DDIMScheduler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

LIMITS = (
    {"clip_sample": False},
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.8, "use_clipped_model_output": True},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"thresholding": True, "use_clipped_model_output": True},
)
GRID = [
    {"timestep_spacing": spacing, "prediction_type": kind, **limit, "rescale_betas_zero_snr": zero, **end}
    for spacing, kind, limit, zero, end in itertools.product(
        ("leading", "trailing", "linspace"),
        KINDS,
        LIMITS,
        (False, True),
        ({"set_alpha_to_one": one, "steps_offset": offset} for one in (True, False) for offset in (0, 1)),
    )
]
NOISE = randn(1000, B, *SHAPE, seed=9)


def pair(options, share="ours"):
    """(ours, diffusers') with the levels of one of them, and whether they derive eps again."""
    options = {**SD, **options}
    rederive = options.pop("use_clipped_model_output", False)
    ours, theirs = DDIMScheduler(**options, step_rule="stride"), diffusers.DDIMScheduler(**options)
    if share == "ours":  # in float64
        theirs.alphas_cumprod = torch.as_tensor(ours._alpha_bar)
        theirs.final_alpha_cumprod = torch.tensor(ours._final, dtype=torch.float64)
    elif share == "theirs":
        ours.alphas_cumprod, ours.final_alpha_cumprod = theirs.alphas_cumprod, theirs.final_alpha_cumprod
    return ours, theirs, rederive


def agree(options, s, eta, dtype, tolerance, share="ours"):
    """Compare the two trajectories. False where diffusers' is not finite or fails; then ours is finite or says why."""
    ours, theirs, rederive = pair(options, share)
    bars, found = ours._alpha_bar.tolist(), []
    for scheduler in (theirs, ours):
        try:
            scheduler.set_timesteps(s)
            found.append(trajectory(scheduler, start(dtype), eta, bars, NOISE, use_clipped_model_output=rederive))
        except IndexError as error:
            assert scheduler is theirs, error
            found.append(torch.tensor(torch.nan))
        except ValueError as error:
            assert "nothing about x0" in str(error) or "steps_offset = 1 asks for timestep" in str(error)
            found.append(None)
    expected, out = found
    if not expected.isfinite().all():
        assert out is None or out.isfinite().all()
        return False
    assert out is not None
    torch.testing.assert_close(
        out, expected, **tolerance, msg=lambda said: f"{said}\n{options}, S = {s}, eta = {eta}, {dtype}"
    )
    return True


EXACT, CLOSE = {"rtol": 0, "atol": 1e-10}, {"rtol": 1e-5, "atol": 1e-5}


# Each combination of the options with S by turns: every pair of values meets.
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_over_the_grid_the_formulas_are_the_same(eta):
    turns = zip(GRID, itertools.cycle((1, 2, 7, 10, 13, 50, 3)))
    count = sum(agree(options, s, eta, torch.float64, EXACT) for options, s in turns)
    assert count > 0.75 * len(GRID)  # the rest is where diffusers' is not finite


@pytest.mark.parametrize("s", [999, 1000])
def test_as_many_steps_as_timesteps_agree_too(s):
    part = GRID[s % 2 :: 73]
    assert sum(agree(options, s, float(i % 2), torch.float64, EXACT) for i, options in enumerate(part)) >= 3


# At eta = 1 diffusers loses digits: its √(1 − ᾱ − σ²), which is 0 or nearly so, is the root of a rounding error.
@pytest.mark.parametrize("eta, tolerance", [(0.0, CLOSE), (1.0, {"rtol": 0, "atol": 1e-3})])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_in_float32_on_its_levels_they_agree(schedule, eta, tolerance):
    part = [{"beta_schedule": schedule, **options} for options in GRID[::5]]
    turns = zip(part, itertools.cycle((1, 2, 7, 10, 13, 50, 3)))
    count = sum(agree(options, s, eta, torch.float32, tolerance, share="theirs") for options, s in turns)
    assert count > 0.75 * len(part)


def test_in_float32_on_levels_of_their_own_they_agree_to_1e_5():
    part = [options for options in GRID[::3] if not options["rescale_betas_zero_snr"]]  # those are rounded more: below
    turns = zip(part, itertools.cycle((2, 7, 10, 13, 50, 3)))
    assert all(agree(options, s, 0.5, torch.float32, CLOSE, share="none") for options, s in turns)


@pytest.mark.parametrize(
    "options, gap",
    [({**SD}, 1e-4), ({**SD, "rescale_betas_zero_snr": True}, 1e-3), ({"beta_schedule": "squaredcos_cap_v2"}, 1e-2)],
)
def test_the_levels_differ_by_no_more_than_diffusers_rounds_its_betas(options, gap):
    ours, theirs = DDIMScheduler(**options), diffusers.DDIMScheduler(**options)
    exact = ours._alpha_bar
    relative = np.abs(theirs.alphas_cumprod.double().numpy() - exact)[exact > 0] / exact[exact > 0]
    assert relative.max() < gap
    assert ours.alphas_cumprod.dtype == theirs.alphas_cumprod.dtype
    torch.testing.assert_close(ours.final_alpha_cumprod, theirs.final_alpha_cumprod)
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("generators", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_seeds_give_the_same_noise(generators, dtype):
    ours, theirs, _ = pair({"clip_sample": False})
    found = []
    for scheduler in (ours, theirs):
        g = [torch.Generator().manual_seed(i) for i in range(generators)]
        x = start(dtype)
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            output = denoiser(x, ours._level(int(t)), "epsilon")
            x = scheduler.step(output, t, x, eta=1.0, generator=g if generators > 1 else g[0]).prev_sample
        found.append((x, g[0].get_state()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    assert torch.equal(found[0][1], found[1][1])


def test_noise_and_velocity_agree():
    ours, theirs, _ = pair({})
    x, noise, t = start(), start(seed=1), torch.tensor([0, 999])
    torch.testing.assert_close(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t))
    torch.testing.assert_close(ours.get_velocity(x, noise, t), theirs.get_velocity(x, noise, t))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_inverse_is_diffusers_for_eps(spacing):
    options = {**SD, "clip_sample": False, "timestep_spacing": spacing}
    ours, theirs = DDIMInverseScheduler(**options, step_rule="stride"), diffusers.DDIMInverseScheduler(**options)
    theirs.alphas_cumprod = torch.as_tensor(ours._alpha_bar)
    theirs.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    x = y = start()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(13)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    for t in ours.timesteps:
        output = denoiser(x, ours._level(int(t)), "epsilon")
        x, y = ours.step(output, t, x).prev_sample, theirs.step(output, t, y).prev_sample
    torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


# Where diffusers' scheduler fails or is not finite. (name, options, S, eta, what diffusers does, what ours does)
ZERO = {**SD, "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
EDGES = [
    ("eps at zero SNR", ZERO, (10,), 0.0, "not finite", "use a model that predicts v or x0"),
    ("eps at zero SNR, thresholded", {**ZERO, "thresholding": True}, (10,), 0.0, "not finite", "finite"),
    ("v at zero SNR, eta 1", {**ZERO, "prediction_type": "v_prediction"}, range(2, 51), 1.0, "not finite", "finite"),
    ("a trailing list that is one too long", {"timestep_spacing": "trailing"}, (61,), 0.0, "timestep -1", "finite"),
    ("an offset past T", {"steps_offset": 1}, (1000,), 0.0, "IndexError", "steps_offset = 1 asks for timestep 1000"),
    ("no steps", {}, (0,), 0.0, "Error", "num_inference_steps = 0: choose from 1 to 1000"),
    ("eta above 1", {}, (10,), 1.5, "not finite", "choose a smaller eta"),
    ("betas above 1", {"beta_start": 0.1, "beta_end": 2.0}, (10,), 0.0, "not finite", "choose betas of at most 1"),
    ("fewer betas than T", {"trained_betas": [0.1, 0.2, 0.3]}, (3,), 0.0, "IndexError", "finite"),
    ("one timestep at zero SNR", {**ZERO, "num_train_timesteps": 1}, (1,), 0.0, "not finite", "needs two noise levels"),
    ("a beta that is NaN", {"trained_betas": [0.1, float("nan")]}, (2,), 0.0, "Error", "betas must be finite"),
]


def outcome(cls, options, s, eta):
    """ "finite", "timestep -1", "not finite", or the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = cls(**options)
            scheduler.set_timesteps(s)
            x = start(torch.float32)
            for t in scheduler.timesteps.tolist():
                x = scheduler.step(x.tanh(), t, x, eta=eta, variance_noise=NOISE[0].float() if eta else None)[0]
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    if scheduler.timesteps.min() < 0:
        return "timestep -1"
    return "finite" if x.isfinite().all() else "not finite"


@pytest.mark.parametrize("options, steps, eta, theirs, ours", [e[1:] for e in EDGES], ids=[e[0] for e in EDGES])
def test_where_diffusers_fails_ours_is_finite_or_says_why(options, steps, eta, theirs, ours):
    assert any(theirs in outcome(diffusers.DDIMScheduler, options, s, eta) for s in steps)
    for s in steps:
        found = outcome(DDIMScheduler, options, s, eta)
        assert ours in found and found.startswith(("finite", "ValueError"))


def test_the_documentation_lists_the_failures():
    page = (Path(__file__).parent.parent / "docs" / "options.md").read_text(encoding="utf-8")
    rows = page.partition("## Where diffusers' scheduler fails")[2]
    assert [name for name, *_ in EDGES if f"| {name}" not in rows] == []
