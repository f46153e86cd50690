"""A run asks the device for nothing on its way, makes what its steps share once, and follows what changes within it."""

import sys
from collections import Counter

import pytest
import torch
from _small_model import SHAPE, X_T, C, Model, U, guided, run
from _text_model import sampled, text, text_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler

# --------------------------------------------------------------------------------------------- nothing waits for it


class Away(Model):
    """On a device without numbers, so that reading one is an error."""

    device = torch.device("meta")

    def apply_model(self, x, t, c):
        shift = 0.0 if c is None else c.reshape(-1, *[1] * (x.ndim - 1))
        return torch.sin(x) + torch.cos(t / 30).reshape(-1, *[1] * (x.ndim - 1)) + shift


class Lists(TorchFunctionMode):
    """Refuses to make a tensor of numbers on the device, which is a copy that is waited for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        there = str((kwargs or {}).get("device")) not in ("None", "cpu")
        if func in (torch.tensor, torch.as_tensor) and there and not isinstance(args[0], torch.Tensor):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Refuses a copy to the device that is not queued, by `to_device`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = [a for a in args if isinstance(a, torch.Tensor)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if copies and out.device.type == "meta" and any(a.device.type == "cpu" for a in inputs):
            raise AssertionError(f"{func} waits for the device")
        return out


@pytest.fixture
def away(monkeypatch):
    """Counts what is read from the device; there, reads are ones, and copies have no content."""
    reads = []

    def to_host(tensor):
        if tensor.device.type == "cpu":
            return tensor
        reads.append(tuple(tensor.shape))
        return torch.ones(tensor.shape, dtype=tensor.dtype)

    def to_device(tensor, device, dtype=None):
        if device.type == tensor.device.type:
            return tensor.to(dtype=dtype) if dtype else tensor
        return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=device)

    for name, module in list(sys.modules.items()):
        if name.startswith("ldm.sampling"):
            for function in (to_host, to_device):
                if hasattr(module, function.__name__):
                    monkeypatch.setattr(module, function.__name__, function)
    return reads


def there(value):
    return value.to("meta") if isinstance(value, torch.Tensor) else value


MASK, KNOWN = torch.tensor([[1.0, 0, 0.5, 0], [0] * 4]).expand(3, 1, 2, 4)[:, 0], torch.ones(3, *SHAPE)
OPTIONS = {
    "plain": {"x_T": None},
    "guided": guided(),
    "the global generator": guided(eta=1.0),
    "seeds": guided(eta=1.0, seeds=[1, 2, 3], temperature=0.5, noise_dropout=0.1),
    "a generator": guided(eta=1.0, generator=torch.Generator()),
    "given noise": guided(eta=1.0, normals_sequence=[KNOWN] * 5),
    "masked": guided(mask=MASK, x0=KNOWN),
    "masked in all ways": guided(mask=MASK, x0=KNOWN, seeds=[1, 2, 3], eta=1.0, gradual_mask=True, blend_final=True),
    "from a picture": {"x_T": None, "init": KNOWN, "strength": 0.5, "seeds": [1, 2, 3]},
    "two scales": guided(image_conditioning=U, image_guidance_scale=1.5, guidance_rescale=0.7),
    "one after the other": guided(batch_guidance=False, guidance_interval=(20, 60)),
    "clipped": guided(clip_x0=True, rederive_eps=True),
    "thresholded": guided(dynamic_threshold=0.9),
    "betas": {"betas": torch.linspace(0.01, 0.1, 100)},
}


@pytest.mark.parametrize("given", ["here", "there"])
@pytest.mark.parametrize("kind", [DDIMSampler, PLMSSampler, DPMSolverSampler])
@pytest.mark.parametrize("case", OPTIONS)
def test_a_run_reads_from_the_device_once_at_its_end(case, kind, given, away):
    options = OPTIONS[case]
    if given == "there":
        options = {k: there(v) for k, v in options.items()}
    else:
        options = {k: there(v) if "conditioning" in k else v for k, v in options.items()}
    if kind is not DDIMSampler:
        options = {k: v for k, v in options.items() if k not in ("eta", "temperature", "noise_dropout")}
        options.pop("normals_sequence", None)
    if case == "betas":
        options["betas"] = OPTIONS[case]["betas"]
    sampler = kind(Away())
    with Lists(), Copies():
        out = run(5, sampler, **options)
    assert out.device.type == "meta"
    masks = [(2,)] if given == "there" and "mask" in options else []  # its least and greatest value
    assert away == [*masks, (len(sampler.ddim_timesteps) if case != "from a picture" else 2,)]


@pytest.mark.filterwarnings("ignore:refine went away")  # as ones say
def test_inversion_reads_at_its_end_alone(away):
    sampler = DDIMSampler(Away())
    sampler.make_schedule(5)
    known, cond = there(KNOWN), there(C)
    with Lists(), Copies():
        sampler.encode(known, cond, 5, refine=2, progress=False)
        sampler.stochastic_encode(known, 3)
    assert away == [(5,), (5,)]  # whether it is finite, and whether it went away


def test_nor_does_a_network_that_attends_to_a_text_read_anything(away):
    model = text_model()
    model.model.to("meta")
    given = {k: there(text(i)) for i, k in enumerate(("conditioning", "unconditional_conditioning"))}
    sampler = DDIMSampler(model, device="meta")
    with Lists(), Copies():
        sampled(model, sampler=sampler, x_T=None, seeds=[1, 2], eta=1.0, **given)
    assert away == [(3,)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [DDIMSampler, PLMSSampler, DPMSolverSampler])
@pytest.mark.parametrize("case", OPTIONS)
def test_on_cuda_nothing_in_a_run_waits_by_mistake(case, kind):
    class Quiet(Away):
        device = torch.device("cuda")

    options = {k: v.cuda() if "conditioning" in k else v for k, v in OPTIONS[case].items()}
    if kind is not DDIMSampler:
        options = {k: v for k, v in options.items() if k not in ("eta", "temperature", "noise_dropout")}
        options.pop("normals_sequence", None)
    model = Quiet().cuda()
    run(5, kind(model), **options)  # what is done once in a process may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = run(5, kind(model), **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.is_cuda and out.isfinite().all()


# ------------------------------------------------------------------------------------------- once, and not in each step


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
