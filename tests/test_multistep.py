"""PLMS and DPM-Solver++: identities, their convergence order on data whose flow is known, and CompVis' numbers."""

import functools
from math import exp

import numpy as np
import pytest
import torch
from _mixture import MixtureModel, levels, one_mode, randn, rms, two_modes
from _small_model import SHAPE, X_T, Model
from _small_model import run as draw
from test_golden_sampler import close, load

from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler, rescale_zero_terminal_snr
from ldm.sampling.dpm_solver import half_ratio
from ldm.sampling.schedule import NoiseSchedule
from ldm.sampling.timesteps import make_timesteps

MULTISTEP = [PLMSSampler, DPMSolverSampler]
MIX = two_modes()
X = randn(16, 1, 2, 2, seed=3)


def run(sampler, s, x=X, c=None, **options):
    return sampler.sample(s, len(x), tuple(x.shape[1:]), c, x_T=x, progress=False, **options)[0]


# ------------------------------------------------------------------------------------------------------ against truth


@functools.cache
def fine_model(kind="eps", timesteps=20_000):
    """The mixture with so many timesteps that a spacing in log-SNR is even to a thousandth."""
    bar = 1 / (1 + np.exp(np.linspace(-6, 5, timesteps)))  # log-SNR from 6 to −5, evenly
    return MixtureModel(MIX, kind, 1 - bar / np.append(1.0, bar[:-1]))


@functools.cache
def flow(start, end):
    return MIX.flow(X, start, end, steps=600)


def error(sampler, s, model, **options):
    """The median over the samples: one that starts near the watershed of the modes may end in the other one."""
    out = run(sampler, s, **options)
    bar = levels(sampler, model.alpha_bar[0])
    return (out - flow(bar[0], bar[-1])).flatten(1).square().mean(1).sqrt().median().item()


@pytest.mark.parametrize(
    "cls, options, order",
    [
        (DPMSolverSampler, {}, 2),
        (DPMSolverSampler, {"order": 1}, 1),
        (PLMSSampler, {}, 2),  # its fourth order begins with three lower steps: two at least, as the original's
        (DDIMSampler, {}, 1),
    ],
)
def test_the_error_falls_by_the_samplers_order(cls, options, order):
    model = fine_model()
    errors = [error(cls(model, **options), s, model, ddim_discretize="time_uniform") for s in (40, 80, 160)]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert slopes.min() > order - 0.25, (errors, slopes)
    if cls is not PLMSSampler:
        assert slopes[-1] < order + 0.35, (errors, slopes)


def test_ten_calls_of_dpm_solver_are_nearer_to_the_flow_than_forty_of_ddim():
    """On Stable Diffusion's schedule, spaced evenly in log-SNR; DDIM as it spaces by default, and in log-SNR, too."""
    ten, forty = MixtureModel(MIX), MixtureModel(MIX)
    best = error(DPMSolverSampler(ten), 10, ten, ddim_discretize="logsnr")
    assert len(ten.times) == 10
    for spacing in ("uniform", "logsnr"):
        forty.times.clear()
        assert best < error(DDIMSampler(forty), 40, forty, ddim_discretize=spacing)
        assert len(forty.times) == 40


