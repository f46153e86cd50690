"""Which timesteps a sampler visits."""

import numpy as np
import pytest

from ldm.sampling.timesteps import SPACINGS, given_timesteps, make_timesteps

T = 1000
EXACT = [name for name in SPACINGS if name != "compvis"]  # CompVis' own counts are S only where S divides T


@pytest.mark.parametrize("spacing", EXACT)
@pytest.mark.parametrize("t", [T, 1, 2, 7, 50, 997, 4000])
def test_every_number_of_steps_is_met_exactly_and_stays_in_range(spacing, t):
    for s in range(1, t + 1) if t <= T else range(1, t + 1, 37):
        steps = make_timesteps(spacing, s, t)
        assert len(steps) == s and steps.dtype == np.int64, s
        assert steps[0] >= 0 and steps[-1] < t and np.all(np.diff(steps) > 0), s


@pytest.mark.parametrize("spacing", EXACT)
def test_all_the_timesteps_are_all_the_timesteps(spacing):
    assert make_timesteps(spacing, T, T).tolist() == list(range(T))


def test_uniform_is_compvis_where_the_number_divides():
    for s in [s for s in range(1, T) if T % s == 0]:
        assert make_timesteps("uniform", s, T).tolist() == list(range(1, T, T // s)), s


def test_uniform_is_even_where_it_does_not():
    for s in range(1, T):
        gaps = np.diff(make_timesteps("uniform", s, T))
        assert s == 1 or set(gaps) <= {T // s, -(-T // s)}, s


def test_compvis_keeps_the_originals_count_and_refuses_what_ran_out_of_its_schedule():
    for s in range(1, T + 1):
        original = np.arange(0, T, T // s) + 1
        if original[-1] < T:
            assert make_timesteps("compvis", s, T).tolist() == original.tolist()
        else:
            with pytest.raises(ValueError, match=f'S = {s} asks for timestep 1000.*"uniform"'):
                make_timesteps("compvis", s, T)


def test_quad_is_compvis_where_its_steps_are_distinct():
    met = 0
    for s in range(1, T + 1):
        original = (np.linspace(0, np.sqrt(T * 0.8), s) ** 2).astype(int) + 1
        if np.all(np.diff(original) > 0):
            assert make_timesteps("quad", s, T).tolist() == original.tolist()
            met += 1
    assert met == 29, "from 30 on the first squares fall together"


def test_quad_stays_dense_where_noise_is_low():
    for s in (50, 100, 400):
        steps = make_timesteps("quad", s, T)
        assert np.all(np.diff(steps, 2) >= -1) and steps[s // 2] < 0.25 * T


@pytest.mark.parametrize(
    "spacing, s, expected",
    [
        ("leading", 4, [0, 250, 500, 750]),
        ("leading", 3, [0, 333, 666]),
        ("trailing", 4, [249, 499, 749, 999]),
        ("trailing", 3, [332, 666, 999]),
        ("linspace", 4, [0, 333, 666, 999]),
        ("linspace", 3, [0, 500, 999]),
    ],
)
def test_the_other_spacings_are_diffusers(spacing, s, expected):
    assert make_timesteps(spacing, s, T).tolist() == expected


def test_an_unknown_spacing_is_told_the_choices():
    with pytest.raises(ValueError, match="cubic.*uniform, compvis, quad, leading, trailing, linspace"):
        make_timesteps("cubic", 10, T)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "s, error", [(0, ValueError), (-1, ValueError), (1001, ValueError), (5.0, TypeError), (None, TypeError)]
)
def test_a_number_of_steps_that_cannot_be_is_refused_with_the_range(spacing, s, error):
    with pytest.raises(error, match=rf"S = {s}.*1 to 1000"):
        make_timesteps(spacing, s, T)


@pytest.mark.parametrize("given", [[1, 20, 999], [999, 20, 1], (1, 20, 999), np.array([999, 20, 1])])
def test_a_given_list_is_taken_in_either_order(given):
    assert given_timesteps(given, 3, T).tolist() == [1, 20, 999]


@pytest.mark.parametrize(
    "given, message",
    [
        ([1, 20], "2 steps, but S = 3"),
        ([20, 1, 999], "rise or fall"),
        ([1, 1, 999], "rise or fall"),
        ([0, 20, 1000], "from 0 to 1000; this model's are 0 to 999"),
        ([-1, 20, 30], "from -1 to 30"),
        ([1, 20.5, 30], r"timesteps = \[1, 20.5, 30\]: give whole numbers"),
        ("abc", "timesteps = 'abc': give whole numbers"),
        (3, "timesteps = 3: give whole numbers"),
    ],
)
def test_a_given_list_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        given_timesteps(given, 3, T)
