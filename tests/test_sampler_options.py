"""What DDIMSampler takes: CompVis' signatures, the options beyond them, and what is said of a wrong one."""

import inspect
import math
import re
import warnings

import numpy as np
import pytest
import torch
from _small_model import SHAPE, X_T, Model, guided, run

from ldm.sampling import DDIMSampler
from ldm.sampling.arguments import SWALLOWED, Options, names_of

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
        out, _ = DDIMSampler(Model()).sample(5, 3, SHAPE, x_T=X_T, progress=False, **{name: True})
    assert torch.equal(out, run()) and {w.filename for w in caught} == {__file__}


def test_warnings_point_at_the_callers_line_from_every_depth():
    sampler = DDIMSampler(Model())
    with pytest.warns(UserWarning, match="temperature") as caught:
        sampler.sample(5, 3, SHAPE, temperature=2.0, progress=False)
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
        ({"clip_x0": math.nan}, "clip_x0 = nan"),
        ({"clip_x0": "abc"}, "clip_x0 = 'abc'.*give True"),
        ({"guidance_rescale": "0.7"}, "guidance_rescale = '0.7'.*choose"),
        ({"guidance_interval": (1, 2, 3)}, r"guidance_interval = \(1, 2, 3\): give \(lo, hi\)"),
        ({"guidance_interval": ("a", "b")}, r"guidance_interval = \('a', 'b'\)"),
        ({"guidance_interval": 200}, "guidance_interval = 200"),
    ],
)
def test_an_option_that_cannot_be_is_refused_where_it_is_given(options, message):
    with pytest.raises(ValueError, match=message):
        DDIMSampler(Model(), **options)
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.parametrize(
    "name, value",
    [
        ("eta", "abc"),
        ("eta", None),
        ("temperature", "abc"),
        ("noise_dropout", [0.1]),
        ("dynamic_threshold", "0.995"),
        ("log_every_t", "abc"),
        ("timesteps", "abc"),
        ("timesteps", 5),
        ("unconditional_guidance_scale", "abc"),
        ("ucg_schedule", ["abc"] * 5),
    ],
)
def test_a_number_of_another_type_is_refused_by_name_and_value(name, value):
    shown = re.escape(str(value[0] if name == "ucg_schedule" else value))
    with pytest.raises(ValueError, match=f"{name} = .*{shown}.*(give|choose) "):
        run(**{name: value})


def test_a_number_may_be_of_any_numeric_type():
    options = {"eta": 1.0, "seeds": [1, 2, 3], "temperature": 0.5, "noise_dropout": 0.25, "clip_x0": 2}
    for kind in (np.float64, np.float32, torch.tensor):
        assert torch.equal(run(**{k: v if k == "seeds" else kind(v) for k, v in options.items()}), run(**options))


def test_an_option_displaces_the_constructors_that_it_excludes():
    listed = DDIMSampler(Model(), timesteps=[90, 60, 30, 20, 10])
    assert torch.equal(run(7, listed, ddim_discretize="uniform"), run(7))
    spaced = DDIMSampler(Model(), ddim_discretize="quad", clip_x0=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(sampler=spaced, timesteps=[90, 60, 30, 20, 10], clip_x0=False), run(sampler=listed))
        assert torch.equal(
            run(sampler=spaced, dynamic_threshold=0.9), run(ddim_discretize="quad", dynamic_threshold=0.9)
        )

    def generator():
        return torch.Generator().manual_seed(4)

    seeds, drawn = run(eta=1.0, seeds=[1, 2, 3]), run(eta=1.0, generator=generator())
    assert torch.equal(run(sampler=DDIMSampler(Model(), generator=generator()), eta=1.0, seeds=[1, 2, 3]), seeds)
    assert torch.equal(run(sampler=DDIMSampler(Model(), seeds=[1, 2, 3]), eta=1.0, generator=generator()), drawn)


