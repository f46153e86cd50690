"""DDIMSampler against answers that are known: the exact flow, the exact moments, eq. 12 by the letter."""

import numpy as np
import pytest
import torch
from _mixture import (
    MixtureModel,
    exact_discrete_variance,
    gaussian_flow,
    levels,
    one_mode,
    randn,
    reference_ddim,
    rms,
    sd_betas,
    two_modes,
)

from ldm.sampling import DDIMSampler

ROOT = 128  # the order is measured on ROOT**2 timesteps, where a grid uniform in sqrt(t) needs no rounding


def slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


# the references themselves


@pytest.mark.parametrize("a", [0.01, 0.5, 0.99])
def test_the_closed_form_is_the_score_of_the_closed_form(a):
    mix, x = two_modes(), randn(5, 1, 2, 2).requires_grad_()
    scale = (a * mix.stds**2 + 1 - a).sqrt()
    logp = torch.distributions.Normal(a**0.5 * mix.means, scale).log_prob(x.unsqueeze(1)).flatten(2).sum(2)
    (score,) = torch.autograd.grad((logp + mix.weights.log()).logsumexp(1).sum(), x)
    x, eps = x.detach(), -((1 - a) ** 0.5) * score
    torch.testing.assert_close(mix.eps(x, a), eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a**0.5 * mix.x0(x, a) + (1 - a) ** 0.5 * eps, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a**0.5 * mix.v(x, a), eps - (1 - a) ** 0.5 * x, rtol=1e-9, atol=1e-9)


def test_the_integrated_flow_is_the_exact_one_where_that_is_known():
    mix, x = one_mode(), randn(4, 1, 2, 2)
    exact = gaussian_flow(x, mix.means[0], mix.stds[0], 0.005, 1.0)
    torch.testing.assert_close(mix.flow(x, 0.005, 1.0, steps=400), exact, rtol=0, atol=1e-8)


# eta = 0: the probability flow


