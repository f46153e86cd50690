"""A run makes what its steps share once, and follows what changes within it."""

from collections import Counter

import pytest
import torch
from _small_model import SHAPE, X_T, C, Model, U, guided, run
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.sampling import DDIMSampler


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Spy(Model):
    """`seen`: what apply_model was given at each call."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def apply_model(self, x, t, c):
        self.seen.append((x, t, c))
        return torch.sin(x)


def forms(leaves):
    """Two conditionings of so many tensors."""
    return tuple({"a": [base + i for i in range(leaves)], "b": [base], "n": 7} for base in (C, U))


def per_step(leaves, **options):
    cond, uncond = forms(leaves)
    counts = []
    for s in (4, 14):
        with Counting() as counting:
            run(s, DDIMSampler(Spy()), **guided(conditioning=cond, unconditional_conditioning=uncond, **options))
        counts.append(counting.ops)
    return {op: (counts[1][op] - counts[0][op]) / 10 for op in counts[1]}


@pytest.mark.parametrize("options", [{}, {"eta": 1.0, "seeds": [1, 2, 3]}], ids=["eta 0", "seeds"])
def test_a_step_costs_the_same_whatever_there_is_to_join(options):
    few, many = per_step(1, **options), per_step(12, **options)
    assert few == many
    assert few["aten.cat.default"] == 1 + ("seeds" in options)  # of the latents; of each sample's noise
    assert sum(few.values()) <= (15 if options else 11), few


def test_the_model_gets_the_same_object_at_each_step():
    model, (cond, uncond) = Spy(), forms(2)
    sampler = DDIMSampler(model)
    run(6, sampler, **guided(conditioning=cond, unconditional_conditioning=uncond))
    assert len(model.seen) == 6 and all(c is model.seen[0][2] for _, _, c in model.seen)
    assert torch.equal(model.seen[0][2]["a"][1], torch.cat([U + 1, C + 1])) and model.seen[0][2]["n"] == 7
    assert [t.tolist() for _, t, _ in model.seen] == [[t] * 6 for t in reversed(sampler.ddim_timesteps.tolist())]


@pytest.mark.parametrize("options", [
    {"unconditional_guidance_scale": 1.0, "image_conditioning": U, "image_guidance_scale": 1.0},
    {"guidance_interval": (1000, 2000)}, {"ucg_schedule": [1.0] * 5}, {"unconditional_conditioning": None},
], ids=str)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*no effect")
def test_what_cancels_is_not_asked_for(options):
    model = Spy()
    run(5, DDIMSampler(model), **guided(**options))
    assert [len(x) for x, _, _ in model.seen] == [3] * 5 and all(c is C for _, _, c in model.seen)


# ----------------------------------------------------------------------------------------- what changes within a run


def test_conditionings_that_a_callback_changes_count_from_the_next_step_on():
    cond, uncond = forms(2)
    model = Spy()

    def callback(i):
        if i == 0:
            cond["a"][0].add_(5)
        if i == 1:
            cond["a"][1] = cond["a"][1] - 9
        if i == 2:
            cond["n"] = uncond["n"] = 8
        if i == 3:
            for c in (cond, uncond):
                c["a"], c["b"] = c["a"][:1], c["a"][1:] + c["b"]

    cond["a"] = [t.clone() for t in cond["a"]]
    run(5, DDIMSampler(model), callback=callback, **guided(conditioning=cond, unconditional_conditioning=uncond))
    first, second, third, fourth, fifth = (c for _, _, c in model.seen)
    assert torch.equal(second["a"][0], first["a"][0] + torch.tensor([0, 0, 0, 5, 5, 5]))
    assert torch.equal(third["a"][1], second["a"][1] - torch.tensor([0, 0, 0, 9, 9, 9]))
    assert (third["n"], fourth["n"]) == (7, 8) and [len(c[k]) for c in (fourth, fifth) for k in "ab"] == [2, 1, 1, 2]


@pytest.mark.parametrize("how", ["a tensor", "a list", "a dict"])
def test_a_model_that_writes_into_what_it_is_given_gets_it_anew(how):
    class Careless(Spy):
        def apply_model(self, x, t, c):
            self.seen.append((len(c["a"]), "n" in c, c["a"][0].clone()))
            if how == "a tensor":
                c["a"][0].mul_(2)
            elif how == "a list":
                c["a"].append(C)
            else:
                del c["n"]
            return torch.sin(x)

    model, (cond, uncond) = Careless(), forms(2)
    run(3, DDIMSampler(model), **guided(conditioning=cond, unconditional_conditioning=uncond))
    assert all(torch.equal(a, torch.cat([U, C])) and (n, known) == (2, True) for n, known, a in model.seen)


def test_another_model_within_a_run_is_asked_from_then_on():
    base, refiner = Model(), Model("v")
    sampler = DDIMSampler(base)

    def callback(i):
        if i == 1:
            sampler.model = refiner

    found = run(5, sampler, callback=callback, **guided())
    assert len(base.calls) == 2 and len(refiner.calls) == 3
    sampler = DDIMSampler(base)
    x = X_T
    sampler.make_schedule(5)
    for i, index in enumerate(range(4, -1, -1)):
        sampler.model = base if i < 2 else refiner
        t = torch.full((3,), int(sampler.ddim_timesteps[index]))
        x, _ = sampler.p_sample_ddim(
            x, C, t, index, unconditional_conditioning=U, unconditional_guidance_scale=3.0, noise=0.0
        )
    torch.testing.assert_close(found, x)


def test_a_subclass_that_says_the_step_by_stepper_is_heard():
    steps = []

    class Own(DDIMSampler):
        def stepper(self, levels):
            def step(*args, **how):
                steps.append(how["index"])
                return self.p_sample_ddim(*args, **how)

            return step

    assert torch.equal(run(5, Own(Model()), **guided()), run(5, **guided())) and steps == [4, 3, 2, 1, 0]


def test_runs_by_turns_on_one_model_do_not_mix():
    model, seeds = Model(), ([1, 2, 3], [7, 8, 9])
    options = {"x_T": X_T, "eta": 1.0} | guided()
    cond = options.pop("conditioning")
    runs = [DDIMSampler(model).steps(5, 3, SHAPE, cond * (i + 1), seeds=s, **options) for i, s in enumerate(seeds)]
    for i, step in enumerate(list(zip(*runs))[-1]):
        alone = run(5, **options | {"conditioning": cond * (i + 1), "seeds": seeds[i]})
        assert torch.equal(step.x_prev, alone)