def test_options_that_exclude_each_other_in_one_place_are_told_of():
    both = {"seeds": [1, 2, 3], "generator": torch.Generator()}
    with pytest.raises(ValueError, match="generator and seeds are both given"):
        run(**both)
    with pytest.raises(ValueError, match="generator and seeds are both given"):
        run(sampler=DDIMSampler(Model(), **both))
    with pytest.warns(UserWarning, match="ddim_discretize has no effect: timesteps are given") as caught:
        DDIMSampler(Model(), timesteps=[3, 2, 1], ddim_discretize="quad")
        run(3, timesteps=[3, 2, 1], ddim_discretize="quad")
    assert len(caught) == 2


@pytest.mark.parametrize("option", ["noise_device", "device"])
def test_an_unknown_device_is_told_what_one_is(option):
    with pytest.raises(ValueError, match=f"{option} = 'gpu'.*\"cuda\""):
        run(sampler=DDIMSampler(Model(), **{option: "gpu"}))


@pytest.mark.parametrize("option", ["noise_device", "device"])
def test_a_device_that_is_not_there_is_told_so(option):
    with pytest.raises(ValueError, match=f"{option} = 'cuda:99' is not available here"):
        run(sampler=DDIMSampler(Model(), **{option: "cuda:99"}))


def test_an_array_is_told_how_to_become_a_tensor():
    array = X_T.numpy()
    options = {"x_T": array}, {"mask": array, "x0": X_T}, {"mask": X_T, "x0": array}
    for name, given in zip(("x_T", "mask", "x0"), options):
        with pytest.raises(TypeError, match=f"{name} is a ndarray.*torch.from_numpy"):
            run(**given)
    with pytest.raises(TypeError, match=r"normals_sequence\[0\] is a ndarray"):
        run(1, eta=1.0, normals_sequence=[array])


def test_steps_takes_verbose_and_refuses_the_original_steps_with_the_remedy():
    sampler = DDIMSampler(Model())
    (*_, last) = sampler.steps(5, 3, SHAPE, x_T=X_T, verbose=False, progress=None)
    assert torch.equal(last.x_prev, run())
    with pytest.raises(TypeError, match='S=T and final_alpha="one"'):
        sampler.steps(5, 3, SHAPE, use_original_steps=True)
    (*_, last) = sampler.steps(100, 3, SHAPE, x_T=X_T, final_alpha="one")
    original, _ = sampler.ddim_sampling(None, (3, *SHAPE), x_T=X_T, ddim_use_original_steps=True)
    assert torch.equal(last.x_prev, original)


@pytest.mark.parametrize("verbose, progress, shown", [(False, None, False), (True, None, True), (True, False, False)])
def test_steps_shows_a_bar_where_told(capsys, verbose, progress, shown):
    list(DDIMSampler(Model()).steps(3, 3, SHAPE, verbose=verbose, progress=progress))
    assert bool(capsys.readouterr().err) == shown


def test_a_swallowed_keyword_is_warned_of_once_by_steps():
    with pytest.warns(UserWarning, match="ddim_eta has no effect on steps") as caught:
        DDIMSampler(Model()).steps(3, 3, SHAPE, ddim_eta=1.0)
    assert len(caught) == 1


@pytest.mark.parametrize("method", ["decode", "encode", "ddim_sampling"])
def test_an_unknown_option_names_the_method_that_was_called(method):
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    arguments = (None, (3, *SHAPE)) if method == "ddim_sampling" else (X_T, None, 3)
    with pytest.raises(TypeError, match=f"{method} has no argument 'progres': did you mean progress"):
        getattr(sampler, method)(*arguments, progres=False)


def test_a_schedule_by_name_is_said_to_be_the_models():
    with pytest.warns(UserWarning, match="schedule = 'cosine' has no effect"):
        assert DDIMSampler(Model(), "cosine").schedule == "cosine"


def test_device_overrides_the_models():
    model = Model()
    assert DDIMSampler(model).device == torch.device("cpu")
    model.device = "meta"
    assert DDIMSampler(model).device == torch.device("meta")
    assert DDIMSampler(model, device="cpu").device == torch.device("cpu")
