"""The formulas of training code between x_t, x0, noise and v, against identities and Bayes' rule."""

import numpy as np
import pytest
import torch
from _networks import randn
from test_conditioning import build

from ldm.models.diffusion.ddpm import DDPM, uniform_on_device
from ldm.sampling import make_beta_schedule
from ldm.sampling.transition import ddim_sigma, ddim_step

T = torch.tensor([0, 1, 10, 300, 700, 999])
X0, NOISE = randn(6, 3, 4, 4), randn(6, 3, 4, 4, seed=1)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NETWORK = {"target": "torch.nn.Identity"}


@pytest.fixture
def model():
    return DDPM(NETWORK, use_ema=False, linear_start=0.00085, linear_end=0.012)


def test_noise_tells_what_it_was_added_to(model):
    x_t = model.q_sample(X0, T, NOISE)
    torch.testing.assert_close(model.predict_start_from_noise(x_t, T, NOISE), X0, rtol=1e-3, atol=1e-3)


def test_v_tells_both_and_both_tell_v(model):
    x_t, v = model.q_sample(X0, T, NOISE), model.get_v(X0, NOISE, T)
    torch.testing.assert_close(model.predict_start_from_z_and_v(x_t, T, v), X0, **CLOSE)
    torch.testing.assert_close(model.predict_eps_from_z_and_v(x_t, T, v), NOISE, **CLOSE)
    free = randn(6, 3, 4, 4, seed=2)  # any v, not only the one of this x0
    x0, eps = model.predict_start_from_z_and_v(x_t, T, free), model.predict_eps_from_z_and_v(x_t, T, free)
    torch.testing.assert_close(model.get_v(x0, eps, T), free, **CLOSE)
    torch.testing.assert_close(model.q_sample(x0, T, eps), x_t, **CLOSE)
    torch.testing.assert_close(model.predict_start_from_noise(x_t[:3], T[:3], eps[:3]), x0[:3], **CLOSE)


def test_the_forward_process_has_its_mean_and_variance(model):
    mean, variance, log_variance = model.q_mean_variance(X0, T)
    a = model.alphas_cumprod.double()[T].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(mean, (a.sqrt() * X0).float())
    torch.testing.assert_close(variance, (1 - a).float(), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(log_variance, variance.log(), rtol=1e-5, atol=1e-5)


def bayes(betas, t, x0, x_t):
    """q(x_{t−1} | x_t, x0) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x0): the product of two Gaussians in x_{t−1}."""
    alpha_bar = np.cumprod(1 - betas)
    before = alpha_bar[t - 1]
    precision = (1 - betas[t]) / betas[t] + 1 / (1 - before)
    mean = (np.sqrt(1 - betas[t]) / betas[t] * x_t + np.sqrt(before) / (1 - before) * x0) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("t", [1, 10, 300, 999])
def test_the_posterior_is_bayes_rules(model, t):
    betas = make_beta_schedule("linear", 1000, 0.00085, 0.012)
    mean, variance = bayes(betas, t, X0.double().numpy(), NOISE.double().numpy())
    ours = model.q_posterior(X0, NOISE, torch.full((6,), t))
    np.testing.assert_allclose(ours[0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1].flatten(), variance, rtol=1e-5)
    np.testing.assert_allclose(ours[2].flatten(), np.log(variance), rtol=1e-5)


def test_the_first_timestep_leads_to_x0_itself(model):
    mean, variance, log_variance = model.q_posterior(X0, NOISE, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(mean, X0)
    assert not variance.any() and torch.allclose(log_variance.exp(), torch.tensor(1e-20))


@pytest.mark.parametrize("t", [1, 10, 300, 999])
def test_a_ddim_step_with_eta_1_is_a_sample_of_the_posterior(model, t):
    a, before = (model.alphas_cumprod[k].double().item() for k in (t, t - 1))
    sigma = ddim_sigma(a, before, eta=1.0)
    eps = (NOISE.double() - a**0.5 * X0) / (1 - a) ** 0.5  # of x_t = NOISE, if x0 is X0
    step = ddim_step(X0.double(), eps, before, sigma)
    mean, variance, _ = model.q_posterior(X0, NOISE, torch.full((6,), t))
    torch.testing.assert_close(step.float(), mean, rtol=1e-3, atol=1e-3)
    assert sigma**2 == pytest.approx(variance[0].item(), rel=2e-3)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_the_bounds_weights_are_compvis(kind):
    model = DDPM(NETWORK, use_ema=False, parameterization=kind)
    betas = make_beta_schedule("linear", 1000)
    a, variance = np.cumprod(1 - betas), model.posterior_variance.double().numpy()
    with np.errstate(divide="ignore"):
        expected = {
            "eps": betas**2 / (2 * variance * (1 - betas) * (1 - a)),
            "x0": 0.5 * np.sqrt(a) / (2.0 * 1 - a),
            "v": np.ones(1000),
        }[kind]
    expected[0] = expected[1]
    np.testing.assert_allclose(model.lvlb_weights, expected, rtol=1e-5)
    assert not model.logvar.any() and model.logvar.shape == (1000,)


def test_each_sample_has_a_timestep_of_its_own_in_any_rank(model):
    for shape in ((5,), (5, 2), (5, 2, 3, 4, 4)):
        x, noise, t = randn(*shape), randn(*shape, seed=1), torch.tensor([3, 900, 0, 50, 3])
        for function, arguments in (
            (model.get_v, (x, noise, t)),
            (model.predict_start_from_noise, (x, t, noise)),
            (model.predict_eps_from_z_and_v, (x, t, noise)),
            (lambda *a: model.q_posterior(*a)[0], (x, noise, t)),
        ):
            together = function(*arguments)
            alone = [function(*(a[k : k + 1] for a in arguments)) for k in range(5)]
            torch.testing.assert_close(together, torch.cat(alone))


def test_what_follows_from_the_schedule_stays_out_of_checkpoints_and_follows_the_one_of_a_file():
    model, other = build(), build(linear_start=0.001, linear_end=0.05)
    assert not [key for key in model.state_dict() if "posterior" in key or "lvlb" in key or "logvar" in key]
    model.load_state_dict(other.state_dict())
    for name in ("posterior_variance", "posterior_mean_coef1", "posterior_log_variance_clipped", "lvlb_weights"):
        torch.testing.assert_close(getattr(model, name), getattr(other, name), rtol=1e-5, atol=1e-9)
        assert (getattr(model, name) - getattr(build(), name)).abs().max() > 1e-6
    assert model.half().posterior_variance.dtype == torch.float32


def test_a_schedule_may_be_made_anew_and_overridden():
    model = build()
    model.register_schedule(beta_schedule="sqrt_linear", timesteps=50)
    assert model.num_timesteps == 50 == len(model.posterior_mean_coef2) == len(model.alphas_cumprod)

    class Fixed(DDPM):
        def register_schedule(self, given_betas=None, beta_schedule="linear", timesteps=1000, *rest):
            super().register_schedule([0.1, 0.2, 0.3])

    assert Fixed(NETWORK, use_ema=False).alphas_cumprod.tolist() == pytest.approx([0.9, 0.72, 0.504])


def test_numbers_are_drawn_evenly_between_the_two():
    drawn = uniform_on_device(2.0, -1.0, (4000,), "cpu")
    assert -1 <= drawn.min() < -0.9 and 1.9 < drawn.max() < 2 and abs(drawn.mean() - 0.5) < 0.06
