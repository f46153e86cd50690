"""What repositories written against CompVis' `ldm` import is here, is called as theirs, and gives their numbers."""

import importlib
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from _networks import randn
from _promised_names import PROMISED, SIGNATURES
from torch import nn

from ldm.models.diffusion.sampling_util import (
    append_dims,
    norm_thresholding,
    renorm_thresholding,
    spatial_norm_thresholding,
)
from ldm.modules.diffusionmodules import util

GOLDEN = Path(__file__).parent / "golden" / "sampler"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "index.json").read_text())}
PARAMETER = inspect.Parameter


# --- the table


@pytest.mark.parametrize("module", PROMISED)
def test_every_promised_name_is_there(module):
    for name in PROMISED[module]:
        space = {}
        exec(f"from {module} import {name}", space)
        assert space[name] is not None


def parameters(signature):
    """(name, default, keyword only) of each; *args and **kwargs are no promise."""
    named = [
        p for p in signature.parameters.values() if p.kind not in (PARAMETER.VAR_POSITIONAL, PARAMETER.VAR_KEYWORD)
    ]
    return [(p.name, p.default, p.kind == PARAMETER.KEYWORD_ONLY) for p in named]


@pytest.mark.parametrize("path", SIGNATURES)
def test_parameters_are_compvis_in_name_order_and_default(path):
    module = next(m for m in PROMISED if path.startswith(f"{m}.") and path[len(m) + 1 :].split(".")[0] in PROMISED[m])
    thing = importlib.import_module(module)
    for name in path[len(module) + 1 :].split("."):
        thing = getattr(thing, name)
    expected = parameters(inspect.signature(eval(f"lambda {' '.join(SIGNATURES[path].split())}: None")))
    assert parameters(inspect.signature(thing))[: len(expected)] == expected


def test_a_star_import_brings_what_it_brought():
    space = {}
    exec("from ldm.modules.diffusionmodules.openaimodel import *", space)
    assert set(PROMISED["ldm.modules.diffusionmodules.openaimodel"]) <= set(space)


# --- the sampler's arithmetic


def compvis_uniform(s, t):
    """The original's timesteps; None where its sampler ran out of the schedule."""
    steps = np.arange(0, t, t // s) + 1
    return steps if steps[-1] < t else None


@pytest.mark.parametrize("t", [50, 999, 1000])
def test_uniform_timesteps_are_the_originals_where_it_ran_and_exactly_s_elsewhere(t):
    ran = 0
    for s in range(1, t + 1):
        steps, expected = util.make_ddim_timesteps("uniform", s, t, verbose=False), compvis_uniform(s, t)
        if expected is None:
            assert len(steps) == s and steps.min() >= 0 and steps.max() < t and (np.diff(steps) > 0).all()
        else:
            ran += 1
            assert steps.tolist() == expected.tolist()
    assert 0 < ran < t
    for bad in (0, t + 1):
        with pytest.raises(ValueError, match="choose a number of steps from 1"):
            util.make_ddim_timesteps("uniform", bad, t)


def test_quad_timesteps_are_the_originals():
    expected = (np.linspace(0, math.sqrt(800), 20) ** 2).astype(int) + 1
    assert util.make_ddim_timesteps("quad", 20, 1000).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="'uniformly' is unknown; choose one of uniform"):
        util.make_ddim_timesteps("uniformly", 20, 1000)


WITH_LEVELS = [name for name in CASES if "out_sigmas" in np.load(GOLDEN / f"{name}.npz").files]


@pytest.mark.parametrize("name", WITH_LEVELS)
def test_sampling_parameters_are_the_originals(name):
    model, call, z = CASES[name]["model"], CASES[name]["call"], np.load(GOLDEN / f"{name}.npz")
    betas = util.make_beta_schedule(
        model["beta_schedule"], 1000, linear_start=model["linear_start"], linear_end=model["linear_end"]
    )
    assert isinstance(betas, np.ndarray) and betas.dtype == np.float64
    alphacums = torch.tensor(np.cumprod(1 - betas), dtype=torch.float32)
    steps = util.make_ddim_timesteps(call["ddim_discretize"], call["S"], 1000)
    assert steps.tolist() == z["out_timesteps"].tolist()
    for kind in (alphacums, alphacums.numpy()):
        sigmas, alphas, prev = util.make_ddim_sampling_parameters(kind, steps, call["eta"], verbose=False)
        assert type(sigmas) is type(alphas) is type(kind) and type(prev) is np.ndarray
        for ours, theirs in ((sigmas, "sigmas"), (alphas, "alphas"), (prev, "alphas_prev")):
            np.testing.assert_allclose(np.asarray(ours), z[f"out_{theirs}"], rtol=2e-6, atol=1e-7)
            assert np.asarray(ours).dtype == z[f"out_{theirs}"].dtype


