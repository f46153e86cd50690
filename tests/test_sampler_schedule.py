"""Which noise levels DDIMSampler walks, and the schedules that they come from."""

import numpy as np
import pytest
import torch
from _small_model import SHAPE, X_T, Model, run

from ldm.sampling import DDIMSampler, NoiseSchedule, make_beta_schedule, rescale_zero_terminal_snr
from ldm.sampling.schedule import Levels

# timesteps


def test_final_alpha_says_where_the_last_step_ends():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    assert sampler.ddim_alphas_prev[0] == sampler.alphas_cumprod[0]
    sampler.make_schedule(5, verbose=False, final_alpha="one")
    assert sampler.ddim_alphas_prev[0] == 1


def test_given_timesteps_are_those_the_model_is_asked_at():
    model = Model()
    run(3, DDIMSampler(model), timesteps=[99, 40, 7])
    assert model.calls == [(3, 99), (3, 40), (3, 7)]


@pytest.mark.parametrize("n, steps", [(10, 9), (4, 3), (20, 9)])
def test_ddim_sampling_takes_a_subset_by_compvis_rule(n, steps):
    sampler = DDIMSampler(Model())
    sampler.make_schedule(10, verbose=False)
    sampler.ddim_sampling(None, (3, *SHAPE), x_T=X_T, timesteps=n)
    assert [t for _, t in sampler.model.calls] == sampler.ddim_timesteps[:steps][::-1].tolist()


def test_over_the_original_steps_the_subset_is_exact():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(10, verbose=False)
    sampler.ddim_sampling(None, (3, *SHAPE), ddim_use_original_steps=True, timesteps=12)
    assert [t for _, t in sampler.model.calls] == list(range(11, -1, -1))
    with pytest.raises(ValueError, match="timesteps = 1 leaves 0 of 10 steps"):
        sampler.ddim_sampling(None, (3, *SHAPE), timesteps=1)


def test_a_schedule_made_within_a_run_is_noticed():
    sampler = DDIMSampler(Model())
    steps = sampler.steps(5, 3, SHAPE, x_T=X_T)
    next(steps)
    sampler.make_schedule(5, verbose=False)  # the same again: no harm
    next(steps)
    sampler.make_schedule(7, verbose=False)
    with pytest.raises(RuntimeError, match="another DDIMSampler"):
        next(steps)


# noise schedules


@pytest.mark.parametrize("name", ["linear", "sqrt_linear", "cosine", "sqrt"])
def test_a_beta_schedule_gives_levels_that_fall(name):
    schedule = NoiseSchedule.from_betas(make_beta_schedule(name, 1000, 1e-4, 2e-2))
    assert len(schedule) == 1000 and schedule.alpha_bar.dtype == np.float64
    assert np.all(np.diff(schedule.alpha_bar) < 0) and 0 < schedule.alpha_bar[-1] < schedule.alpha_bar[0] < 1
    np.testing.assert_allclose(schedule.alpha_bar, schedule.alpha_bar_prev * (1 - schedule.betas), rtol=1e-12)


def test_an_unknown_beta_schedule_is_told_the_choices():
    with pytest.raises(ValueError, match="'quadratic' is unknown; choose one of linear, cosine, sqrt_linear, sqrt"):
        make_beta_schedule("quadratic", 10)


def test_zero_terminal_snr_ends_at_nothing_and_keeps_the_start():
    betas = make_beta_schedule("linear", 1000, 0.00085, 0.012)
    before, after = (NoiseSchedule.from_betas(b).alpha_bar for b in (betas, rescale_zero_terminal_snr(betas)))
    assert after[-1] == 0 and after[0] == pytest.approx(before[0], abs=1e-15) and np.all(np.diff(after) < 0)


def test_a_half_precision_schedule_gets_a_warning():
    with pytest.warns(UserWarning, match="float16.*not the schedule's buffers"):
        DDIMSampler(Model().half()).make_schedule(5, verbose=False)


def test_a_schedule_that_is_none_is_refused():
    model = Model()
    model.num_timesteps = 50
    with pytest.raises(ValueError, match=r"model.betas has shape \(100,\), but model.num_timesteps is 50"):
        DDIMSampler(model).make_schedule(5)
    model = Model()
    model.alphas_cumprod = model.alphas_cumprod.flip(0)
    with pytest.raises(ValueError, match="must fall"):
        DDIMSampler(model).make_schedule(5)


def test_another_model_may_be_put_in():
    sampler, model = DDIMSampler(Model()), Model("v")
    sampler.model = model
    assert sampler.model is model and not list(sampler.children())
    assert torch.equal(run(sampler=sampler), run(sampler=DDIMSampler(model)))


@pytest.mark.parametrize("before, after", [(50, 100), (100, 50)])
def test_another_model_brings_its_own_number_of_timesteps(before, after):
    sampler = DDIMSampler(Model(timesteps=before))
    sampler.make_schedule(5, verbose=False)
    sampler.model = Model(timesteps=after)
    run(after, sampler)
    assert [t for _, t in sampler.model.calls] == list(range(after))[::-1]
    assert sampler.ddpm_num_timesteps == after == len(sampler.betas)


def test_another_model_must_be_one_too():
    sampler = DDIMSampler(Model())
    sampler.model = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="Linear cannot be sampled from: it has no num_timesteps"):
        sampler.make_schedule(5)


def test_a_schedule_of_levels_that_nobody_set_says_what_an_override_must_call():
    class Forgetful(DDIMSampler):
        def make_schedule(self, ddim_num_steps, ddim_discretize="uniform", ddim_eta=0.0, verbose=True):
            self.register_buffer("ddim_alphas", torch.linspace(0.9, 0.1, ddim_num_steps))

    with pytest.raises(RuntimeError, match=r"an override of it must call super\(\).make_schedule"):
        run(sampler=Forgetful(Model()))
    assert "must call super().make_schedule" in DDIMSampler.__doc__


def test_a_subset_is_a_whole_number():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(10, verbose=False)
    with pytest.raises(ValueError, match="timesteps = 'abc': give a whole number"):
        sampler.ddim_sampling(None, (3, *SHAPE), timesteps="abc")


def test_the_levels_are_compared_once_for_each_schedule(monkeypatch):
    sampler, compared = DDIMSampler(Model()), []
    monkeypatch.setattr(Levels, "__eq__", lambda a, b: compared.append(1) or a is b)
    run(20, sampler)
    assert len(compared) == 1
