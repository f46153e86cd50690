"""Bad input is refused by name and value, before the model runs, and the sampler is none the worse for it."""

import math
import warnings

import pytest
import torch
from _mixture import MixtureModel, randn, two_modes, zero_terminal_snr_betas

from ldm.sampling import DDIMSampler

B, SHAPE, S = 2, (1, 2, 2), 5
X = randn(B, *SHAPE, dtype=torch.float32)
C = randn(B, 3, dtype=torch.float32)
nan, inf = math.nan, math.inf


def make(kind="eps"):
    return DDIMSampler(MixtureModel(two_modes(torch.float32), kind))


def sample(sampler, **options):
    return sampler.sample(**{"S": S, "batch_size": B, "shape": SHAPE, "progress": False} | options)[0]


def good(sampler):
    return sample(sampler, conditioning=C, eta=1.0, seeds=[1, 2])


def guided(**options):
    return {"conditioning": C, "unconditional_conditioning": C * 0, "unconditional_guidance_scale": 2.0} | options


# name: (arguments, what the message must hold: the offending value, and the name or a choice)
REFUSED = {
    "no steps": ({"S": 0}, r"\b0\b"),
    "negative steps": ({"S": -3}, r"-3"),
    "more steps than timesteps": ({"S": 1001}, r"(?s)1001.*1000|1000.*1001"),
    "half a step": ({"S": 2.5}, r"2\.5"),
    "steps as text": ({"S": "ten"}, r"ten"),
    "an empty batch": ({"batch_size": 0}, r"batch_size.*\b0\b"),
    "a batch of text": ({"batch_size": "two"}, r"two"),
    "an empty side": ({"shape": (1, 0, 2)}, r"\b0\b"),
    "no shape": ({"shape": 4}, r"shape.*4"),
    "negative eta": ({"eta": -0.5}, r"eta.*-0\.5"),
    "NaN eta": ({"eta": nan}, r"eta.*nan"),
    "infinite eta": ({"eta": inf}, r"eta.*inf"),
    "too noisy an eta": ({"eta": 40.0}, r"40"),
    "unknown spacing": ({"ddim_discretize": "cubic"}, r"(?s)cubic.*uniform"),
    "CompVis' spacing where it ran out of range": ({"S": 600, "ddim_discretize": "compvis"}, r"\b(600|1000)\b"),
    "unknown final alpha": ({"final_alpha": "last"}, r"(?s)last.*(first|one)"),
    "a timestep past the end": ({"S": 3, "timesteps": [1000, 500, 1]}, r"1000"),
    "a timestep before the start": ({"S": 3, "timesteps": [900, 500, -1]}, r"-1"),
    "unsorted timesteps": ({"S": 3, "timesteps": [1, 900, 500]}, r"900|500"),
    "a timestep twice": ({"S": 3, "timesteps": [900, 500, 500]}, r"500"),
    "a fractional timestep": ({"S": 3, "timesteps": [900, 500.5, 1]}, r"500\.5"),
    "no timesteps": ({"timesteps": []}, r"timesteps"),
    "a list of another length than S": ({"S": 5, "timesteps": [900, 500, 1]}, r"(?s)\b3\b.*\b5\b|\b5\b.*\b3\b"),
    "x_T of another size": ({"x_T": X[..., :1]}, r"(?s)x_T.*2, 1, 2, 1"),
    "x_T of another batch": ({"x_T": X[:1]}, r"(?s)x_T.*1, 1, 2, 2"),
    "a scale schedule too short": (guided(ucg_schedule=[1.0, 2.0, 3.0]), r"(?s)ucg_schedule.*\b3\b"),
    "a scale schedule too long": (guided(ucg_schedule=[-2.0] * 9), r"(?s)ucg_schedule.*\b9\b"),
    "NaN guidance": (guided(unconditional_guidance_scale=nan), r"unconditional_guidance_scale.*nan"),
    "a mask without x0": ({"mask": torch.ones(2, 2)}, r"mask.*x0"),
    "a mask that does not broadcast": ({"mask": torch.ones(3, 3), "x0": X}, r"(?s)mask.*3, 3"),
    "a mask of another batch": ({"mask": torch.ones(3, 1, 2, 2), "x0": X}, r"(?s)mask.*3, 1, 2, 2"),
    "a mask that would widen the latents": ({"mask": torch.ones(2, 1, 1, 2, 2), "x0": X}, r"(?s)mask.*2, 1, 1, 2, 2"),
    "x0 of another size": ({"mask": torch.ones(2, 2), "x0": randn(B, 1, 2, 3)}, r"(?s)x0.*2, 1, 2, 3"),
    "a mask beyond 0 and 1": ({"mask": torch.full((2, 2), 255.0), "x0": X}, r"mask.*255"),
    "a conditioning of another batch": ({"conditioning": randn(3, 4)}, r"(?s)conditioning.*\b3\b"),
    "one leaf of another batch": (
        {"conditioning": {"c_concat": [randn(2, 4)], "c_crossattn": [randn(2, 4), randn(7, 4)]}},
        r"(?s)c_crossattn.*\b7\b",
    ),
    "an unconditional one of another batch": (
        guided(unconditional_conditioning=randn(3, 3, dtype=torch.float32)),
        r"(?s)unconditional_conditioning.*\b3\b",
    ),
    "too few seeds": ({"seeds": [1]}, r"(?s)seeds.*\b1\b"),
    "too many seeds": ({"seeds": [1, 2, 3]}, r"(?s)seeds.*\b3\b"),
    "seeds that are not numbers": ({"seeds": ["a", "b"]}, r"seeds.*a"),
    "too many generators": ({"generator": [torch.Generator() for _ in range(3)]}, r"(?s)generator.*\b3\b"),
    "a number for a generator": ({"generator": 42}, r"generator.*(42|int)"),
    "too short a sequence of noise": ({"eta": 1.0, "normals_sequence": [X] * 4}, r"(?s)normals_sequence.*\b4\b"),
    "noise of another shape": (
        {"eta": 1.0, "normals_sequence": [X.repeat(1, 1, 1, 2)] * 5},
        r"(?s)normals.*2, 1, 2, 4",
    ),
    "too much dropout": ({"eta": 1.0, "noise_dropout": 1.5}, r"noise_dropout.*1\.5"),
    "NaN temperature": ({"eta": 1.0, "temperature": nan}, r"temperature.*nan"),
    "a log every never": ({"log_every_t": 0}, r"log_every_t.*\b0\b"),
    "an unknown keyword": ({"guidance_scale": 3.0}, r"guidance_scale"),
    "a misspelt keyword": ({"unconditional_guidance_scales": 3.0}, r"unconditional_guidance_scales"),
    "quantising without a first stage": ({"quantize_x0": True}, r"first_stage_model|quantize"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_value_before_the_model_runs_and_nothing_is_lost(case):
    options, message = REFUSED[case]
    sampler, fresh = make(), make()
    expected = good(sampler)
    ran, rng = len(sampler.model.times), torch.get_rng_state()
    with pytest.raises((ValueError, TypeError, IndexError, AttributeError), match=message):
        sample(sampler, **options)
    assert len(sampler.model.times) == ran, "the model ran before the argument was looked at"
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()
    assert torch.equal(good(sampler), expected), "the error left something behind"
    with pytest.raises((ValueError, TypeError, IndexError, AttributeError), match=message):
        sample(fresh, **options)
    assert torch.equal(good(fresh), expected), "the error spoilt a sampler that had not sampled yet"


class Faulty(MixtureModel):
    """A model that goes wrong at the third call, or not."""

    def __init__(self, fault):
        super().__init__(two_modes(torch.float32))
        self.fault, self.broken = fault, True

    def apply_model(self, x, t, c):
        out = super().apply_model(x, t, c)
        return self.fault(out) if self.broken and len(self.times) % S == 3 else out


def poison(value):
    def fault(out):
        out = out.clone()
        out[1, 0, 0, 1] = value
        return out

    return fault


@pytest.mark.parametrize(
    "fault, message",
    [
        (poison(nan), r"(?i)nan|not finite|non-finite"),
        (poison(inf), r"(?i)inf|not finite|non-finite"),
        (lambda out: out[..., :1], r"2, 1, 2, 1"),
        (lambda out: out[:1], r"1, 1, 2, 2"),
    ],
    ids=["NaN", "infinity", "too narrow", "half the batch"],
)
def test_a_model_that_answers_nonsense_is_reported_and_may_recover(fault, message):
    model = Faulty(fault)
    sampler = DDIMSampler(model)
    with pytest.raises((ValueError, TypeError, ArithmeticError, RuntimeError), match=message):
        good(sampler)
    model.broken = False
    assert torch.equal(good(sampler), good(make()))


def test_an_error_in_a_callback_comes_out_as_it_is_and_nothing_is_lost():
    class Stop(Exception):
        pass

    def callback(i):
        if i == 2:
            raise Stop

    sampler = make()
    with pytest.raises(Stop):
        sample(sampler, callback=callback)
    assert len(sampler.model.times) == 3 and torch.is_grad_enabled()
    assert torch.equal(good(sampler), good(make()))


# a model that lacks something


class Bare:
    """The five names of the contract and no more."""

    NAMES = ("num_timesteps", "betas", "alphas_cumprod", "alphas_cumprod_prev", "apply_model")

    def __init__(self, without=()):
        inner = MixtureModel(two_modes(torch.float32))
        for name in set(self.NAMES) - {without}:
            setattr(self, name, getattr(inner, name))


@pytest.mark.parametrize("name", Bare.NAMES)
def test_a_model_without_a_needed_name_is_told_which(name):
    with pytest.raises((TypeError, AttributeError, ValueError), match=name):
        sample(DDIMSampler(Bare(without=name)))


def test_a_mask_works_on_a_model_without_q_sample():
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    options = {"mask": mask, "x0": X, "seeds": [1, 2], "eta": 1.0}
    assert torch.equal(sample(DDIMSampler(Bare()), **options), sample(make(), **options))


def test_an_unknown_parameterisation_is_refused_by_name_before_the_model_runs():
    model = Bare()
    model.parameterization, model.apply_model = "score", None
    with pytest.raises(ValueError, match=r"(?s)score.*eps"):
        sample(DDIMSampler(model))


def test_an_unknown_option_of_the_sampler_is_refused_by_name():
    with pytest.raises(TypeError, match="ddim_etta"):
        DDIMSampler(MixtureModel(two_modes()), ddim_etta=1.0)


def test_eps_at_zero_terminal_snr_is_refused_and_the_sampler_survives():
    sampler = DDIMSampler(MixtureModel(two_modes(torch.float32), betas=zero_terminal_snr_betas()))
    expected = good(sampler)  # "uniform" with 5 steps ends at 801, where there is still some signal
    ran = len(sampler.model.times)
    with pytest.raises(ValueError, match=r"999|SNR"):
        sample(sampler, ddim_discretize="trailing")
    assert len(sampler.model.times) == ran, "known before the model runs"
    assert torch.equal(good(sampler), expected)


# the other methods


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.decode(X, None, 3),
        lambda s: s.encode(X, None, 3),
        lambda s: s.stochastic_encode(X, torch.tensor([1, 1])),
        lambda s: s.ddim_sampling(None, (B, *SHAPE)),
        lambda s: s.p_sample_ddim(X, None, torch.tensor([1, 1]), 0),
    ],
    ids=["decode", "encode", "stochastic_encode", "ddim_sampling", "p_sample_ddim"],
)
def test_what_needs_a_schedule_says_so(call):
    sampler = make()
    with pytest.raises(Exception, match="make_schedule"):
        call(sampler)
    sampler.make_schedule(S, verbose=False)
    call(sampler)


