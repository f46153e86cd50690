"""slerp: between two latents along the circle."""

import math

import pytest
import torch
from _mixture import randn

from ldm.sampling import slerp

A, B = randn(3, 2, 4, seed=1), randn(3, 2, 4, seed=2)


def norms(x):
    return x.flatten(1).norm(dim=1)


def unit(x):
    return x / norms(x).reshape(-1, *[1] * (x.ndim - 1))


def angle(a, b):
    return (unit(a) * unit(b)).flatten(1).sum(1).clamp(-1, 1).acos()


def test_the_ends_are_the_ends():
    torch.testing.assert_close(slerp(A, B, 0.0), A)
    torch.testing.assert_close(slerp(A, B, 1.0), B)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_on_the_unit_sphere_it_goes_that_part_of_the_angle_and_stays_on_it(weight):
    a, b = unit(A), unit(B)
    x = slerp(a, b, weight)
    torch.testing.assert_close(norms(x), torch.ones(3, dtype=x.dtype))
    torch.testing.assert_close(angle(a, x), weight * angle(a, b))
    torch.testing.assert_close(angle(x, b), (1 - weight) * angle(a, b))


def test_it_is_the_formula_of_the_paper():
    theta = angle(A, B).reshape(3, 1, 1)
    for w in (0.25, 0.6):
        expected = (torch.sin((1 - w) * theta) * A + torch.sin(w * theta) * B) / torch.sin(theta)
        torch.testing.assert_close(slerp(A, B, w), expected, rtol=1e-12, atol=1e-12)


def test_it_is_symmetric_and_does_not_mind_how_long_the_ends_are():
    torch.testing.assert_close(slerp(A, B, 0.3), slerp(B, A, 0.7))
    torch.testing.assert_close(slerp(2 * A, 2 * B, 0.3), 2 * slerp(A, B, 0.3))
    torch.testing.assert_close(1e6 * slerp(1e-6 * A, 1e-6 * B, 0.3), slerp(A, B, 0.3))


def test_noise_stays_as_strong_where_a_straight_line_weakens_it():
    a, b = randn(8, 4, 64, 64, seed=1), randn(8, 4, 64, 64, seed=2)
    between = slerp(a, b, 0.5)
    assert (between.flatten(1).std(1) - 1).abs().max() < 0.02
    assert (((a + b) / 2).flatten(1).std(1) - 0.5**0.5).abs().max() < 0.02


def test_each_sample_has_its_own_angle_and_may_have_its_own_weight():
    weights = torch.tensor([0.0, 0.4, 1.0])
    x = slerp(A, B, weights)
    assert x.shape == A.shape
    for i, w in enumerate(weights.tolist()):
        torch.testing.assert_close(x[i : i + 1], slerp(A[i : i + 1], B[i : i + 1], w))


def test_one_pair_and_many_weights_give_a_row():
    row = slerp(A[:1], B[:1], torch.linspace(0, 1, 5))
    assert row.shape == (5, 2, 4)
    torch.testing.assert_close(row[2:3], slerp(A[:1], B[:1], 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-7, 1e-4])
def test_nearly_parallel_ends_are_the_straight_line(dtype, apart):
    a = A.to(dtype)
    b = (A + apart * B).to(dtype)
    line = 0.7 * a + 0.3 * b
    torch.testing.assert_close(slerp(a, b, 0.3), line, rtol=8 * torch.finfo(dtype).eps, atol=apart**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposite_ends_and_zeros_stay_finite(dtype):
    a, zero = A.to(dtype), torch.zeros_like(A, dtype=dtype)
    torch.testing.assert_close(slerp(a, -a, 0.25), 0.5 * a)
    for x in (slerp(a, -a, 0.5), slerp(a, zero, 0.5), slerp(zero, zero, 0.5), slerp(a, -2 * a, 0.3)):
        assert torch.isfinite(x).all()


def test_the_precision_of_the_ends_is_kept_and_half_is_computed_in_full():
    half = slerp(A.half(), B.half(), 0.3)
    assert half.dtype == torch.float16 and slerp(A.float(), B, 0.3).dtype == torch.float64
    torch.testing.assert_close(half.double(), slerp(A, B, 0.3), rtol=2e-3, atol=2e-3)
    big = torch.full((1, 4, 64, 64), 3.0, dtype=torch.float16)  # its norm would overflow
    assert torch.isfinite(slerp(big, torch.rand_like(big), 0.5)).all()


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(ValueError, match=r"slerp of shapes \(3, 2, 4\) and \(3, 2, 3\)"):
        slerp(A, B[..., :3], 0.5)
    with pytest.raises(ValueError, match="give latents"):
        slerp(A[0, 0], B[0, 0], 0.5)
    with pytest.raises(ValueError, match="slerp of 3 and 3 latents with 2 weights"):
        slerp(A, B, torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="slerp of 3 and 2 latents with 1 weights"):
        slerp(A, B[:2], 0.5)
    assert math.isclose(slerp(A, B, 0.5).sum().item(), slerp(A, B, torch.tensor(0.5)).sum().item())
