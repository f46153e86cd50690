"""Options that diffusers, Bumblebee and ermongroup/ddim have: identities first, then a peer's numbers."""

import math
import warnings

import numpy as np
import pytest
import torch
from _mixture import MixtureModel, levels, randn, reference_ddim, two_modes
from _small_model import SHAPE, X_T, Model, run
from omegaconf import OmegaConf

from ldm.sampling import DDIMSampler, make_timesteps
from ldm.sampling.schedule import Levels

T = 1000


class Rough(Model):
    """Its x0 leaves ±1, so that limits are felt."""

    def apply_model(self, x, t, c):
        return 3 * super().apply_model(x, t, c)


# steps_offset


def test_leading_with_an_offset_of_one_is_stable_diffusions_list():
    sampler = DDIMSampler(MixtureModel(two_modes()))
    sampler.make_schedule(50, "leading", verbose=False, steps_offset=1)
    assert sampler.ddim_timesteps.tolist() == list(range(1, 1000, 20))
    sampler.make_schedule(7, "leading", verbose=False, steps_offset=3)
    assert sampler.ddim_timesteps.tolist() == [3 + 142 * i for i in range(7)]


@pytest.mark.parametrize("spacing, own", [("uniform", 1), ("compvis", 1), ("quad", 1), ("leading", 0)])
def test_the_offset_that_a_spacing_has_anyway_changes_nothing(spacing, own):
    for s in (1, 2, 5, 10, 20):
        assert make_timesteps(spacing, s, T, own).tolist() == make_timesteps(spacing, s, T).tolist()


def test_without_compvis_offset_the_spacings_are_ermongroups_skip_types():
    for s in (1, 2, 5, 7, 10, 13, 20, 25, 29):
        uniform, quad = range(0, T, T // s), [int(v) for v in np.linspace(0, np.sqrt(T * 0.8), s) ** 2]
        assert make_timesteps("compvis", s, T, 0).tolist() == list(uniform)
        assert make_timesteps("quad", s, T, 0).tolist() == quad
        if T % s == 0:
            assert make_timesteps("leading", s, T).tolist() == list(uniform)
    for s in (30, 50, 100, 1000):  # theirs visits some timesteps twice here, which leaves x as it is
        steps = make_timesteps("quad", s, T, 0)
        assert len(steps) == s and steps[0] == 0 and np.all(np.diff(steps) > 0) and steps[-1] < T


@pytest.mark.parametrize("skip, spacing", [("uniform", "compvis"), ("quad", "quad")])
def test_a_run_of_ermongroups_program_is_equation_12_on_its_sequence(skip, spacing):
    s, model, x_T = 20, MixtureModel(two_modes()), randn(3, 1, 2, 2)
    noise = [randn(3, 1, 2, 2, seed=i) for i in range(s)]
    sequence = range(0, T, T // s) if skip == "uniform" else (np.linspace(0, np.sqrt(T * 0.8), s) ** 2).astype(int)
    out, _ = DDIMSampler(model).sample(
        s, 3, (1, 2, 2), x_T=x_T, eta=0.4, normals_sequence=noise, progress=False,
        ddim_discretize=spacing, steps_offset=0, final_alpha="one",
    )  # fmt: skip
    a = np.append(model.alpha_bar[np.asarray(sequence)][::-1], 1.0)
    torch.testing.assert_close(out, reference_ddim(model.mixture.eps, x_T, a, 0.4, noise), rtol=0, atol=1e-11)


def test_an_offset_that_leaves_the_schedule_is_refused():
    with pytest.raises(ValueError, match="steps_offset = 1 asks for timestep 1000 with S = 1000.*smaller offset, or"):
        run(1000, DDIMSampler(Model(timesteps=1000)), ddim_discretize="leading", steps_offset=1)
    with pytest.raises(ValueError, match="steps_offset = 300 asks for timestep 1100"):
        make_timesteps("quad", 10, T, 300)
    for offset in (-1, 0.5, "abc"):
        with pytest.raises(ValueError, match=f"steps_offset = {offset!r}: give the first timestep"):
            run(ddim_discretize="leading", steps_offset=offset)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"ddim_discretize": "trailing"}, 'ddim_discretize = "trailing" has none'),
        ({"ddim_discretize": "linspace"}, 'ddim_discretize = "linspace" has none'),
        ({"timesteps": [90, 60, 30, 20, 10]}, "timesteps are given"),
    ],
)
def test_an_offset_without_effect_gets_a_warning_where_it_is_given_and_none_as_a_default(options, why, recwarn):
    plain = run(**options)
    assert torch.equal(run(sampler=DDIMSampler(Model(), steps_offset=3), **options), plain) and not recwarn.list
    with pytest.warns(UserWarning, match=f"steps_offset has no effect: {why}") as caught:
        assert torch.equal(run(steps_offset=3, **options), plain)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=f"steps_offset has no effect: {why}"):
        DDIMSampler(Model()).make_schedule(5, verbose=False, steps_offset=3, **options)