@pytest.mark.parametrize("steps", [11, -1])
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_more_steps_than_the_schedule_has_are_refused(method, steps):
    sampler = make()
    sampler.make_schedule(10, verbose=False)
    with pytest.raises((ValueError, IndexError), match=str(steps)):
        getattr(sampler, method)(X, None, steps)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ddim_num_steps": 0}, r"\b0\b"),
        ({"ddim_num_steps": -1}, "-1"),
        ({"ddim_num_steps": 1001}, "1001"),
        ({"ddim_num_steps": 1.5}, r"1\.5"),
        ({"ddim_discretize": "cubic"}, "(?s)cubic.*uniform"),
        ({"ddim_eta": -1.0}, "eta.*-1"),
        ({"ddim_eta": nan}, "eta.*nan"),
        ({"final_alpha": "last"}, "final_alpha.*last"),
    ],
)
def test_make_schedule_refuses_a_bad_value_and_keeps_the_schedule_it_had(options, message):
    sampler = make()
    sampler.make_schedule(10, verbose=False)
    before = sampler.ddim_alphas.clone()
    with pytest.raises((ValueError, TypeError), match=message):
        sampler.make_schedule(**{"ddim_num_steps": 20, "verbose": False} | options)
    assert torch.equal(sampler.ddim_alphas, before) and len(sampler.ddim_timesteps) == 10


# an argument without effect


@pytest.mark.parametrize(
    "options, name",
    [
        ({"unconditional_guidance_scale": 5.0, "conditioning": C}, "unconditional_guidance_scale"),
        ({"x0": X}, "x0"),
        ({"temperature": 0.5, "eta": 0.0}, "temperature"),
        ({"noise_dropout": 0.5, "eta": 0.0}, "noise_dropout"),
        ({"normals_sequence": [X] * S, "eta": 0.0}, "normals_sequence"),
        ({"corrector_kwargs": {"strength": 1.0}}, "corrector_kwargs"),
        ({"blend_final": True}, "blend_final"),
        ({"gradual_mask": True}, "gradual_mask"),
        ({"guidance_rescale": 0.5}, "guidance_rescale"),
    ],
)
def test_an_argument_without_effect_gets_a_warning_by_name(options, name):
    with pytest.warns(UserWarning, match=name):
        sample(make(), **options)


def test_a_plain_call_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good(make())
        sample(make(), **guided(), eta=0.5, temperature=0.9, mask=torch.ones(2, 2), x0=X, blend_final=True)
