"""What DDIMSampler takes: CompVis' signatures, the options beyond them, subclasses, and the core that they reach."""

import copy
import inspect
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ldm.sampling import DDIMSampler, NoiseSchedule, make_beta_schedule, rescale_zero_terminal_snr
from ldm.sampling.arguments import SWALLOWED, Options, names_of
from ldm.sampling.guidance import pair_conditionings
from ldm.sampling.prediction import clip_x0, dynamic_threshold, predict
from ldm.sampling.transition import ddim_inverse_step, ddim_sigma, ddim_step

SHAPE = (2, 4)
X_T = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
C, U = torch.linspace(-1, 1, 3), torch.full((3,), 0.25)


class Model(nn.Module):
    """A smooth network on a small schedule; `calls` holds the batch and the timestep of each call."""

    def __init__(self, parameterization="eps", timesteps=100, zero_snr=False):
        super().__init__()
        betas = make_beta_schedule("linear", timesteps, 0.01, 0.12)
        schedule = NoiseSchedule.from_betas(rescale_zero_terminal_snr(betas) if zero_snr else betas)
        for name, values in schedule.buffers().items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.num_timesteps, self.parameterization, self.calls = timesteps, parameterization, []

    def apply_model(self, x, t, c):
        self.calls.append((len(x), int(t[0])))
        shift = 0.0 if c is None else c.reshape(-1, *[1] * (x.ndim - 1))
        return torch.sin(x) * 0.5 + 0.2 * torch.cos(t / 30.0).reshape(-1, *[1] * (x.ndim - 1)) + shift


def run(s=5, sampler=None, **options):
    sampler = sampler or DDIMSampler(Model())
    return sampler.sample(s, 3, SHAPE, **{"x_T": X_T, "progress": False} | options)[0]


def guided(**options):
    return {"conditioning": C, "unconditional_conditioning": U, "unconditional_guidance_scale": 3.0} | options


# signatures


POSITIONAL = {
    "sample": "S batch_size shape conditioning callback normals_sequence img_callback quantize_x0 eta mask x0 "
    "temperature noise_dropout score_corrector corrector_kwargs verbose x_T log_every_t unconditional_guidance_scale "
    "unconditional_conditioning dynamic_threshold ucg_schedule",
    "ddim_sampling": "cond shape x_T ddim_use_original_steps callback timesteps quantize_denoised mask x0 img_callback "
    "log_every_t temperature noise_dropout score_corrector corrector_kwargs unconditional_guidance_scale "
    "unconditional_conditioning dynamic_threshold ucg_schedule",
    "p_sample_ddim": "x c t index repeat_noise use_original_steps quantize_denoised temperature noise_dropout "
    "score_corrector corrector_kwargs unconditional_guidance_scale unconditional_conditioning dynamic_threshold",
    "make_schedule": "ddim_num_steps ddim_discretize ddim_eta verbose",
    "encode": "x0 c t_enc use_original_steps return_intermediates unconditional_guidance_scale "
    "unconditional_conditioning callback",
    "decode": "x_latent cond t_start unconditional_guidance_scale unconditional_conditioning use_original_steps "
    "callback",
    "stochastic_encode": "x0 t use_original_steps noise",
}


@pytest.mark.parametrize("method", POSITIONAL)
def test_positions_are_compvis(method):
    parameters = list(inspect.signature(getattr(DDIMSampler, method)).parameters.values())[1:]
    assert [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD] == POSITIONAL[method].split()


def test_sample_spells_out_every_option():
    parameters = inspect.signature(DDIMSampler.sample).parameters.values()
    assert {p.name for p in parameters if p.kind == p.KEYWORD_ONLY} == set(names_of(Options))


def test_an_unknown_keyword_is_told_what_is_like_it():
    with pytest.raises(TypeError, match="'temprature': did you mean temperature"):
        run(temprature=0.5)
    with pytest.raises(TypeError, match="'temprature': did you mean temperature"):
        DDIMSampler(Model()).steps(5, 3, SHAPE, temprature=0.5)
    with pytest.raises(TypeError, match="'clip_xo': did you mean clip_x0"):
        DDIMSampler(Model(), clip_xo=True)


@pytest.mark.parametrize("name", SWALLOWED)
def test_a_keyword_that_compvis_swallowed_gets_a_warning_at_the_callers_line(name):
    with pytest.warns(UserWarning, match=f"{name} has no effect on sample") as caught:
        out = run(**{name: True})
    assert torch.equal(out, run()) and {w.filename for w in caught} == {__file__}


