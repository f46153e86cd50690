"""Bumblebee's options, and the numbers of its DdimScheduler by a formula written here from its public source."""

from math import cos, pi, sqrt

import numpy as np
import pytest
import torch
from _mixture import randn
from _scheduler import denoiser, start

from ldm.sampling import DDIMScheduler

KIND = {"noise": "epsilon", "angular_velocity": "v_prediction"}


def alpha_bars(words):
    """Its schedules: linear; quadratic, which is linear in the root; and the squared cosine, with betas below 0.999."""
    n, lo, hi = words.get("num_train_steps", 1000), words.get("beta_start", 0.0001), words.get("beta_end", 0.02)
    kind = words.get("beta_schedule", "linear")
    if kind == "squared_cosine":
        f = [cos((i / n + 0.008) / 1.008 * pi / 2) ** 2 for i in range(n + 1)]
        betas = [min(1 - b / a, 0.999) for a, b in zip(f, f[1:])]
    else:
        betas = np.linspace(lo, hi, n) if kind == "linear" else np.linspace(sqrt(lo), sqrt(hi), n) ** 2
    return np.cumprod(1 - np.asarray(betas))


def bumblebee(words, s, x, noise):
    """(timesteps, samples after each): a step ends div(T, S) below, before 0 at the alpha of the clip strategy."""
    bars, gap = alpha_bars(words), words.get("num_train_steps", 1000) // s
    timesteps = [i * gap + words.get("timesteps_offset", 0) for i in reversed(range(s))]
    last = bars[0] if words.get("alpha_clip_strategy") == "alpha_zero" else 1.0
    kind, eta, found = KIND[words.get("prediction_type", "noise")], words.get("eta", 0.0), []
    for t, z in zip(timesteps, noise):
        a, to = bars[t], bars[t - gap] if t >= gap else last
        output = denoiser(x, a, kind)
        if kind == "epsilon":
            x0, eps = (x - sqrt(1 - a) * output) / sqrt(a), output
        else:
            x0, eps = sqrt(a) * x - sqrt(1 - a) * output, sqrt(a) * output + sqrt(1 - a) * x
        if words.get("clip_denoised_sample", True):
            x0 = x0.clip(-1, 1)
        sigma = eta * sqrt((1 - to) / (1 - a) * (1 - a / to))
        if words.get("rederive_noise"):
            eps = (x - sqrt(a) * x0) / sqrt(1 - a)
        x = sqrt(to) * x0 + sqrt(1 - to - sigma**2) * eps + sigma * z
        found.append(x)
    return timesteps, torch.stack(found)


def ours(words, s, x, noise, **overrides):
    scheduler = DDIMScheduler.from_config(words, **overrides)
    scheduler.set_timesteps(s)
    found = []
    for t, z in zip(scheduler.timesteps.tolist(), noise):
        output = denoiser(x, scheduler._level(t), scheduler.config.prediction_type)
        given = {"variance_noise": z} if scheduler.config.eta else {}
        x = scheduler.step(output, t, x, **given).prev_sample
        found.append(x)
    return scheduler.timesteps.tolist(), torch.stack(found)


CONFIGS = [
    {},
    {"num_train_steps": 400, "beta_schedule": "squared_cosine", "prediction_type": "angular_velocity"},
    {  # Stable Diffusion's
        "beta_schedule": "quadratic", "beta_start": 0.00085, "beta_end": 0.012,
        "alpha_clip_strategy": "alpha_zero", "timesteps_offset": 1, "clip_denoised_sample": False,
    },
    {"alpha_clip_strategy": "one", "rederive_noise": True, "eta": 0.4},
    {"beta_schedule": "linear", "prediction_type": "noise", "clip_denoised_sample": True, "eta": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("words", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("s", [1, 7, 20, 50])
def test_its_options_give_its_numbers(words, s):
    noise = randn(s, 2, 1, 2, 2, seed=1)
    expected_t, expected = bumblebee(words, s, 2 * start(), noise)
    t, found = ours(words, s, 2 * start(), noise)
    assert t == expected_t
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_where_the_gap_is_no_larger_than_the_offset_its_numbers_need_its_step_rule():
    words, noise = {"num_train_steps": 20, "timesteps_offset": 1}, randn(19, 2, 1, 2, 2)
    expected = bumblebee(words, 19, start(), noise)[1]
    torch.testing.assert_close(ours(words, 19, start(), noise, step_rule="stride")[1], expected, rtol=0, atol=1e-10)
    assert not torch.allclose(ours(words, 19, start(), noise)[1], expected)


def test_its_words_become_ours():
    config = DDIMScheduler.from_config(CONFIGS[2] | {"rederive_noise": True}).config
    assert config.beta_schedule == "scaled_linear" and config.set_alpha_to_one is False and config.steps_offset == 1
    assert config.use_clipped_model_output is True and config.clip_sample is False
    assert DDIMScheduler.from_config({}, timesteps_offset=3).config.steps_offset == 3


def test_a_word_that_it_does_not_have_is_refused():
    with pytest.raises(ValueError, match="alpha_clip_strategy = 'zero': choose one of one, alpha_zero"):
        DDIMScheduler.from_config({"alpha_clip_strategy": "zero"})
    with pytest.raises(TypeError, match="no argument 'timestep_offset': did you mean timesteps_offset"):
        DDIMScheduler.from_config({"timestep_offset": 1})
