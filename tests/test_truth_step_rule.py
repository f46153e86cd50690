"""Where a step ends: at the next timestep's level, or a fixed stride below, as in diffusers. Against the exact flow."""

import numpy as np
import pytest
import torch
from _mixture import MixtureModel, randn, sd_betas, two_modes
from _step_rule import DATA, SPACINGS, T, errors, walk

from ldm.sampling import DDIMSampler, make_timesteps

UNEVEN = (150, 300, 400, 600)  # T // S misses T / S by 10 to 40 per cent


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("data", DATA)
def test_the_next_level_converges_as_steps_grow_and_a_stride_does_not(data, spacing):
    by_rule = [errors(data, spacing, s) for s in UNEVEN]
    following, stride = ([e[rule] for e in by_rule] for rule in ("next", "stride"))
    slope = np.polyfit(np.log(UNEVEN), np.log(following), 1)[0]
    assert -1.1 < slope < -0.6 and following == sorted(following, reverse=True), following
    assert all(theirs > 2.5 * ours for ours, theirs in zip(following, stride)), (following, stride)
    assert stride[-1] > 2 * stride[0], "more steps, and farther off"


@pytest.mark.parametrize("spacing, s", [("leading", 7), ("leading", 300), ("trailing", 10), ("trailing", 250)])
def test_the_rules_agree_where_the_stride_leads_to_the_next(spacing, s):
    found = errors("Gaussian", spacing, s)
    assert found["next"] == pytest.approx(found["stride"], rel=1e-9)


def test_at_few_steps_the_strides_left_over_noise_may_make_up_for_what_ddim_loses():
    """No rule wins everywhere: on the mixture the two errors cancel in part, on the Gaussian they do not."""
    found = errors("mixture", "linspace", 10)
    assert found["stride"] < 0.6 * found["next"]
    found = errors("Gaussian", "linspace", 70)
    assert found["stride"] > 1.3 * found["next"]


@pytest.mark.parametrize("rule", ["next", "stride"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_scheduler_steps_by_these_rules_and_the_sampler_by_the_first(spacing, rule):
    scheduler_module = pytest.importorskip("ldm.sampling.scheduler", reason="there is no DDIMScheduler")
    model, x_T, s = MixtureModel(two_modes()), randn(4, 1, 2, 2, seed=1), 13
    steps = make_timesteps(spacing, s, T)[::-1]
    expected = walk(model, x_T, steps, np.append(steps[1:], -1) if rule == "next" else steps - T // s)
    scheduler = scheduler_module.DDIMScheduler(
        trained_betas=sd_betas(), clip_sample=False, timestep_spacing=spacing, step_rule=rule
    )
    scheduler.set_timesteps(s)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(model.apply_model(x, t.repeat(len(x)), None), t, x).prev_sample
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-10)
    if rule == "next":
        sampler = DDIMSampler(model, ddim_discretize=spacing, final_alpha="one", progress=False)
        torch.testing.assert_close(sampler.sample(s, 4, (1, 2, 2), x_T=x_T)[0], expected, rtol=0, atol=1e-10)
