"""Masks: 1 keeps. The known region comes back, the unknown one is sampled as if alone where it is independent."""

import pytest
import torch
from _mixture import MixtureModel, one_mode, randn, two_modes

from ldm.sampling import DDIMSampler

B, SHAPE = 3, (2, 4, 4)
X0, X_T = randn(B, *SHAPE, seed=30), randn(B, *SHAPE, seed=31)
KEEP = torch.zeros(4, 4, dtype=torch.float64)
KEEP[:, 1:3] = 1


def run(mask, eta=0.0, mix=None, **options):
    sampler = DDIMSampler(MixtureModel(mix or one_mode(SHAPE)))
    options = {"x0": X0, "x_T": X_T, "generator": torch.Generator().manual_seed(0), "progress": False} | options
    return sampler.sample(10, B, SHAPE, mask=mask, eta=eta, **options)[0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_blend_final_returns_the_known_region_bit_for_bit(eta):
    out = run(KEEP, eta, blend_final=True)
    assert torch.equal(out[..., 1:3], X0[..., 1:3])
    assert not torch.isclose(out[..., 0], X0[..., 0]).any()


def test_without_it_the_known_region_is_near_but_went_through_the_last_step():
    near, exact = run(KEEP, blend_final=False), run(KEEP, blend_final=True)
    error = (near - X0)[..., 1:3].abs()
    assert 0 < error.max() < 0.2
    assert torch.equal(near[..., 0], exact[..., 0])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_mask_of_ones_returns_x0(eta):
    assert torch.equal(run(torch.ones(4, 4, dtype=torch.float64), eta, blend_final=True), X0)


def test_a_mask_of_zeros_changes_nothing():
    torch.testing.assert_close(run(KEEP * 0, blend_final=True), run(None, x0=None), rtol=0, atol=1e-12)


def test_the_unknown_region_of_independent_pixels_does_not_see_the_known_one():
    masked, free = run(KEEP), run(None, x0=None)
    torch.testing.assert_close(masked[..., 0], free[..., 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(masked[..., 3], free[..., 3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_known_pixels_choose_the_mode_of_the_unknown_ones(eta):
    """Three pixels fixed at a mode's mean: the posterior puts the fourth in that mode."""
    mix = two_modes()
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    for k in range(2):
        x0 = mix.means[k].expand(64, 1, 2, 2).clone()
        out, _ = DDIMSampler(MixtureModel(mix)).sample(
            25, 64, (1, 2, 2), mask=mask, x0=x0, eta=eta, blend_final=True, x_T=randn(64, 1, 2, 2),
            generator=torch.Generator().manual_seed(k), progress=False,
        )  # fmt: skip
        assert (mix.responsibilities(out, 0.999)[:, k] > 0.9).double().mean() > 0.95


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4), (B, 1, 4, 4), (1, 4, 4), (2, 4, 4), (B, 2, 4, 4)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_masks_broadcast(shape, eta):
    whole = run(KEEP.expand(B, 2, 4, 4), eta, blend_final=True)
    assert torch.equal(run(KEEP.expand(shape), eta, blend_final=True), whole)


def test_each_sample_may_have_its_own_mask():
    mask = torch.stack([KEEP, 1 - KEEP, KEEP * 0])[:, None]
    out, m = run(mask, blend_final=True), mask.expand(B, *SHAPE).bool()
    assert torch.equal(out[m], X0[m]) and not torch.isclose(out[~m], X0[~m]).any()


def test_a_soft_mask_mixes():
    out = run(KEEP * 0.5, blend_final=True)
    torch.testing.assert_close(out, run(KEEP * 0.5) * (1 - KEEP * 0.5) + X0 * KEEP * 0.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gradual_or_not_is_the_same_for_masks_of_zeros_and_ones(eta):
    assert torch.equal(run(KEEP, eta, gradual_mask=True), run(KEEP, eta))
    assert torch.equal(run(KEEP, eta, gradual_mask=True, blend_final=True), run(KEEP, eta, blend_final=True))


@pytest.mark.parametrize("m, steps", [(0.0, 0), (0.04, 1), (0.5, 5), (0.51, 6), (0.95, 10), (1.0, 10)])
def test_a_gradual_mask_keeps_for_its_share_of_the_steps_the_first_ones(m, steps):
    """What is kept is put in before a step; what is not goes into it as it came out of the one before."""
    mask = torch.zeros(4, 4, dtype=torch.float64)
    mask[1, 2] = m
    sampler = DDIMSampler(MixtureModel(one_mode(SHAPE)))
    options = {"mask": mask, "gradual_mask": True, "x0": X0, "x_T": X_T, "blend_final": True}
    seen = list(sampler.steps(10, B, SHAPE, generator=torch.Generator().manual_seed(0), **options))
    came = [X_T, *(step.x_prev for step in seen)]
    kept = [not torch.equal(x[..., 1, 2], step.x_t[..., 1, 2]) for x, step in zip(came, seen)]
    assert kept == [True] * steps + [False] * (10 - steps)
    assert all(torch.equal(x[..., 0, 0], step.x_t[..., 0, 0]) for x, step in zip(came, seen))
    assert torch.equal(came[-1][..., 1, 2], X0[..., 1, 2]) == (m == 1)


@pytest.mark.parametrize("source", ["global", "generator"])
@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE), (B, *SHAPE)])
def test_one_known_picture_serves_the_whole_batch(shape, source):
    """B, C = 3, 2 here: a picture without its batch axis must not be mistaken for a batch."""
    torch.manual_seed(0)
    one = X0[0]
    x0 = one.expand(shape) if len(shape) == 4 else one
    options = {"generator": None} if source == "global" else {}
    out = run(KEEP, x0=x0, blend_final=True, **options)
    assert torch.equal(out[..., 1:3], one.expand(B, *SHAPE)[..., 1:3])