# sigma


def test_sigma_hat_and_eta_one_agree_in_the_limit():
    ratios = []
    for s in (10, 100, 1000):
        sampler = DDIMSampler(MixtureModel(two_modes()))
        sampler.make_schedule(s, ddim_eta=1.0, verbose=False, sigma="large")
        a = levels(sampler, sampler.model.alpha_bar[0])[::-1]
        hat = (1 - a[1:] / a[:-1]) ** 0.5
        small, scale = np.array(sampler.levels().sigma), np.array(sampler.levels().noise_scale)
        np.testing.assert_allclose((small * scale)[1:], hat[1:])
        torch.testing.assert_close(sampler.ddim_sigmas, torch.as_tensor(small, dtype=torch.float32))  # what bodies read
        assert (scale[1:] > 1).all(), "the larger one"
        ratios.append(scale[s // 2] - 1)
    assert ratios[0] > 5 * ratios[1] > 25 * ratios[2] > 0, ratios


def test_sigma_large_is_ddpm_with_the_larger_variance():
    """Ho et al. 2020, algorithm 2 with variance beta, x0 clipped: the posterior mean of eq. 7, no noise at the end."""
    s, x, model = 10, randn(3, 1, 2, 2, seed=1), MixtureModel(two_modes())
    noise = [randn(3, 1, 2, 2, seed=20 + i) for i in range(s)]
    out, _ = DDIMSampler(model).sample(
        s, 3, (1, 2, 2), x_T=x, eta=1.0, sigma="large", clip_x0=True, rederive_eps=True, ddim_discretize="leading",
        final_alpha="one", normals_sequence=noise, progress=False,
    )  # fmt: skip
    a = np.append(model.alpha_bar[np.arange(0, T, T // s)[::-1]], 1.0)
    for i, (now, to) in enumerate(zip(a[:-1], a[1:])):
        beta, x0 = 1 - now / to, model.mixture.x0(x, now).clamp(-1, 1)
        mean = (to**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - to) * x) / (1 - now)
        x = mean + (beta**0.5 * noise[i] if to < 1 else 0)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-12)


def test_sigma_large_goes_with_eta_one_and_takes_temperature_and_seeds():
    with pytest.raises(ValueError, match='sigma = "large" is DDPM\'s and goes with eta = 1, not 0: pass eta=1'):
        run(sigma="large")
    with pytest.raises(ValueError, match="sigma = 'huge': choose \"small\""):
        run(sigma="huge", eta=1.0)
    options = {"eta": 1.0, "sigma": "large", "seeds": [1, 2, 3]}
    assert not torch.equal(run(**options), run(**options | {"sigma": "small"}))
    assert torch.equal(run(**options, temperature=0.0), run(**options | {"sigma": "small"}, temperature=0.0))
    torch.manual_seed(0)
    assert torch.isfinite(run(eta=1.0, sigma="large")).all()


def test_the_levels_keep_the_noise_scale_where_a_run_starts_lower_down():
    whole = Levels.of([1, 2, 3], [0.9, 0.5, 0.1], [0.95, 0.9, 0.5], 1.0, "large")
    assert whole.lowest(2) == Levels.of([1, 2], [0.9, 0.5], [0.95, 0.9], 1.0, "large")
    assert Levels.of([1, 2], [0.9, 0.5], [0.95, 0.9], 1.0).noise_scale == (1.0, 1.0)


# rederive_eps and dynamic_threshold_max


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_rederiving_changes_nothing_where_nothing_was_limited(kind):
    sampler, x_T = DDIMSampler(Model(kind)), X_T.double()
    plain = run(sampler=sampler, x_T=x_T)
    torch.testing.assert_close(run(sampler=sampler, x_T=x_T, clip_x0=1e6, rederive_eps=True), plain, rtol=0, atol=1e-6)
    assert torch.equal(run(sampler=sampler, x_T=x_T, clip_x0=1e6), plain)


def test_rederived_eps_and_x0_agree_about_x_t():
    def step(**options):
        sampler = DDIMSampler(Rough())
        first = next(sampler.steps(5, 3, SHAPE, x_T=2 * X_T.double(), clip_x0=0.5, **options))
        a, to = sampler.levels().alpha_bar[-1], sampler.levels().alpha_bar_prev[-1]
        return first.x0.abs().max(), (first.x_prev - to**0.5 * first.x0) / (1 - to) ** 0.5, (2 * X_T, first.x0, a)

    limit, eps, (x_t, x0, a) = step(rederive_eps=True)
    assert limit == 0.5
    torch.testing.assert_close(a**0.5 * x0 + (1 - a) ** 0.5 * eps, x_t.double())
    _, raw, _ = step()
    assert not torch.isclose(raw, eps).all()


def test_rederiving_without_a_limit_gets_a_warning():
    with pytest.warns(UserWarning, match="rederive_eps has no effect: nothing limits x0"):
        run(rederive_eps=True)


def test_a_highest_threshold_of_one_is_clipping_and_of_infinity_nothing():
    options = {"sampler": DDIMSampler(Rough()), "x_T": 3 * X_T}
    assert torch.equal(run(dynamic_threshold=0.9, dynamic_threshold_max=1.0, **options), run(clip_x0=True, **options))
    free = run(dynamic_threshold=0.9, **options)
    assert torch.equal(run(dynamic_threshold=0.9, dynamic_threshold_max=math.inf, **options), free)
    between = run(dynamic_threshold=0.9, dynamic_threshold_max=1.5, **options)
    assert not torch.equal(between, free) and not torch.equal(between, run(clip_x0=True, **options))


def test_a_highest_threshold_that_does_nothing_or_cannot_be_is_told_of():
    with pytest.warns(UserWarning, match="dynamic_threshold_max has no effect: there is no dynamic_threshold"):
        run(dynamic_threshold_max=2.0)
    for value in (0.5, math.nan, "abc"):
        with pytest.raises(ValueError, match=f"dynamic_threshold_max = {value!r}: give the most"):
            run(dynamic_threshold=0.9, dynamic_threshold_max=value)


# where options are said


OPTIONS = [
    ({"steps_offset": 3}, {}),
    ({"betas": [0.02] * 100}, {}),
    ({"zero_terminal_snr": True}, {}),
    ({"sigma": "large"}, {"eta": 1.0, "seeds": [1, 2, 3]}),
    ({"rederive_eps": True}, {"clip_x0": 0.5}),
    ({"dynamic_threshold_max": 1.2}, {"dynamic_threshold": 0.9}),
]


@pytest.mark.parametrize("option, others", OPTIONS, ids=lambda o: "".join(o))
def test_an_option_acts_and_is_the_same_in_the_constructor_in_sample_and_in_steps(option, others):
    options = {"x_T": 3 * X_T} | others
    said = run(sampler=DDIMSampler(Rough()), **options, **option)
    assert not torch.equal(said, run(sampler=DDIMSampler(Rough()), **options)), "it does nothing"
    assert torch.equal(run(sampler=DDIMSampler(Rough(), **option), **options), said)
    (*_, last) = DDIMSampler(Rough()).steps(5, 3, SHAPE, **options, **option)
    assert torch.equal(last.x_prev, said)


@pytest.mark.parametrize("option, others", OPTIONS, ids=lambda o: "".join(o))
def test_an_option_may_stand_in_a_config(option, others):
    import _config
    from _cli import Parser

    params = {**option, **{k: v for k, v in others.items() if k != "seeds"}}
    config = OmegaConf.create({"sampler": {"target": _config.SAMPLER, "params": params}})
    flags = Parser("test").parse_args([])
    built, given = _config.sampler_options(config, DDIMSampler, flags)
    assert (built | given).items() >= params.items()
    wrong = OmegaConf.merge(config, {"sampler": {"params": {next(iter(option)): [["no"]]}}})
    with pytest.raises(ValueError, match=f"sampler.params.{next(iter(option))} is"):
        _config.sampler_options(wrong, DDIMSampler, flags)


def test_an_override_of_make_schedule_gets_what_is_said_and_nothing_else():
    heard = []

    class Hears(DDIMSampler):
        def make_schedule(self, ddim_num_steps, ddim_discretize="uniform", ddim_eta=0.0, verbose=True, **ours):
            heard.append(ours)
            super().make_schedule(ddim_num_steps, ddim_discretize, ddim_eta, verbose, **ours)

    run(sampler=Hears(Model()), final_alpha="first", zero_terminal_snr=False, sigma="small")
    run(sampler=Hears(Model()), final_alpha="one", steps_offset=0, sigma="small")
    assert heard == [{}, {"final_alpha": "one", "steps_offset": 0}]


@pytest.mark.parametrize("name", ["zero_terminal_snr", "rederive_eps", "batch_guidance", "blend_final", "gradual_mask"])
@pytest.mark.parametrize("value", ["false", math.nan, 2])
def test_a_yes_or_no_in_other_words_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = .*: choose True or False"):
        run(**{name: value})


def test_encode_says_that_a_noisy_schedule_does_not_come_back():
    sampler = DDIMSampler(Model())
    for eta, said in ((1.0, 1), (0.0, 0)):
        sampler.make_schedule(5, ddim_eta=eta, verbose=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sampler.encode(X_T, None, 5)
        assert sum("eta is not 0" in str(w.message) for w in caught) == said


def test_sigma_large_is_said_to_be_beyond_a_step_of_ones_own():
    class Own(DDIMSampler):
        def p_sample_ddim(self, *args, **kwargs):
            return super().p_sample_ddim(*args, **kwargs)

    with pytest.warns(UserWarning, match="has to call super"):
        run(sampler=Own(Model()), sigma="large", eta=1.0)
