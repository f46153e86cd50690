"""A sample's noise belongs to the sample: the same alone, in a batch, in any order; the global generator is left be."""

import random

import numpy as np
import pytest
import torch
from _mixture import Mixture, MixtureModel, exact_discrete_variance, levels, randn, two_modes

from ldm.sampling import DDIMSampler

SHAPE, SEEDS = (1, 2, 2), [11, 5, 2**40 + 3, 0, 77, 123456789, 6]
X0 = randn(7, *SHAPE, seed=40, dtype=torch.float32)
C = randn(7, 3, seed=41, dtype=torch.float32)
MASK = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

CASES = {
    "eta 0": {},
    "eta 1": {"eta": 1.0},
    "temperature": {"eta": 0.6, "temperature": 0.7},
    "noise dropout": {"eta": 1.0, "noise_dropout": 0.4},
    "mask": {"mask": MASK},
    "mask and eta": {"mask": MASK, "eta": 1.0},
    "mask, eta, dropout and temperature": {"mask": MASK, "eta": 1.0, "noise_dropout": 0.3, "temperature": 1.2},
}


def model():
    return MixtureModel(two_modes(torch.float32))


def run(rows, options, sampler=None, source="seeds"):
    rows = list(rows)
    options = dict(options)
    if "mask" in options:
        options["x0"] = X0[rows]
    if source == "seeds":
        options["seeds"] = [SEEDS[i] for i in rows]
    elif source == "generators":
        options["generator"] = [torch.Generator().manual_seed(SEEDS[i]) for i in rows]
    sampler = sampler or DDIMSampler(model())
    return sampler.sample(9, len(rows), SHAPE, C[rows], progress=False, **options)[0]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("source", ["seeds", "generators"])
@pytest.mark.parametrize("case", CASES)
def test_a_sample_is_the_same_alone_in_a_batch_of_seven_and_in_another_order(case, source):
    whole = run(range(7), CASES[case], source=source)
    for i in range(7):
        close(run([i], CASES[case], source=source), whole[i : i + 1])
    order = [3, 6, 0, 2, 5, 1, 4]
    close(run(order, CASES[case], source=source), whole[order])
    apart = (whole[:, None] - whole).abs().flatten(2).amax(2) + torch.eye(7)
    assert apart.min() > 1e-3, "seven seeds, seven samples"


@pytest.mark.parametrize("case", CASES)
def test_a_seed_is_a_generator_with_that_seed(case):
    close(run(range(7), CASES[case]), run(range(7), CASES[case], source="generators"))


def test_the_noise_of_a_run_does_not_depend_on_the_run_before():
    sampler = DDIMSampler(model())
    first = run(range(3), {"eta": 1.0}, sampler)
    run(range(5), {"eta": 1.0, "mask": MASK}, sampler)
    assert torch.equal(run(range(3), {"eta": 1.0}, sampler), first)


def test_equal_seeds_give_equal_samples():
    out, _ = DDIMSampler(model()).sample(5, 3, SHAPE, eta=1.0, seeds=[4, 4, 5], progress=False)
    close(out[0], out[1])
    assert not torch.isclose(out[0], out[2]).all()


def test_the_noise_of_a_sample_is_fresh_at_every_step():
    """A stuck source would give the chain the same normal again and again: the variance tells."""
    n, unit = 1000, Mixture(torch.zeros(1, 1), 1.0, dtype=torch.float32)
    sampler = DDIMSampler(MixtureModel(unit))
    out, _ = sampler.sample(20, n, (1,), eta=1.0, seeds=range(n), progress=False)
    variance = exact_discrete_variance(1.0, levels(sampler, sampler.model.alpha_bar[0]), 1.0, start=1.0)
    assert abs(out.mean()) < 4.5 * (variance / n) ** 0.5
    assert abs(out.var() / variance - 1) < 4.5 * (2 / n) ** 0.5


@pytest.mark.parametrize("source", ["seeds", "generators", "generator"])
@pytest.mark.parametrize("case", CASES)
def test_given_sources_leave_every_global_generator_alone(case, source):
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    options = dict(CASES[case])
    if source == "generator":
        options["generator"] = torch.Generator().manual_seed(1)
    run(range(2), options, source=source)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


@pytest.mark.parametrize("case", CASES)
def test_one_generator_repeats_itself_and_only_itself(case):
    def once(seed):
        return run(range(4), CASES[case] | {"generator": torch.Generator().manual_seed(seed)}, source=None)

    assert torch.equal(once(1), once(1))
    assert not torch.isclose(once(1), once(2)).all()


def test_a_given_generator_is_not_advanced_for_noise_that_is_not_used():
    g = torch.Generator().manual_seed(1)
    before = g.get_state()
    DDIMSampler(model()).sample(6, 2, SHAPE, eta=0.0, x_T=randn(2, *SHAPE), generator=g, progress=False)
    assert torch.equal(g.get_state(), before)


@pytest.mark.parametrize("case", ["eta 0", "eta 1", "mask and eta"])
def test_without_a_source_the_global_generator_decides(case):
    def once(seed):
        torch.manual_seed(seed)
        return run(range(3), CASES[case], source=None)

    assert torch.equal(once(1), once(1))
    assert not torch.isclose(once(1), once(2)).all()


def test_a_given_start_is_used_and_the_seeds_feed_the_rest():
    x_T = randn(3, *SHAPE, dtype=torch.float32)
    sampler = DDIMSampler(model())
    once = [sampler.sample(6, 3, SHAPE, x_T=x_T, eta=1.0, seeds=s, progress=False) for s in ([1, 2, 3], [1, 2, 9])]
    assert torch.equal(once[0][1]["x_inter"][0], x_T)
    close(once[0][0][:2], once[1][0][:2])
    assert not torch.isclose(once[0][0][2], once[1][0][2]).all()


def test_seeded_noise_is_the_same_whatever_the_precision_of_the_latents():
    x_T = randn(2, *SHAPE, seed=3)
    options = {"eta": 1.0, "seeds": [1, 2], "progress": False}
    double, _ = DDIMSampler(MixtureModel(two_modes())).sample(6, 2, SHAPE, x_T=x_T, **options)
    single, _ = DDIMSampler(model()).sample(6, 2, SHAPE, x_T=x_T.float(), **options)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_noise_drawn_on_the_host_makes_a_seed_mean_the_same_on_every_device(case):
    options = CASES[case] | {"noise_device": "cpu"}
    here = run(range(3), options)
    there = DDIMSampler(model().cuda())
    options = {k: v.cuda() if torch.is_tensor(v) else v for k, v in options.items()}
    if "mask" in options:
        options["x0"] = X0[:3].cuda()
    out = there.sample(9, 3, SHAPE, C[:3].cuda(), seeds=SEEDS[:3], progress=False, **options)[0]
    assert out.is_cuda
    torch.testing.assert_close(out.cpu(), here, rtol=0, atol=1e-4)