def run_on_root_grid(mix, x_T, s, **options):
    sampler = DDIMSampler(MixtureModel(mix, betas=sd_betas(ROOT**2)))
    grid = [(ROOT * i // s) ** 2 - 1 for i in range(s, 0, -1)]
    out, _ = sampler.sample(
        s, len(x_T), mix.shape, x_T=x_T, timesteps=grid, final_alpha="one", progress=False, **options
    )
    return out


@pytest.mark.parametrize("mix", [one_mode(), two_modes()], ids=["gaussian", "mixture"])
def test_eta_zero_converges_to_the_exact_flow_with_order_one(mix):
    """Uniform in sqrt(t), DDIM's own variable sqrt(1/a - 1) is smooth in the step number right down to zero noise."""
    x_T, counts = randn(8, *mix.shape, seed=1), [16, 32, 64, 128]
    first = np.cumprod(1 - sd_betas(ROOT**2))[-1]
    if len(mix.means) == 1:
        exact = gaussian_flow(x_T, mix.means[0], mix.stds[0], first, 1.0)
    else:
        exact = mix.flow(x_T, first, 1.0, steps=250)
    runs = [run_on_root_grid(mix, x_T, s) for s in counts]
    errors = [rms(run - exact) for run in runs]
    assert slope(counts, errors) == pytest.approx(-1, abs=0.05), errors
    # what is left when the 1/S term is cancelled falls with order two: the limit is this flow and no other
    extrapolated = [rms(2 * fine - coarse - exact) for coarse, fine in zip(runs, runs[1:])]
    assert slope(counts[1:], extrapolated) == pytest.approx(-2, abs=0.3), extrapolated


@pytest.mark.parametrize("final", ["first", "one"])
def test_default_timesteps_converge_between_their_own_end_points(final):
    """`uniform` is coarse where noise ends (noise ~ sqrt(t)), so its order is a little under one at these S."""
    mix, x_T, counts, errors = one_mode(), randn(8, 1, 2, 2, seed=1), [25, 50, 100, 200], []
    for s in counts:
        sampler = DDIMSampler(MixtureModel(mix))
        out, _ = sampler.sample(s, 8, mix.shape, x_T=x_T, final_alpha=final, progress=False)
        a = levels(sampler, sampler.model.alpha_bar[0] if final == "first" else 1.0)
        errors.append(rms(out - gaussian_flow(x_T, mix.means[0], mix.stds[0], a[0], a[-1])))
    assert -1.1 < slope(counts, errors) < -0.8, errors


def test_eta_zero_ignores_the_noise_source():
    model, x_T = MixtureModel(two_modes()), randn(3, 1, 2, 2)
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runs.append(DDIMSampler(model).sample(7, 3, (1, 2, 2), x_T=x_T, eta=0.0, progress=False)[0])
    assert torch.equal(*runs)


# every eta: eq. 12, in float64


@pytest.mark.parametrize("final", ["first", "one"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_samples_in_double_precision_are_equation_12_to_rounding(eta, final):
    mix, x_T = two_modes(), randn(3, 1, 2, 2, seed=2)
    sampler, noise = DDIMSampler(MixtureModel(mix)), [randn(3, 1, 2, 2, seed=10 + i) for i in range(20)]
    options = {"normals_sequence": noise} if eta else {}
    out, inter = sampler.sample(20, 3, mix.shape, x_T=x_T, eta=eta, final_alpha=final, progress=False, **options)
    a = levels(sampler, sampler.model.alpha_bar[0] if final == "first" else 1.0)
    assert out.dtype == torch.float64
    assert {x.dtype for x in inter["x_inter"] + inter["pred_x0"]} == {torch.float64}
    torch.testing.assert_close(out, reference_ddim(mix.eps, x_T, a, eta, noise), rtol=0, atol=1e-11)


@pytest.mark.parametrize("spacing", ["uniform", "quad", "leading", "trailing", "linspace"])
def test_every_spacing_runs_equation_12_on_its_own_timesteps(spacing):
    mix, x_T = two_modes(), randn(2, 1, 2, 2, seed=2)
    sampler = DDIMSampler(MixtureModel(mix))
    out, _ = sampler.sample(13, 2, mix.shape, x_T=x_T, ddim_discretize=spacing, progress=False)
    t = np.asarray(sampler.ddim_timesteps)
    assert len(set(t.tolist())) == 13 and t.min() >= 0 and t.max() < 1000
    assert sampler.model.times == [[int(i)] * 2 for i in np.sort(t)[::-1]]
    a = levels(sampler, sampler.model.alpha_bar[0])
    torch.testing.assert_close(out, reference_ddim(mix.eps, x_T, a), rtol=0, atol=1e-11)


def test_original_steps_walk_every_timestep_down_to_no_noise():
    mix, x_T = two_modes(), randn(2, 1, 2, 2)
    sampler = DDIMSampler(MixtureModel(mix, betas=sd_betas(40)))
    sampler.make_schedule(10, verbose=False)
    out, _ = sampler.ddim_sampling(None, (2, 1, 2, 2), x_T=x_T, ddim_use_original_steps=True)
    a = np.append(sampler.model.alpha_bar[::-1], 1.0)
    torch.testing.assert_close(out, reference_ddim(mix.eps, x_T, a), rtol=0, atol=1e-11)


def test_temperature_scales_the_noise_and_nothing_else():
    mix, x_T = two_modes(), randn(2, 1, 2, 2)
    noise = [randn(2, 1, 2, 2, seed=i) for i in range(8)]
    sampler = DDIMSampler(MixtureModel(mix))
    out, _ = sampler.sample(8, 2, mix.shape, x_T=x_T, eta=0.7, normals_sequence=noise, temperature=0.5, progress=False)
    a = levels(sampler, sampler.model.alpha_bar[0])
    expected = reference_ddim(mix.eps, x_T, a, 0.7, [0.5 * n for n in noise])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


# moments


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_gaussian_comes_out_with_its_mean_and_variance(eta):
    mix, n, s = one_mode(), 20000, 40
    sampler, g = DDIMSampler(MixtureModel(mix)), torch.Generator().manual_seed(3)
    sampler.make_schedule(s, verbose=False)
    a = levels(sampler, sampler.model.alpha_bar[0])
    x_T = mix.sample(n, a[0], g)
    out, _ = sampler.sample(s, n, mix.shape, x_T=x_T, eta=eta, generator=g, progress=False)
    variance = exact_discrete_variance(mix.stds[0], a, eta)
    assert ((out.mean(0) - a[-1] ** 0.5 * mix.means[0]).abs() < 4.5 * (variance / n).sqrt()).all()
    assert ((out.var(0) / variance - 1).abs() < 4.5 * (2 / n) ** 0.5).all()


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_many_steps_a_mixture_comes_out_with_its_weights_means_and_variances(eta):
    mix, n, s = two_modes(), 6000, 200
    sampler, g = DDIMSampler(MixtureModel(mix)), torch.Generator().manual_seed(4)
    sampler.make_schedule(s, "quad", verbose=False)
    x_T = mix.sample(n, levels(sampler, 1.0)[0], g)
    options = {"ddim_discretize": "quad", "final_alpha": "one", "progress": False}
    out, _ = sampler.sample(s, n, mix.shape, x_T=x_T, eta=eta, generator=g, **options)
    share = mix.responsibilities(out, 1 - 1e-9).mean(0)
    assert ((share - mix.weights).abs() < 4 * (mix.weights * (1 - mix.weights) / n).sqrt()).all(), share
    k = mix.responsibilities(out, 1 - 1e-9).argmax(1)
    for i in range(2):
        part = out[k == i]
        error = mix.stds[i] / len(part) ** 0.5
        assert ((part.mean(0) - mix.means[i]).abs() < 4.5 * error + 0.01).all()
        spread = part.std(0) / mix.stds[i] - 1  # a few per cent low, of order 1/S, where a mode is narrow
        assert ((spread + 0.02).abs() < 4.5 / (2 * len(part)) ** 0.5 + 0.03).all()


# inversion


@pytest.mark.parametrize("mix", [one_mode(), two_modes()], ids=["gaussian", "mixture"])
def test_encode_then_decode_returns_the_data_with_an_error_that_falls_with_the_steps(mix):
    x0, counts, there, back = mix.sample(16, 1.0, torch.Generator().manual_seed(5)), [25, 50, 100, 200], [], []
    sampler = DDIMSampler(MixtureModel(mix))
    for s in counts:
        sampler.make_schedule(s, verbose=False)
        z, _ = sampler.encode(x0, None, s)
        a = levels(sampler, sampler.model.alpha_bar[0])
        there.append(rms(z - mix.flow(x0, a[-1], a[0], steps=80)))
        back.append(rms(sampler.decode(z, None, s) - x0))
    assert slope(counts, there) == pytest.approx(-1, abs=0.15), there
    assert slope(counts, back) == pytest.approx(-1, abs=0.15), back


def test_encoding_part_of_the_way_stops_at_that_noise_level():
    mix = one_mode()
    x0 = mix.sample(16, 1.0, torch.Generator().manual_seed(5))
    sampler = DDIMSampler(MixtureModel(mix))
    sampler.make_schedule(200, verbose=False)
    z, _ = sampler.encode(x0, None, 80)
    a = levels(sampler, sampler.model.alpha_bar[0])[::-1]
    exact = gaussian_flow(x0, mix.means[0], mix.stds[0], a[0], a[80])
    assert rms(z - exact) < 0.02 < rms(z - gaussian_flow(x0, mix.means[0], mix.stds[0], a[0], a[90]))
    assert rms(sampler.decode(z, None, 80) - x0) < 0.02


def test_encoding_over_the_original_steps_is_undone_by_decoding_over_them():
    mix = one_mode()
    x0 = mix.sample(8, 1.0, torch.Generator().manual_seed(5))
    sampler = DDIMSampler(MixtureModel(mix, betas=sd_betas(400)))
    sampler.make_schedule(10, verbose=False)
    z, _ = sampler.encode(x0, None, 300, use_original_steps=True)
    exact = gaussian_flow(x0, mix.means[0], mix.stds[0], 1.0, sampler.model.alpha_bar[299])
    assert rms(z - exact) < 0.02
    assert rms(sampler.decode(z, None, 300, use_original_steps=True) - x0) < 0.02


def test_stochastic_encode_is_the_forward_process_at_that_step():
    sampler = DDIMSampler(MixtureModel(one_mode()))
    sampler.make_schedule(20, verbose=False)
    x0, noise, index = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1), torch.tensor([0, 7, 19])
    a = torch.as_tensor(sampler.model.alpha_bar[np.sort(sampler.ddim_timesteps)][index]).reshape(3, 1, 1, 1)
    z = sampler.stochastic_encode(x0, index, noise=noise)
    torch.testing.assert_close(z, a.sqrt() * x0 + (1 - a).sqrt() * noise, rtol=0, atol=1e-6)