def test_plms_asks_once_more_than_it_steps_and_beats_ddim_at_as_many_calls():
    model = MixtureModel(MIX)
    plms = error(PLMSSampler(model), 19, model)
    assert len(model.times) == 20
    assert plms < error(DDIMSampler(model), 20, model) / 2


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("cls", MULTISTEP)
def test_what_the_network_predicts_makes_no_difference(cls, kind):
    expected = run(cls(MixtureModel(MIX, "eps")), 12)
    torch.testing.assert_close(run(cls(MixtureModel(MIX, kind)), 12), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cls", MULTISTEP)
def test_a_point_is_hit_exactly(cls):
    """Where all data is one point, every step leads along a straight line to it, whatever its order."""
    model = MixtureModel(one_mode())
    model.mixture.stds *= 0
    out = run(cls(model), 7, final_alpha="one")
    torch.testing.assert_close(out, model.mixture.means.expand_as(out), rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("options", [{}, {"ddim_discretize": "logsnr"}, {"final_alpha": "one"}, {"clip_x0": 0.5}])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_order_one_of_dpm_solver_is_ddim(kind, options):
    model = MixtureModel(MIX, kind)
    options = {"ddim_discretize": "time_uniform", "rederive_eps": bool(options.get("clip_x0"))} | options
    ddim = run(DDIMSampler(model), 9, **options)
    torch.testing.assert_close(run(DPMSolverSampler(model, order=1), 9, **options), ddim, rtol=0, atol=1e-10)


def test_a_step_of_dpm_solver_is_the_papers():
    """Algorithm 2 by the letter, in σ, α and λ, for the second step of a run."""
    model = MixtureModel(MIX)
    sampler = DPMSolverSampler(model, lower_order_final=False)
    steps = list(sampler.steps(3, len(X), MIX.shape, x_T=X))
    bar = levels(sampler, model.alpha_bar[0])
    alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    lam = np.log(alpha / sigma)
    for i in (1, 2):
        h, before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        r = before / h
        d = (1 + 1 / (2 * r)) * steps[i].x0 - 1 / (2 * r) * steps[i - 1].x0
        expected = sigma[i + 1] / sigma[i] * steps[i].x_t - alpha[i + 1] * (exp(-h) - 1) * d
        torch.testing.assert_close(steps[i].x_prev, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("s, lower", [(14, True), (15, False)])
def test_the_last_of_few_steps_of_dpm_solver_is_of_order_one(s, lower):
    model = MixtureModel(MIX)
    last = list(DPMSolverSampler(model).steps(s, len(X), MIX.shape, x_T=X))[-1]
    sampler = DDIMSampler(model)
    sampler.make_schedule(s, "time_uniform", verbose=False)
    t = torch.full((len(X),), last.timestep)
    ddim, _ = sampler.p_sample_ddim(last.x_t, None, t, 0, noise=0.0)
    assert torch.allclose(last.x_prev, ddim, rtol=0, atol=1e-12) == lower


def test_plms_weights_extrapolate_polynomials():
    """Adams-Bashforth: with n past values the mean over the coming step of a polynomial of degree n − 1 is exact."""
    from ldm.sampling.plms import WEIGHTS

    for n, weights in WEIGHTS.items():
        for degree in range(n):
            mean = sum(w * (-i) ** degree for i, w in enumerate(weights))
            assert mean == pytest.approx(1 / (degree + 1), abs=1e-12), (n, degree)


@pytest.mark.parametrize("before, now, to", [(0.0, 0.1, 0.5), (0.1, 0.5, 1.0), (0.5, 0.5, 0.7)])
def test_there_is_no_second_order_across_an_endless_step(before, now, to):
    assert half_ratio(before, now, to) == 0


@pytest.mark.parametrize("cls", MULTISTEP)
def test_runs_do_not_learn_from_the_run_before(cls):
    sampler = cls(Model())
    first = draw(6, sampler)
    assert torch.equal(draw(6, sampler), first)
    two = [sampler.steps(6, 3, SHAPE, x_T=x, progress=False) for x in (X_T, X_T + 1)]
    for pair in zip(*two):  # in turns, on one sampler
        last = pair
    assert torch.equal(last[0].x_prev, first)


@pytest.mark.parametrize("cls", MULTISTEP)
@pytest.mark.parametrize("kind", ["v", "x0"])
def test_zero_terminal_snr_is_finite_and_converges_to_the_flow_of_finer_steps(cls, kind):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    model = MixtureModel(MIX, kind, rescale_zero_terminal_snr(betas))
    few, many, reference = (
        run(sampler(model), s, ddim_discretize="time_uniform")
        for sampler, s in ((cls, 10), (cls, 60), (DDIMSampler, 1000))
    )
    assert rms(many - reference) < rms(few - reference) < 0.5 and rms(many - reference) < 0.03


@pytest.mark.parametrize("cls", MULTISTEP)
def test_one_step_to_no_noise_is_x0(cls):
    """Where the step ends there is no eps to ask for again."""
    for kind in ("eps", "v", "x0"):
        model, options = MixtureModel(MIX, kind), {"ddim_discretize": "time_uniform", "final_alpha": "one"}
        torch.testing.assert_close(run(cls(model), 1, **options), run(DDIMSampler(model), 1, **options))
        assert torch.isfinite(run(cls(model), 1)).all()


# ------------------------------------------------------------------------------------------------ CompVis' interface


def test_plms_gives_the_originals_numbers():
    call, arrays, sampler = load("plms_s20_cfg")
    torch.manual_seed(call["manual_seed"])
    samples, _ = PLMSSampler(sampler.model).sample(
        call["S"], 2, (4, 8, 8), arrays["in_cond"], verbose=False, x_T=arrays["in_x_T"], eta=0.0,
        unconditional_guidance_scale=call["unconditional_guidance_scale"],
        unconditional_conditioning=arrays["in_uncond"],
    )  # fmt: skip
    close(samples, arrays["out_samples"])


def test_plms_leaves_the_global_generator_where_the_original_does():
    """One draw for each use of eps: two in the first step, one in each other, and that of x_T before them."""
    torch.manual_seed(0)
    PLMSSampler(Model()).sample(5, 3, SHAPE, progress=False)
    after = torch.randn(4)
    torch.manual_seed(0)
    for _ in range(1 + 5 + 1):
        torch.randn(3, *SHAPE)
    assert torch.equal(after, torch.randn(4))


@pytest.mark.parametrize("cls", MULTISTEP)
def test_compvis_paths_lead_to_the_samplers(cls):
    from ldm.models.diffusion.dpm_solver import DPMSolverSampler as Dpm
    from ldm.models.diffusion.plms import PLMSSampler as Plms

    assert cls in (Dpm, Plms)


def test_what_a_sampler_says_of_eta_is_known_before_there_is_a_model():
    for sampler in (DDIMSampler, DPMSolverSampler):
        sampler.check_eta(0.5)
    PLMSSampler.check_eta(0.0)
    with pytest.raises(ValueError, match="eta = 0.5: PLMS is deterministic; choose eta = 0, or DDIMSampler"):
        PLMSSampler.check_eta(0.5)


def test_eta_is_refused_by_plms_and_without_effect_on_dpm_solver():
    with pytest.raises(ValueError, match="eta = 0.5: PLMS is deterministic; choose eta = 0, or DDIMSampler"):
        draw(5, PLMSSampler(Model()), eta=0.5)
    with pytest.warns(UserWarning, match="eta = 0.5 has no effect"):
        noisy = draw(5, DPMSolverSampler(Model()), eta=0.5)
    assert torch.equal(noisy, draw(5, DPMSolverSampler(Model())))


@pytest.mark.parametrize("order", [0, 3, 1.5, True, "2"])
def test_another_order_is_refused(order):
    with pytest.raises(ValueError, match="choose 1 .DDIM. or 2"):
        DPMSolverSampler(Model(), order=order)


@pytest.mark.parametrize("cls", MULTISTEP)
def test_all_of_samples_arguments_reach_the_step(cls):
    """Guidance, masks, correctors, limits and the codebook, in one run; each changes what comes out."""
    model = MixtureModel(MIX)
    model.__dict__["first_stage_model"] = type("VQ", (), {"quantize": staticmethod(lambda z: torch.round(4 * z) / 4)})

    class Corrector:
        def modify_score(self, model, eps, x, t, c, by):
            return eps + by

    x, (c, u) = X[:3], randn(2, 3, 4)
    plain = {"c": c, "ddim_discretize": "uniform"}
    guided = plain | {"unconditional_conditioning": u, "unconditional_guidance_scale": 3.0}
    out = [run(cls(model), 5, x, **options) for options in (
        plain, guided, guided | {"guidance_rescale": 0.7}, guided | {"ucg_schedule": [1, 2, 3, 2, 1]},
        plain | {"clip_x0": 0.3}, plain | {"dynamic_threshold": 0.9}, plain | {"quantize_x0": True},
        plain | {"score_corrector": Corrector(), "corrector_kwargs": {"by": 0.1}},
        plain | {"mask": torch.ones(3, 1, 2, 2) * 0.5, "x0": x * 0, "seeds": [1, 2, 3]},
        guided | {"image_conditioning": u - 1, "image_guidance_scale": 1.5},
    )]  # fmt: skip
    for i, a in enumerate(out):
        assert torch.isfinite(a).all()
        for b in out[:i]:
            assert not torch.allclose(a, b, atol=1e-4)


def test_the_codebook_is_where_plms_ends():
    """The last step of a run that ends without noise is x0 itself."""
    model = Model()
    model.__dict__["first_stage_model"] = type("VQ", (), {"quantize": staticmethod(lambda z: torch.round(4 * z) / 4)})
    out = draw(5, PLMSSampler(model), quantize_x0=True, final_alpha="one")
    assert torch.equal(out, torch.round(4 * out) / 4)


@pytest.mark.parametrize("cls, step", [(PLMSSampler, "p_sample_plms"), (DPMSolverSampler, "p_sample_dpm")])
def test_a_subclass_may_override_the_step(cls, step):
    calls = []

    def override(self, x, c, t, index, **how):
        calls.append(index)
        return getattr(cls, step)(self, x, c, t, index, **how)

    sampler = type("Mine", (cls,), {step: override})(Model())
    assert torch.equal(draw(5, sampler), draw(5, cls(Model()))) and calls == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("cls", MULTISTEP)
def test_decode_walks_the_lowest_steps(cls):
    model = MixtureModel(MIX)
    sampler = cls(model)
    sampler.make_schedule(20, verbose=False)
    z = sampler.stochastic_encode(X, torch.full((len(X),), 11), noise=randn(*X.shape, seed=9))
    a = sampler.levels().alpha_bar
    assert rms(sampler.decode(z, None, 12) - MIX.flow(z, a[11], model.alpha_bar[0], 300)) < 0.1


# ----------------------------------------------------------------------------------------------------------- spacings


@pytest.mark.parametrize("s", [1, 2, 10, 50, 333, 999, 1000])
@pytest.mark.parametrize("kind", ["sd", "zero", "cosine"])
def test_logsnr_gives_s_steps_from_the_last_timestep(s, kind):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    if kind == "cosine":
        bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.clip(1 - bar[1:] / bar[:-1], 0, 0.999)
    bar = NoiseSchedule.from_betas(rescale_zero_terminal_snr(betas) if kind == "zero" else betas).alpha_bar
    steps = make_timesteps("logsnr", s, 1000, alpha_bar=bar)
    assert len(steps) == s and steps[-1] == 999 and steps[0] >= 0 and (np.diff(steps) > 0).all()
    if s == 10 and kind == "sd":
        level = np.log(bar / (1 - bar))
        gaps = np.diff(np.append(level[0], level[steps]))
        assert abs(gaps / gaps.mean() - 1).max() < 0.15  # even, but for whole timesteps where noise is least


def test_logsnr_survives_schedules_without_levels():
    assert make_timesteps("logsnr", 1, 1, alpha_bar=np.array([0.5])).tolist() == [0]
    assert make_timesteps("logsnr", 2, 4, alpha_bar=np.ones(4)).tolist() == [0, 2]
    with pytest.raises(ValueError, match="'logsnr' places noise levels: pass alpha_bar"):
        make_timesteps("logsnr", 2, 4)


@pytest.mark.parametrize("s", [1, 7, 50, 999, 1000])
def test_time_uniform_ends_at_the_last_timestep_and_leaves_a_step_to_the_first(s):
    steps = make_timesteps("time_uniform", s, 1000)
    assert len(steps) == s and steps[-1] == 999 and (np.diff(steps) > 0).all()
    gaps = np.diff([0, *steps])
    assert gaps.max() - gaps.min() <= 1
