"""A run asks the device for nothing on its way."""

import sys

import pytest
import torch
from _small_model import SHAPE, C, Model, U, guided, run
from _text_model import sampled, text, text_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler


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