def test_warnings_point_at_the_callers_line_from_every_depth():
    sampler = DDIMSampler(Model())
    with pytest.warns(UserWarning, match="temperature") as caught:
        run(sampler=sampler, temperature=2.0)
        sampler.steps(5, 3, SHAPE, temperature=2.0)
        sampler.ddim_sampling(None, (3, *SHAPE), temperature=2.0, progress=False)
    assert {w.filename for w in caught} == {__file__} and len(caught) == 3


@pytest.mark.parametrize(
    "options, name",
    [
        ({"noise_device": "cpu", "generator": torch.Generator()}, "noise_device"),
        ({"timesteps": [90, 60, 30, 20, 10], "ddim_discretize": "quad"}, "ddim_discretize"),
        ({"guidance_interval": (10, 50)}, "guidance_interval"),
        ({"ucg_schedule": [2.0] * 5}, "ucg_schedule"),
        (guided(unconditional_guidance_scale=1.0), "unconditional_conditioning"),
        (guided(guidance_interval=(97, 98)), "unconditional_conditioning"),
    ],
)
def test_an_option_without_effect_gets_a_warning_by_name(options, name):
    with pytest.warns(UserWarning, match=f"{name} has no effect"):
        run(**options)


def test_options_that_make_schedule_spends_have_no_effect_later():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    with pytest.warns(UserWarning, match="final_alpha has no effect: it is an argument of make_schedule"):
        sampler.decode(X_T, None, 3, final_alpha="one")


# the constructor's options


def test_the_constructors_options_are_defaults_that_a_call_overrides():
    sampler = DDIMSampler(Model(), clip_x0=0.5, ddim_discretize="trailing", final_alpha="one")
    assert torch.equal(run(sampler=sampler), run(clip_x0=0.5, ddim_discretize="trailing", final_alpha="one"))
    plain = run(sampler=sampler, clip_x0=False, ddim_discretize="uniform", final_alpha="first")
    assert torch.equal(plain, run())
    assert torch.equal(run(sampler=sampler), run(clip_x0=0.5, ddim_discretize="trailing", final_alpha="one"))


