"""A scheduler's config: what it holds, whose words it understands, and the file it is kept in."""

import json
import warnings

import numpy as np
import pytest
from omegaconf import OmegaConf

from ldm.sampling import DDIMInverseScheduler, DDIMScheduler, make_beta_schedule
from ldm.sampling.scheduler_config import COMPVIS, OURS, VOCABULARIES

# Stable Diffusion 1's file, as it is published.
PUBLISHED = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_options_are_items_and_attributes_and_cannot_be_changed():
    config = DDIMScheduler(beta_start=0.001, eta=0.5).config
    assert config.beta_start == config["beta_start"] == config.get("beta_start") == 0.001
    assert config.eta == config["eta"] == 0.5 and config.step_rule == config["step_rule"] == "next"
    with pytest.raises(AttributeError, match="no option 'gamma'"):
        _ = config.gamma
    for change in (
        lambda: config.update(eta=0),
        lambda: config.pop("eta"),
        lambda: config.__setitem__("eta", 0),
        lambda: setattr(config, "eta", 0),
        lambda: config.__ior__({"eta": 0}),
    ):
        with pytest.raises(TypeError, match="read-only: make another scheduler with from_config"):
            change()


def test_options_beyond_diffusers_are_mentioned_where_they_say_something():
    assert not set(OURS) & set(DDIMScheduler(step_rule="next", eta=0.0).config)
    assert set(OURS) & set(DDIMScheduler(step_rule="stride").config) == {"step_rule"}


def test_what_was_not_given_is_listed_for_other_schedulers():
    config = DDIMScheduler(500, beta_schedule="scaled_linear").config
    assert set(config) - {*config["_use_default_values"]} == {
        "num_train_timesteps", "beta_schedule", "_class_name", "_use_default_values",
    }  # fmt: skip


def test_a_config_makes_the_same_scheduler_and_overrides_change_it():
    one = DDIMScheduler(beta_start=0.001, step_rule="stride", timestep_spacing="trailing")
    two = DDIMScheduler.from_config(one.config)
    assert {**two.config, "_use_default_values": 0} == {**one.config, "_use_default_values": 0}
    three = DDIMScheduler.from_config(one.config, step_rule="next", beta_start=0.002)
    assert three.config.step_rule == "next" and three.config.beta_start == 0.002
    assert three.config.timestep_spacing == "trailing"


def test_another_schedulers_defaults_do_not_carry_over():
    theirs = {"beta_start": 0.002, "timestep_spacing": "linspace", "_use_default_values": ["timestep_spacing"]}
    assert DDIMScheduler.from_config(theirs).config.timestep_spacing == "leading"


def test_a_published_file_of_another_scheduler_is_read():
    ours = DDIMScheduler.from_config(PUBLISHED)
    assert ours.config.steps_offset == 1 and not ours.config.clip_sample and ours.config._class_name == "DDIMScheduler"
    assert ours.config.skip_prk_steps and ours.config._diffusers_version == "0.6.0"  # kept for the way back


def test_what_would_move_the_noise_levels_is_warned_of():
    assert DDIMScheduler.from_config({"use_karras_sigmas": False, "algorithm_type": "dpmsolver++", "sigma_min": None})
    with pytest.warns(UserWarning, match="use_karras_sigmas = True in the config has no effect: DDIMScheduler takes"):
        DDIMScheduler.from_config({"use_karras_sigmas": True})


def test_unknown_names_are_refused_with_a_suggestion():
    for config, overrides in (({"beta_strat": 1}, {}), ({}, {"beta_strat": 1})):
        with pytest.raises(TypeError, match="DDIMScheduler has no argument 'beta_strat': did you mean beta_start"):
            DDIMScheduler.from_config(config, **overrides)
    with pytest.warns(UserWarning, match="novelty in the config has no effect"):  # a file of a newer diffusers
        DDIMScheduler.from_config({**PUBLISHED, "novelty": 1})
    with pytest.raises(TypeError, match="config is a str: give a mapping"):
        DDIMScheduler.from_config("folder")


# CompVis' words


@pytest.mark.parametrize("name", ["linear", "sqrt_linear", "cosine"])
def test_compvis_schedules_are_the_ones_of_its_function(name):
    words = {"beta_schedule": name, "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 400}
    ours = DDIMScheduler.from_config(words, vocabulary="compvis")
    expected = np.cumprod(1 - make_beta_schedule(name, 400, 0.0015, 0.0195))
    np.testing.assert_allclose(ours._alpha_bar, expected, rtol=1e-12)


def test_compvis_words_may_come_from_yaml():
    words = OmegaConf.create({"linear_start": 0.001, "given_betas": [0.1, 0.2], "parameterization": "v"})
    ours = DDIMScheduler.from_config(words, vocabulary="compvis", clip_sample=True)
    assert ours.config.prediction_type == "v_prediction" and len(ours) == 2 and ours.config.clip_sample
    assert {name: ours.config[name] for name in COMPVIS} == {**COMPVIS, "clip_sample": True}


def test_compvis_words_need_to_be_announced():
    with pytest.raises(TypeError, match="has no argument 'linear_start'"):
        DDIMScheduler.from_config({"linear_start": 0.001})
    with pytest.raises(ValueError, match="beta_schedule = 'sqrt': choose one of linear, sqrt_linear, cosine; .*betas"):
        DDIMScheduler.from_config({"beta_schedule": "sqrt"}, vocabulary="compvis")
    with pytest.raises(ValueError, match="vocabulary = 'sd': choose one of diffusers, bumblebee, compvis"):
        DDIMScheduler.from_config({}, vocabulary="sd")


def test_every_word_of_the_table_means_an_option():
    options = set(DDIMScheduler().config) | set(OURS)
    for words in VOCABULARIES.values():
        assert {word.option for word in words.values()} <= options


def test_an_option_said_in_two_vocabularies_is_refused():
    with pytest.raises(TypeError, match="clip_sample and clip_denoised_sample both say clip_sample"):
        DDIMScheduler.from_config({"clip_sample": True, "clip_denoised_sample": False})


# The file


@pytest.mark.parametrize("cls", [DDIMScheduler, DDIMInverseScheduler])
def test_a_saved_config_is_read_again(cls, tmp_path):
    one = cls(200, trained_betas=np.linspace(0.001, 0.02, 200), prediction_type="v_prediction", step_rule="stride")
    one.save_pretrained(tmp_path / "scheduler")
    file = tmp_path / "scheduler" / "scheduler_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["_class_name"] == cls.__name__ and saved["step_rule"] == "stride" and "eta" not in saved
    for where, subfolder in ((tmp_path, None), (tmp_path, "scheduler"), (tmp_path / "scheduler", None), (file, None)):
        two = cls.from_pretrained(where, subfolder)
        assert np.array_equal(one._alpha_bar, two._alpha_bar) and two.config.step_rule == "stride"
    assert DDIMScheduler.from_pretrained(tmp_path, prediction_type="sample").config.prediction_type == "sample"


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'CompVis/sd': give a folder .*\(nothing is downloaded"):
        DDIMScheduler.from_pretrained("CompVis/sd")
    file = tmp_path / "scheduler_config.json"
    for text, message in (("{", "is not JSON"), ("[]", "holds a list")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            DDIMScheduler.from_pretrained(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        DDIMScheduler().save_config(file)
