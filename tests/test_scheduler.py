"""DDIMScheduler on its own: steps, timesteps, noise, dtypes, and what it says when it cannot."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from _mixture import MixtureModel, randn, reference_ddim, sd_betas, two_modes
from _scheduler import KINDS, PLAIN, denoiser, scheduler, start, trajectory

from ldm.sampling import DDIMSampler, DDIMScheduler, DDIMSchedulerOutput

# The step


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("s", [1, 7, 13, 50, 300])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_default_walks_the_levels_of_its_own_timesteps(spacing, s, eta):
    mixture, bar = two_modes(), np.cumprod(1 - sd_betas())
    ours, x = scheduler(s, timestep_spacing=spacing), randn(2, 1, 2, 2)
    noise = [randn(2, 1, 2, 2, seed=i) for i in range(s)]
    alphas = [*bar[ours.timesteps.numpy()], 1.0]
    expected = reference_ddim(mixture.eps, x, alphas, eta, noise)
    for i, t in enumerate(ours.timesteps):
        x = ours.step(mixture.eps(x, alphas[i]), t, x, eta=eta, variance_noise=noise[i] if eta else None).prev_sample
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_in_compvis_words_it_is_the_ddim_sampler(kind, eta):
    model, x_T = MixtureModel(two_modes(), kind), randn(3, 1, 2, 2)
    noise = [randn(3, 1, 2, 2, seed=i) for i in range(20)]
    expected, _ = DDIMSampler(model).sample(
        20, 3, (1, 2, 2), x_T=x_T, eta=eta, progress=False, normals_sequence=noise if eta else None
    )
    ours = DDIMScheduler.from_config(
        {"linear_start": 0.00085, "linear_end": 0.012, "parameterization": kind}, vocabulary="compvis"
    )
    ours.set_timesteps(20)
    x = x_T
    for i, t in enumerate(ours.timesteps):
        output = model.apply_model(x, t.repeat(3), None)
        x = ours.step(output, t, x, eta=eta, variance_noise=noise[i] if eta else None).prev_sample
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("s", [1, 7, 10, 50, 999])
@pytest.mark.parametrize("offset", [0, 1])
def test_for_leading_timesteps_the_two_rules_are_one(s, offset):
    # One corner apart: at S = 999 and an offset of 1 the stride from the last timestep, 1, is to 0 and not to the end.
    options = {**PLAIN, "steps_offset": offset, "set_alpha_to_one": offset == 0}
    found = []
    for rule in ("next", "stride"):
        ours = scheduler(s, **options, step_rule=rule)
        found.append(trajectory(ours, start(), eta=0.5, noise=randn(s, 2, 1, 2, 2)))
    assert torch.equal(*found)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_stride_misses_the_next_timestep_elsewhere(spacing):
    found = [trajectory(scheduler(7, timestep_spacing=spacing, step_rule=r), start()) for r in ("next", "stride")]
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_where_s_divides_t_the_stride_is_right_for_trailing_but_for_the_last_step():
    a, b = (scheduler(10, timestep_spacing="trailing", step_rule=rule) for rule in ("next", "stride"))
    assert [a._levels(t) for t in a.timesteps] == [b._levels(t) for t in b.timesteps]


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_and_thresholding_limit_x0(kind):
    x = 3 * start()
    for options, limit in (({"clip_sample": True, "clip_sample_range": 0.7}, 0.7), ({"thresholding": True}, 1.0)):
        ours = scheduler(prediction_type=kind, **options)
        t = ours.timesteps[0]
        out = ours.step(denoiser(x, ours._level(int(t)), kind), t, x)
        assert out.pred_original_sample.abs().max() <= limit * (1 + 1e-12)


def test_thresholding_displaces_clipping():
    x, output = start(), 5 * start(seed=1)
    options = {"prediction_type": "sample", "thresholding": True, "sample_max_value": 9.0, "clip_sample_range": 0.1}
    both, alone = (scheduler(**options, clip_sample=clip) for clip in (True, False))
    assert torch.equal(both.step(output, 900, x).prev_sample, alone.step(output, 900, x).prev_sample)


def test_rederived_noise_keeps_the_step_on_the_line_to_the_limited_x0():
    ours, x = scheduler(clip_sample=True), 3 * start()
    a, a_prev = ours._levels(900)
    out = ours.step(start(seed=1), 900, x, use_clipped_model_output=True)
    x0 = out.pred_original_sample
    eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
    torch.testing.assert_close(out.prev_sample, a_prev**0.5 * x0 + (1 - a_prev) ** 0.5 * eps)
    assert not torch.allclose(out.prev_sample, ours.step(start(seed=1), 900, x).prev_sample)


def test_eta_and_rederived_noise_may_stand_in_the_config():
    said, asked = scheduler(clip_sample=True, eta=0.7, use_clipped_model_output=True), scheduler(clip_sample=True)
    x, output = 3 * start(), start(seed=1)
    a = said.step(output, 900, x, generator=torch.Generator().manual_seed(0))
    b = asked.step(output, 900, x, 0.7, True, torch.Generator().manual_seed(0))
    assert torch.equal(a.prev_sample, b.prev_sample)
    c = said.step(output, 900, x, eta=0.0, use_clipped_model_output=False)
    assert torch.equal(c.prev_sample, asked.step(output, 900, x).prev_sample)


# Noise


def test_a_sample_with_a_generator_of_its_own_is_the_same_alone():
    ours, x, output = scheduler(), start(torch.float32), start(torch.float32, seed=1)
    together = ours.step(output, 900, x, 1.0, generator=[torch.Generator().manual_seed(i) for i in range(2)])
    for i in range(2):
        alone = ours.step(output[i : i + 1], 900, x[i : i + 1], 1.0, generator=torch.Generator().manual_seed(i))
        assert torch.equal(together.prev_sample[i : i + 1], alone.prev_sample)


def test_noise_is_drawn_only_where_eta_is_above_zero():
    ours, x, g = scheduler(), start(), torch.Generator().manual_seed(0)
    before = g.get_state()
    ours.step(x, 900, x, eta=0.0, generator=g)
    assert torch.equal(g.get_state(), before)
    ours.step(x, 900, x, eta=0.1, generator=g)
    assert not torch.equal(g.get_state(), before)


def test_two_sources_of_noise_are_refused():
    x = start()
    with pytest.raises(ValueError, match="generator and variance_noise are both given"):
        scheduler().step(x, 900, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(ValueError, match=r"variance_noise has shape \(1, 1, 2, 2\)"):
        scheduler().step(x, 900, x, eta=1.0, variance_noise=x[:1])
    with pytest.raises(ValueError, match="generator holds 3, but batch_size is 2"):
        scheduler().step(x, 900, x, eta=1.0, generator=[torch.Generator()] * 3)


def test_an_eta_that_does_not_fit_is_named():
    x = start()
    with pytest.raises(ValueError, match="choose a smaller eta"):
        scheduler().step(x, 900, x, eta=1.5, variance_noise=x)
    with pytest.raises(ValueError, match="eta = -1"):
        scheduler().step(x, 900, x, eta=-1)


# Levels


def test_zero_terminal_snr_ends_at_pure_noise():
    ours = scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    assert ours._alpha_bar[-1] == 0 and ours._alpha_bar[0] == pytest.approx(1 - 0.00085)
    assert trajectory(ours, start(), eta=1.0, noise=randn(10, 2, 1, 2, 2)).isfinite().all()


def test_at_zero_snr_eps_needs_a_limit_on_x0():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    x, output = start(), start(seed=1)
    with pytest.raises(ValueError, match="use a model that predicts v or x0"):
        scheduler(**options).step(output, 999, x)
    for limit in ({"clip_sample": True}, {"thresholding": True}):
        out = scheduler(**options, **limit).step(output, 999, x)
        assert torch.equal(out.pred_original_sample, (x - output).sign())  # the limit as ᾱ falls to 0


def test_betas_may_be_given_and_then_they_count_the_timesteps():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = DDIMScheduler(trained_betas=np.linspace(0.1, 0.3, 8))
    assert len(ours) == ours.config.num_train_timesteps == len(ours.alphas_cumprod) == 8
    with pytest.warns(UserWarning, match="num_train_timesteps = 1000 has no effect: there are 8 trained_betas"):
        DDIMScheduler(1000, trained_betas=np.linspace(0.1, 0.3, 8))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"trained_betas": [0.1, float("nan")]}, "betas must be finite"),
        ({"trained_betas": []}, "betas must be finite"),
        ({"beta_start": -1.0}, "betas must be finite"),
        ({"trained_betas": [0.1], "rescale_betas_zero_snr": True}, "needs two noise levels"),
        ({"beta_schedule": "sqrt"}, "beta_schedule = 'sqrt': choose one of linear, scaled_linear, squaredcos_cap_v2"),
        ({"prediction_type": "eps"}, "prediction_type = 'eps': choose one of epsilon, v_prediction, sample"),
        ({"timestep_spacing": "uniform"}, "choose one of leading, trailing, linspace"),
        ({"step_rule": "last"}, "step_rule = 'last': choose one of next, stride"),
        ({"clip_sample": "false"}, "clip_sample = 'false': choose True or False"),
        ({"steps_offset": -1}, "steps_offset = -1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps = 0"),
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio = 1.5"),
        ({"clip_sample_range": 0}, "clip_sample_range = 0"),
        ({"sample_max_value": "1"}, "sample_max_value = '1'"),
        ({"eta": -0.5}, "eta = -0.5"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DDIMScheduler(**options)


def test_betas_above_one_are_warned_of_and_refused_where_they_are_met():
    with pytest.warns(UserWarning, match="betas reach 2"):
        ours = DDIMScheduler(beta_start=0.1, beta_end=2.0)
    ours.set_timesteps(50)
    x = start()
    assert ours.step(x, 0, x).prev_sample.isfinite().all()
    with pytest.raises(ValueError, match="at timestep 980: choose betas of at most 1"):
        ours.step(x, 980, x)


def test_assigned_levels_are_obeyed():
    ours, other = scheduler(), scheduler(rescale_betas_zero_snr=True)
    ours.alphas_cumprod, ours.final_alpha_cumprod = other.alphas_cumprod.double(), torch.tensor(0.5)
    assert ours._levels(900)[0] == other.alphas_cumprod[900].item() and ours._levels(0)[1] == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_in_the_samples_dtype_and_computed_in_float32(dtype):
    ours, x, output = scheduler(), start().to(dtype), start(seed=1).to(dtype)
    out = ours.step(output, 900, x, eta=0.5, variance_noise=start(seed=2))
    assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
    exact = ours.step(output.double(), 900, x.double(), eta=0.5, variance_noise=start(seed=2)).prev_sample
    torch.testing.assert_close(out.prev_sample, exact.to(dtype), rtol=torch.finfo(dtype).eps * 2, atol=1e-6)
    assert ours.add_noise(x, output, torch.tensor([5])).dtype == dtype


def test_noise_is_added_for_each_sample_at_its_own_timestep():
    ours, x, noise = scheduler(), start(), start(seed=1)
    t = torch.tensor([3, 700])
    a = torch.tensor(ours._alpha_bar)[t].reshape(2, 1, 1, 1)
    torch.testing.assert_close(ours.add_noise(x, noise, t), a.sqrt() * x + (1 - a).sqrt() * noise)
    torch.testing.assert_close(ours.get_velocity(x, noise, t), a.sqrt() * noise - (1 - a).sqrt() * x)
    for bad in ([1000], [-1]):
        with pytest.raises(ValueError, match="choose from 0 to 999"):
            ours.add_noise(x, noise, torch.tensor(bad))


# The object


def test_a_step_returns_an_output_or_a_tuple():
    ours, x = scheduler(), start()
    out = ours.step(x, 900, x)
    assert isinstance(out, DDIMSchedulerOutput) and out[0] is out.prev_sample is out["prev_sample"]
    prev, x0 = ours.step(x, 900, x, return_dict=False)
    assert torch.equal(out.prev_sample, prev) and torch.equal(out.pred_original_sample, x0)
    assert DDIMSchedulerOutput(x).to_tuple() == (x,)
    with pytest.raises(AttributeError, match="it has prev_sample, pred_original_sample"):
        _ = out.sample


def test_a_scheduler_can_be_copied_and_pickled():
    ours = scheduler(eta=0.5)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other.config == ours.config and other.config.eta == 0.5
        assert torch.equal(trajectory(other, start()), trajectory(ours, start()))


def test_a_step_can_be_differentiated():
    x = start().requires_grad_()
    scheduler().step(x.sin(), 900, x).prev_sample.sum().backward()
    assert x.grad.abs().min() > 0


def test_sigma_large_adds_the_larger_noise_to_the_same_mean():
    x, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    steps = {}
    for sigma in ("small", "large"):
        ours = DDIMScheduler(sigma=sigma, eta=1.0, clip_sample=False)
        ours.set_timesteps(10)
        steps[sigma] = [ours.step(0.3 * x, 500, x, variance_noise=n).prev_sample for n in (0 * noise, noise)]
    torch.testing.assert_close(steps["small"][0], steps["large"][0])
    now, to = (ours._level(t) for t in (500, 400))
    torch.testing.assert_close(steps["large"][1] - steps["large"][0], (1 - now / to) ** 0.5 * noise)
    with pytest.raises(ValueError, match='sigma = "large".*eta = 1'):
        ours.step(x, 500, x, eta=0.5)
    with pytest.raises(ValueError, match="sigma = 'huge': choose one of small, large"):
        DDIMScheduler(sigma="huge")