def test_they_reach_decode_and_steps_too_and_warn_of_nothing_where_they_are_idle():
    sampler = DDIMSampler(Model(), clip_x0=0.5, guidance_rescale=0.7, blend_final=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (*_, last) = sampler.steps(5, 3, SHAPE, x_T=X_T)
        assert torch.equal(last.x_prev, run(clip_x0=0.5))
        sampler.make_schedule(5, verbose=False)
        assert torch.equal(sampler.decode(X_T, None, 5), run(clip_x0=0.5))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"final_alpha": "zero"}, "final_alpha = 'zero'.*\"one\""),
        ({"guidance_rescale": 1.5}, "guidance_rescale = 1.5"),
        ({"clip_x0": -1.0}, "clip_x0 = -1.0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_where_it_is_given(options, message):
    with pytest.raises(ValueError, match=message):
        DDIMSampler(Model(), **options)
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_schedule_by_name_is_said_to_be_the_models():
    with pytest.warns(UserWarning, match="schedule = 'cosine' has no effect"):
        assert DDIMSampler(Model(), "cosine").schedule == "cosine"


def test_device_overrides_the_models():
    model = Model()
    assert DDIMSampler(model).device == torch.device("cpu")
    model.device = "meta"
    assert DDIMSampler(model).device == torch.device("meta")
    assert DDIMSampler(model, device="cpu").device == torch.device("cpu")


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


# noise


def test_a_sequence_of_noise_is_the_noise_that_is_used():
    g = torch.Generator().manual_seed(3)
    drawn = run(eta=1.0, generator=g)
    g = torch.Generator().manual_seed(3)
    given = [torch.randn(3, *SHAPE, generator=g) for _ in range(5)]
    assert torch.equal(run(eta=1.0, normals_sequence=given), drawn)
    assert torch.equal(run(eta=1.0, normals_sequence=torch.stack(given)), drawn)
    state = torch.get_rng_state()
    run(eta=1.0, normals_sequence=given)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_device_draws_from_that_devices_generator():
    torch.manual_seed(5)
    here = run(eta=1.0)
    torch.manual_seed(5)
    assert torch.equal(run(eta=1.0, noise_device="cpu"), here)


def test_a_seed_may_be_any_kind_of_integer():
    plain = run(eta=1.0, seeds=[1, 2, 3])
    assert torch.equal(run(eta=1.0, seeds=np.array([1, 2, 3])), plain)
    assert torch.equal(run(eta=1.0, seeds=torch.tensor([1, 2, 3])), plain)


# guidance


def test_the_unconditional_half_comes_first():
    seen = []

    class Spy(Model):
        def apply_model(self, x, t, c):
            seen.append(c)
            return super().apply_model(x, t, c)

    run(1, DDIMSampler(Spy()), **guided())
    assert torch.equal(seen[0], torch.cat([U, C]))


def test_two_calls_say_what_one_says():
    one, two = Model(), Model()
    torch.testing.assert_close(
        run(sampler=DDIMSampler(two, batch_guidance=False), **guided()), run(sampler=DDIMSampler(one), **guided())
    )
    assert (
        {b for b, _ in one.calls} == {6} and {b for b, _ in two.calls} == {3} and len(two.calls) == 2 * len(one.calls)
    )


def test_guidance_acts_within_its_interval_only():
    model = Model()
    run(10, DDIMSampler(model), **guided(guidance_interval=(21, 61)))
    assert {t for b, t in model.calls if b == 6} == {21, 31, 41, 51, 61}
    with pytest.raises(ValueError, match=r"guidance_interval = \(60, 20\)"):
        run(**guided(guidance_interval=(60, 20)))


def test_conditionings_pair_leaf_by_leaf_or_not_at_all():
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    paired = pair_conditionings({"x": [a, None], "y": {"z": a}, "n": 7}, {"x": [b, None], "y": {"z": b}, "n": 7})
    both = torch.cat([a, b])
    assert torch.equal(paired["x"][0], both) and torch.equal(paired["y"]["z"], both)
    assert paired["x"][1] is None and paired["n"] == 7
    assert isinstance(pair_conditionings((a,), (b,)), tuple)
    for uncond, cond in [
        (a, b[:, :2]),
        ([a], [b, b]),
        ({"x": a}, {"y": b}),
        ({"x": None}, {"x": b}),
        ({"n": 6}, {"n": 7}),
        (["same", "words"], ["same", "words"]),  # one for each sample: only the model could double them
        (torch.tensor(1), torch.tensor(1)),
    ]:
        assert pair_conditionings(uncond, cond) is None


@pytest.mark.parametrize("uncond", [{"c_concat": None, "c_crossattn": [U]}, {"c_concat": [U], "c_crossattn": [U]}])
def test_a_part_may_be_missing_on_one_side(uncond):
    """ControlNet's guess mode: no hint for the unconditional half."""

    class Hinted(Model):
        def apply_model(self, x, t, c):
            hint = 0.0 if c["c_concat"] is None else 0.1 * c["c_concat"][0].reshape(-1, 1, 1)
            return super().apply_model(x, t, c["c_crossattn"][0]) + hint

    model = Hinted()
    out = run(
        2,
        DDIMSampler(model),
        **guided(conditioning={"c_concat": [C], "c_crossattn": [C]}, unconditional_conditioning=uncond),
    )
    assert torch.isfinite(out).all() and {b for b, _ in model.calls} == ({3} if uncond["c_concat"] is None else {6})


# what the model predicts


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.999])
def test_a_prediction_lies_on_the_line_through_x_t(kind, alpha_bar):
    x, output = X_T.double(), torch.sin(X_T.double())
    x0, eps = predict(output, x, alpha_bar, kind)
    torch.testing.assert_close(alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps, x)
    said = {"eps": eps, "x0": x0, "v": alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0}[kind]
    torch.testing.assert_close(said, output)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("alpha_bar, alpha_bar_prev", [(0.01, 0.05), (0.5, 0.6), (0.9, 0.999)])
def test_the_inverse_step_undoes_the_step_if_the_model_says_the_same(kind, alpha_bar, alpha_bar_prev):
    x, output = X_T.double(), torch.sin(X_T.double())
    x_prev = ddim_step(*predict(output, x, alpha_bar, kind), alpha_bar_prev)
    torch.testing.assert_close(ddim_inverse_step(x_prev, output, alpha_bar, alpha_bar_prev, kind), x)


def test_a_v_step_from_zero_signal_can_be_undone_and_an_x0_step_to_none_cannot():
    x, output = X_T.double(), torch.sin(X_T.double())
    x_prev = ddim_step(*predict(output, x, 0.0, "v"), 0.3)
    torch.testing.assert_close(ddim_inverse_step(x_prev, output, 0.0, 0.3, "v"), x)
    with pytest.raises(ValueError, match="cannot be undone"):
        ddim_inverse_step(x, output, 0.5, 1.0, "x0")