def test_verbose_logs_and_prints_nothing(capsys, caplog):
    caplog.set_level("INFO")
    steps = util.make_ddim_timesteps("uniform", 5, 50)
    util.make_ddim_sampling_parameters(np.linspace(0.9, 0.1, 50), steps, 1.0)
    assert len(caplog.records) == 2 and "eta = 1.0" in caplog.text
    util.make_ddim_timesteps("uniform", 5, 50, verbose=False)
    util.make_ddim_sampling_parameters(np.linspace(0.9, 0.1, 50), steps, 1.0, verbose=False)
    assert len(caplog.records) == 2 and capsys.readouterr() == ("", "")


def test_betas_for_alpha_bar_have_that_alpha_bar_up_to_the_greatest_beta():
    def cosine(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = util.betas_for_alpha_bar(200, cosine)
    np.testing.assert_allclose(betas, util.make_beta_schedule("cosine", 200), rtol=1e-12)
    expected = [cosine((i + 1) / 200) / cosine(0) for i in range(199)]
    np.testing.assert_allclose(np.cumprod(1 - betas)[:199], expected, rtol=1e-9)
    assert betas[-1] == 0.999 and util.betas_for_alpha_bar(200, cosine, max_beta=0.5).max() == 0.5


def test_noise_like_draws_what_torch_draws():
    torch.manual_seed(3)
    expected = torch.randn(2, 3, 4), torch.randn(1, 3, 4)
    torch.manual_seed(3)
    noise, repeated = util.noise_like((2, 3, 4), "cpu"), util.noise_like(torch.Size([2, 3, 4]), "cpu", repeat=True)
    assert noise.equal(expected[0]) and repeated.equal(expected[1].expand(2, 3, 4))
    repeated[0].zero_()
    assert repeated[1].equal(expected[1][0])


def test_extract_into_tensor_takes_each_samples_timestep():
    a, t = torch.arange(10.0) ** 2, torch.tensor([3, 0, 9])
    assert util.extract_into_tensor(a, t, (3, 4, 8, 8)).tolist() == [[[[9.0]]], [[[0.0]]], [[[81.0]]]]
    assert util.extract_into_tensor(a, t, (3, 5)).shape == (3, 1)


# --- thresholds


def test_append_dims_appends_and_refuses_to_cut():
    assert append_dims(torch.ones(2, 3), 4).shape == (2, 3, 1, 1)
    assert append_dims(torch.ones(2, 3), 2).shape == (2, 3)
    with pytest.raises(ValueError, match="x has 3 axes, more than target_dims=2"):
        append_dims(torch.ones(1, 1, 1), 2)


def test_norm_thresholding_scales_samples_down_to_the_value_and_leaves_smaller_ones():
    x = torch.stack([randn(4, 5, 6), 0.1 * randn(4, 5, 6, seed=1)])
    out = norm_thresholding(x, 0.5)
    assert out[0].square().mean().sqrt().item() == pytest.approx(0.5, rel=1e-5)
    ratio = out[0] / x[0]
    torch.testing.assert_close(ratio, ratio[0, 0, 0].expand_as(ratio))  # its direction stays
    torch.testing.assert_close(out[1], x[1])


def test_spatial_norm_thresholding_does_so_for_every_pixel():
    x = randn(2, 4, 8, 8)
    x[:, :, ::2] *= 0.01
    out, rms = spatial_norm_thresholding(x, 0.5), x.square().mean(1).sqrt()
    torch.testing.assert_close(out.square().mean(1).sqrt(), rms.clamp(max=0.5))
    assert (rms < 0.5).any() and (rms > 0.5).any()
    torch.testing.assert_close(nn.functional.cosine_similarity(out, x, dim=1), torch.ones(2, 8, 8))


def test_renorm_thresholding_is_dynamic_thresholding_of_each_sample():
    x = torch.stack([3 * randn(4, 5, 6), 0.1 * randn(4, 5, 6, seed=1)])
    out = renorm_thresholding(x, 0.9)
    s = np.quantile(np.abs(x[0].numpy()), 0.9)
    assert s > 1
    np.testing.assert_allclose(out[0].numpy(), np.clip(x[0].numpy(), -s, s) / s, rtol=1e-5)
    assert out[1].equal(x[1])
