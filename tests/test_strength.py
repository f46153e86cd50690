"""A run that starts from noised latents: `init` and `strength` (SDEdit, Meng et al. 2022)."""

import pytest
import torch
from _mixture import MixtureModel, randn, rms, two_modes
from _small_model import SHAPE, X_T, Model, guided, run

from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler
from ldm.sampling.loop import steps_of_strength
from ldm.sampling.schedule import q_sample

ALL = [DDIMSampler, PLMSSampler, DPMSolverSampler]
INIT = torch.linspace(-1, 1, 24).reshape(3, *SHAPE)


def start(**options):
    """`run` begins from `init`, not from x_T."""
    return run(**{"x_T": None, "init": INIT, "seeds": [1, 2, 3]} | options)


@pytest.mark.parametrize(
    "strength, steps, taken",
    [
        (1, 50, 50),
        (0.75, 50, 37),
        (0.8, 50, 40),
        (0.29, 100, 29),
        (1e-9, 50, 1),
        (0.5, 1, 1),
        (1.0, 1, 1),
        (0.02, 50, 1),
    ],
)
def test_the_steps_are_those_of_compvis_and_at_least_one(strength, steps, taken):
    assert steps_of_strength(strength, steps) == taken


@pytest.mark.parametrize("cls", ALL)
def test_it_is_stochastic_encode_and_decode_at_one_level(cls):
    sampler, noise = (
        cls(Model()),
        torch.cat([torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(k)) for k in (1, 2, 3)]),
    )
    out = start(sampler=sampler, strength=0.6, **guided())
    x = q_sample(INIT, sampler.levels().alpha_bar[2], noise)
    sampler.make_schedule(5, sampler.options.ddim_discretize, verbose=False)
    arguments = guided()
    expected = sampler.decode(x, arguments.pop("conditioning"), 3, **arguments)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_the_global_generator_noises_as_stochastic_encode_does():
    sampler = DDIMSampler(Model())
    torch.manual_seed(5)
    out = start(sampler=sampler, seeds=None, strength=0.6)
    torch.manual_seed(5)
    z = sampler.stochastic_encode(INIT, torch.full((3,), 2))
    torch.testing.assert_close(out, sampler.decode(z, None, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", ALL)
def test_less_strength_stays_nearer_to_where_it_began(cls):
    model = MixtureModel(two_modes())
    init = randn(64, 1, 2, 2, seed=4) * 0.3 + model.mixture.means[0]
    distances = []
    for strength in (0.05, 0.3, 0.6, 1.0):
        out, _ = cls(model).sample(20, 64, (1, 2, 2), init=init, strength=strength, seeds=range(64), progress=False)
        distances.append(rms(out - init))
    assert distances == sorted(distances) and distances[0] < 0.35 < 0.8 < distances[-1]


@pytest.mark.parametrize("strength", [1.0, 1e-6])
@pytest.mark.parametrize("cls", ALL)
def test_both_ends_run(cls, strength):
    model = Model()
    out = start(sampler=cls(model), strength=strength)
    assert torch.isfinite(out).all()
    steps = 5 if strength == 1 else 1
    assert len(model.calls) == steps + (cls is PLMSSampler)


@pytest.mark.parametrize("cls", ALL)
def test_a_sample_is_the_same_alone_and_in_a_batch(cls):
    together = start(sampler=cls(Model()), strength=0.6)
    for k in range(3):
        alone, _ = cls(Model()).sample(5, 1, SHAPE, init=INIT[k : k + 1], strength=0.6, seeds=[k + 1], progress=False)
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=1e-6)


def test_full_strength_is_the_default():
    assert torch.equal(start(), start(strength=1.0))


def test_a_mask_keeps_its_region_on_the_way_from_init():
    mask = torch.zeros(SHAPE)
    mask[:, :2] = 1
    out = start(strength=0.6, mask=mask, x0=INIT, blend_final=True)
    assert torch.equal(out[..., :2], INIT[..., :2]) and not torch.allclose(out[..., 2:], INIT[..., 2:], atol=1e-3)


def test_steps_and_schedules_count_the_steps_that_are_taken():
    sampler = DDIMSampler(Model())
    steps = list(sampler.steps(10, 3, SHAPE, init=INIT, strength=0.4, seeds=[1, 2, 3]))
    assert [step.index for step in steps] == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="ucg_schedule holds 5 scales .*, but there are 3 steps"):
        start(strength=0.6, ucg_schedule=[1] * 5, **guided())


@pytest.mark.parametrize("strength", [0, -0.5, 2, 1.0001, float("nan"), "0.5", None])
def test_strengths_out_of_range_are_refused(strength):
    if strength is None:
        assert torch.equal(start(strength=None), start(strength=1.0))
        return
    with pytest.raises(ValueError, match="strength = .*: give the part of the steps to take, above 0 and up to 1"):
        start(strength=strength)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"x_T": X_T}, "x_T and init both say where the run starts: give one of them"),
        ({"init": INIT[:2]}, r"init has shape \(2, 2, 4\), but \(batch_size, \*shape\) is \(3, 2, 4\)"),
        ({"init": INIT.numpy()}, "init is a ndarray: give a tensor"),
    ],
)
def test_what_cannot_be_started_from_is_said(options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        start(**options)


def test_strength_without_init_has_no_effect():
    with pytest.warns(UserWarning, match="strength has no effect: there is no init"):
        assert torch.equal(run(strength=0.5), run())


def test_decode_has_its_latents_already():
    sampler = DDIMSampler(Model())
    sampler.make_schedule(5, verbose=False)
    with pytest.raises(ValueError, match="x_T and init both"):
        sampler.decode(X_T, None, 3, init=INIT)