def test_sigma_is_the_ddpm_posterior_at_eta_one_and_nothing_where_there_is_no_step():
    beta = 1 - 0.5 / 0.8
    assert ddim_sigma(0.5, 0.8, 1.0) == pytest.approx(math.sqrt((1 - 0.8) / (1 - 0.5) * beta))
    assert ddim_sigma(0.5, 0.8, 0.5) == pytest.approx(ddim_sigma(0.5, 0.8, 1.0) / 2)
    assert ddim_sigma(1.0, 1.0, 1.0) == 0 and ddim_sigma(0.5, 0.5, 1.0) == 0


def test_more_noise_than_the_next_level_holds_is_refused():
    with pytest.raises(ValueError, match="more noise than the next level holds"):
        ddim_step(X_T, X_T, 0.9, sigma=0.5)


def test_clipping_and_thresholding_limit_x0_alone():
    x0 = torch.tensor([[-3.0, 0.5, 1.0, 2.0], [0.1, -0.2, 0.3, 0.4]])
    assert torch.equal(clip_x0(x0, True), x0.clamp(-1, 1)) and torch.equal(clip_x0(x0, 2), x0.clamp(-2, 2))
    out = dynamic_threshold(x0, 0.75)
    s = torch.tensor([[3.0, 2.0, 1.0, 0.5]]).quantile(0.75)
    torch.testing.assert_close(out[0], x0[0].clamp(-s, s) / s)
    assert torch.equal(out[1], x0[1]), "a sample within ±1 is left alone"


def test_limits_reach_every_step():
    sampler = DDIMSampler(Model())
    for options, bound in (({"clip_x0": True}, 1), ({"clip_x0": 0.25}, 0.25), ({"dynamic_threshold": 0.9}, 1)):
        assert all(step.x0.abs().max() <= bound for step in sampler.steps(5, 3, SHAPE, x_T=3 * X_T, **options))
    with pytest.raises(ValueError, match="dynamic_threshold = 0.9 and clip_x0 = True both"):
        run(clip_x0=True, dynamic_threshold=0.9)
    with pytest.raises(ValueError, match="dynamic_threshold = 99.5"):
        run(dynamic_threshold=99.5)


class Corrector:
    def __init__(self):
        self.seen = []

    def modify_score(self, model, e_t, x, t, c):
        self.seen.append(e_t)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(leaf.pow(3).sum(), leaf)
        return e_t - 0.01 * gradient


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_a_score_corrector_sees_eps_and_needs_no_kwargs(kind):
    corrector, sampler = Corrector(), DDIMSampler(Model(kind))
    out = run(sampler=sampler, score_corrector=corrector)
    alpha_bar = sampler.levels().alpha_bar[-1]
    output = sampler.model.apply_model(X_T, torch.full((3,), int(sampler.ddim_timesteps[-1])), None)
    torch.testing.assert_close(corrector.seen[0], predict(output, X_T, alpha_bar, kind)[1])
    assert not out.requires_grad and not torch.equal(out, run(sampler=DDIMSampler(Model(kind))))


def test_a_score_corrector_at_zero_signal_leaves_x0_and_stays_finite():
    sampler = DDIMSampler(Model("v", zero_snr=True), ddim_discretize="trailing")
    assert sampler.model.alphas_cumprod[-1] == 0
    assert torch.isfinite(run(sampler=sampler, score_corrector=Corrector())).all()


# encode


def test_encode_keeps_about_as_many_intermediates_as_asked_for():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(20, verbose=False)
    heard = []
    x, out = sampler.encode(X_T, None, 20, return_intermediates=4, callback=heard.append)
    assert out["intermediate_steps"] == [0, 5, 10, 15, 18, 19] and len(out["intermediates"]) == 6
    assert torch.equal(out["intermediates"][-1], x) and heard == list(range(20))
    assert sampler.encode(X_T, None, 3, return_intermediates=9)[1]["intermediate_steps"] == [0, 1, 2]
    assert "intermediates" not in sampler.encode(X_T, None, 3)[1]


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_decode_retraces_encode_for_every_prediction(kind):
    sampler, errors = DDIMSampler(Model(kind, 400)), []
    for s in (20, 40, 80):
        sampler.make_schedule(s, verbose=False)
        x, _ = sampler.encode(X_T.double(), C, s)
        errors.append((sampler.decode(x, C, s) - X_T).abs().max().item())
    assert errors[2] < 0.75 * errors[1] < 0.75**2 * errors[0], errors


