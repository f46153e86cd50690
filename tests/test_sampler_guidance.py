"""Two conditionings, one answer."""

import pytest
import torch
from _small_model import C, Model, U, guided, run

from ldm.sampling import DDIMSampler
from ldm.sampling.guidance import pair_conditionings


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
