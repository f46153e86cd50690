"""Which precision is picked where, and what is said of pictures that overflowed in it."""

import warnings
from types import SimpleNamespace

import _machine
import pytest
import torch
from torch import nn

CPU, CUDA, MPS = (SimpleNamespace(type=kind) for kind in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize("name", ["auto", "autocast"])
@pytest.mark.parametrize(
    "flags, dtype",
    [
        ("flags : sse avx512f avx512_bf16 amx_tile", torch.bfloat16),
        ("flags : amx_bf16", torch.bfloat16),
        ("Features : fp asimd bf16 sm3", torch.bfloat16),
        ("flags : sse avx512f avx512_bf16x not_bf16_at_all", torch.float32),
        ("", torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_has_instructions_for_it(name, flags, dtype, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(flags)
    has = _machine._cpu_has_bf16(tmp_path / "cpuinfo")
    monkeypatch.setattr(_machine, "_cpu_has_bf16", lambda: has)
    assert _machine.pick_dtype(name, CPU) == dtype
    assert _machine.pick_dtype(name, MPS) == torch.float32


def test_a_system_that_does_not_tell_computes_in_full(tmp_path):
    assert not _machine._cpu_has_bf16(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "capability, dtype", [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)]
)
def test_auto_on_cuda_goes_by_the_generation(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _machine.pick_dtype("auto", CUDA) == dtype


def test_a_precision_that_is_named_is_taken():
    assert [_machine.pick_dtype(name, CUDA) for name in ("full", "bf16", "fp16")] == [
        torch.float32, torch.bfloat16, torch.float16
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="fp16 is slow on a CPU"):
        _machine.pick_dtype("fp16", CPU)


@pytest.mark.parametrize("name", ["half", None, 16, ["bf16"]])
def test_a_precision_that_is_not_known_is_an_error_with_the_choices(name):
    with pytest.raises(ValueError, match="precision is .*; choose one of auto, full, bf16, fp16, autocast"):
        _machine.pick_dtype(name, CPU)


def test_a_device_that_is_not_there_is_named_in_one_sentence(monkeypatch):
    def dispatch(*_, **__):
        raise RuntimeError(
            f"Could not run 'aten::empty' with arguments from the 'MPS' backend. {'This could be ' * 99}"
        )

    monkeypatch.setattr(torch, "empty", dispatch)
    with pytest.raises(
        ValueError, match=r"\(Could not run 'aten::empty' with arguments from the 'MPS' backend\); auto"
    ):
        _machine.pick_device("mps")


class Model(nn.Module):
    """Its autoencoder doubles the latents; `limit` is where float16 gives NaN."""

    device = torch.device("cpu")

    def __init__(self, dtype, limit=None):
        super().__init__()
        self.network = nn.Linear(1, 1).to(dtype)
        self.first_stage_model = nn.Conv2d(3, 3, 1).to(dtype)
        self.limit = limit

    def decode_first_stage(self, z):
        images = 2 * z
        narrow = self.first_stage_model.weight.dtype != torch.float32
        return images.masked_fill(images.abs() > self.limit, torch.nan) if narrow and self.limit else images


LATENTS = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_an_autoencoder_that_overflows_computes_in_float32_from_then_on():
    model = Model(torch.float16, limit=0.1)
    with pytest.warns(UserWarning, match="autoencoder overflowed in float16.*float32 from here on"):
        images = _machine.decode(model, LATENTS)
    assert torch.equal(images, 2 * LATENTS)
    assert model.first_stage_model.weight.dtype == torch.float32 and model.network.weight.dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _machine.decode(model, LATENTS)


@pytest.mark.parametrize(
    "dtype, remedy", [(torch.float16, "--precision full"), (torch.float32, "check the checkpoint")]
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_latents_that_overflowed_are_an_error_with_the_remedy(dtype, remedy, bad):
    latents = LATENTS.clone()
    latents[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=f"overflowed in {str(dtype).removeprefix('torch.')}.*{remedy}"):
        _machine.decode(Model(dtype), latents)


def test_pictures_that_overflow_in_float32_are_not_told_to_be_computed_in_full_precision():
    model = Model(torch.float32)
    model.decode_first_stage = lambda z: z / 0
    with pytest.raises(
        ValueError, match=r"autoencoder overflowed in float32.*check the checkpoint.*scale_factor"
    ) as error:
        _machine.decode(model, LATENTS)
    assert "precision" not in str(error.value)
    half = Model(torch.float16)
    half.decode_first_stage = lambda z: z / 0
    with pytest.warns(UserWarning, match="float32 from here on"), pytest.raises(ValueError, match="in float32"):
        _machine.decode(half, LATENTS)


def test_flat_pictures_in_half_precision_are_named():
    latents = LATENTS.clone()
    latents[0] = -0.5
    with pytest.warns(UserWarning, match="1 of 2 pictures are one flat colour.*float16.*--precision full"):
        _machine.decode(Model(torch.float16), latents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _machine.decode(Model(torch.float32), latents)
        _machine.decode(Model(torch.float16), LATENTS)