def test_a_level_beyond_the_schedule_is_refused():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(10, verbose=False)
    with pytest.raises(ValueError, match="t = 10: there are 10 levels; choose from 0 to 9"):
        sampler.stochastic_encode(X_T, 10)
    with pytest.raises(ValueError, match="t_start = 11: there are 10 steps"):
        sampler.decode(X_T, None, 11)
    assert torch.equal(sampler.decode(X_T, None, 0), X_T)


def test_nan_names_the_first_timestep():
    class Broken(Model):
        def apply_model(self, x, t, c):
            out = super().apply_model(x, t, c)
            return out * float("nan") if t[0] <= 41 else out

    sampler = DDIMSampler(Broken())
    with pytest.raises(FloatingPointError, match="after step 7 of 10, at timestep 31.*float32"):
        run(10, sampler, timesteps=[91, 81, 71, 61, 55, 51, 31, 21, 11, 1])
    with pytest.raises(FloatingPointError, match="after step 1 of 10, at timestep 1,"):
        sampler.encode(X_T, None, 10)


# subclasses with CompVis' signatures


class OldStep(DDIMSampler):
    def p_sample_ddim(
        self, x, c, t, index, repeat_noise=False, use_original_steps=False, quantize_denoised=False, temperature=1.0,
        noise_dropout=0.0, score_corrector=None, corrector_kwargs=None, unconditional_guidance_scale=1.0,
        unconditional_conditioning=None,
    ):  # fmt: skip
        return super().p_sample_ddim(x + 0.1, c, t, index)


class OldSchedule(DDIMSampler):
    def make_schedule(self, ddim_num_steps, ddim_discretize="uniform", ddim_eta=0.0, verbose=True):
        super().make_schedule(ddim_num_steps, "quad", ddim_eta, verbose)


class OldLoop(DDIMSampler):
    def ddim_sampling(
        self, cond, shape, x_T=None, ddim_use_original_steps=False, callback=None, timesteps=None,
        quantize_denoised=False, mask=None, x0=None, img_callback=None, log_every_t=100, temperature=1.0,
        noise_dropout=0.0, score_corrector=None, corrector_kwargs=None, unconditional_guidance_scale=1.0,
        unconditional_conditioning=None,
    ):  # fmt: skip
        return super().ddim_sampling(cond, shape, x_T=x_T + 1)


class OldBuffer(DDIMSampler):
    def register_buffer(self, name, attr):
        setattr(self, name, attr)


def test_overrides_with_compvis_signatures_are_honoured():
    def out(kind, **options):
        return kind(Model()).sample(5, 3, SHAPE, x_T=X_T, verbose=False, **options)[0]

    plain = out(DDIMSampler)
    assert not torch.equal(out(OldStep), plain)
    assert torch.equal(out(OldSchedule), out(DDIMSampler, ddim_discretize="quad"))
    assert torch.equal(out(OldLoop), DDIMSampler(Model()).sample(5, 3, SHAPE, x_T=X_T + 1, verbose=False)[0])
    assert torch.equal(out(OldBuffer), plain)


def test_an_override_goes_for_decode_and_steps_too():
    sampler = OldStep(Model())
    sampled = run(sampler=sampler)
    (*_, last) = sampler.steps(5, 3, SHAPE, x_T=X_T)
    assert torch.equal(last.x_prev, sampled) and torch.equal(sampler.decode(X_T, None, 5), sampled)


# the object


def test_a_copy_and_a_pickle_sample_the_same():
    sampler = DDIMSampler(Model(), clip_x0=2.0)
    sampler.make_schedule(5, verbose=False)
    for twin in (copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert torch.equal(run(sampler=twin), run(sampler=sampler))
        assert not list(twin.modules())[1:], "the model became a sub-module"
    model = Model()
    model.sampler = DDIMSampler(model)
    twin = copy.deepcopy(model)
    assert twin.sampler.model is twin


def test_another_model_may_be_put_in():
    sampler, model = DDIMSampler(Model()), Model("v")
    sampler.model = model
    assert sampler.model is model and not list(sampler.children())
    assert torch.equal(run(sampler=sampler), run(sampler=DDIMSampler(model)))


def test_what_is_registered_may_be_a_tensor_an_array_and_a_tensor_again():
    sampler = DDIMSampler(Model())
    for value in (torch.ones(2), np.ones(2), torch.zeros(3)):
        sampler.register_buffer("mine", value)
        assert sampler.mine.shape == value.shape and type(sampler.mine) is type(value)
    assert not sampler.state_dict()


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
