"""A network made ready to be sampled from says the same, in every size, and compiled."""

import shutil
import warnings

import pytest
import torch
from _networks import golden_weights, randn
from _packed import packed, says, used
from _text_model import UNET
from test_networks import context_unet, inputs
from torch import nn

from ldm.modules import inference
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.inference import PackedConv2d, prepare_for_inference

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture(autouse=True)
def all_linear_layers(monkeypatch):
    """Also those of small networks, for which it does not pay."""
    monkeypatch.setattr(inference, "_gains", lambda layer: True)


# ------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("options", [
    {}, {"resblock_updown": True}, {"conv_resample": False}, {"use_linear_in_transformer": True}, {"num_classes": 5},
    {"use_scale_shift_norm": True, "transformer_depth": 2},
], ids=str)  # fmt: skip
def test_a_prepared_network_says_what_it_said_for_every_size_and_batch(options):
    network, prepared = (context_unet(**options) for _ in range(2))
    prepare_for_inference(prepared)
    y = {"y": torch.tensor([3])} if "num_classes" in options else {}
    for batch, height, width in ((2, 8, 8), (1, 8, 8), (3, 6, 10), (1, 2, 26), (5, 8, 8)):
        x, t, context = randn(batch, 4, height, width), torch.arange(batch), randn(2 * batch, 5, 12, seed=1)
        more = {k: v.expand(batch) for k, v in y.items()}
        with torch.no_grad():
            expected = network(x, t, context, **more)
            torch.testing.assert_close(prepared(x, t, context, **more), expected, rtol=0, atol=1e-5)
            assert prepared(x, t, context, **more).is_contiguous()
    assert packed(prepared) > 40


@pytest.mark.parametrize(("size", "options"), [
    (1, {}), (3, {"padding": 1}), (3, {"padding": 1, "stride": 2}), (3, {"padding": (0, 2), "dilation": 2}),
    (3, {"bias": False}), (2, {"stride": 2}), (3, {"groups": 4, "padding": 1}), (3, {"padding": "same"}),
    (3, {"padding": 1, "padding_mode": "reflect"}),
], ids=str)  # fmt: skip
def test_every_convolution_says_what_it_said(size, options):
    network = UNetModel(**UNET)
    network.input_blocks[0][0] = layer = nn.Conv2d(8, 12, size, **options).requires_grad_(False)
    sizes = [randn(*shape) for shape in ((2, 8, 9, 7), (1, 8, 5, 12), (4, 8, 9, 7))]
    expected = [layer(x) for x in sizes]
    prepare_for_inference(network)
    with torch.no_grad():
        for x, y in zip(sizes, expected):
            torch.testing.assert_close(layer(x), y)
            torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), y)


def test_networks_of_one_or_three_dimensions_are_left_to_themselves():
    plain = {k: v for k, v in UNET.items() if k not in ("use_spatial_transformer", "context_dim")}
    for dims in (1, 3):
        network = golden_weights(UNetModel(**plain, dims=dims))
        x, t = randn(2, 4, *[8] * dims), torch.tensor([3, 50])
        expected = network(x, t)
        with torch.no_grad():
            torch.testing.assert_close(prepare_for_inference(network)(x, t), expected)


def test_it_is_the_same_under_autocast_and_in_inference_mode():
    network, expected = used()
    with torch.autocast("cpu", torch.bfloat16):
        says(network, context_unet()(*inputs()), atol=0.02)
        assert packed(network) == 0  # autocast is about the usual layers
    with torch.inference_mode():
        says(network, expected)
        assert packed(network) > 40
    says(network, expected)
    assert all(not p.is_inference() for p in network.parameters())


def test_a_dtype_without_a_kernel_stays_as_it_was(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such instructions")

    monkeypatch.setattr(PackedConv2d, "reordered", refuse)
    network = context_unet()
    expected = network(*inputs())
    says(prepare_for_inference(network), expected)
    assert not any(layer.__dict__["_parameters"].packed is not None
                   for layer in network.modules() if isinstance(layer, PackedConv2d))  # fmt: skip


# --------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_says_what_it_said_and_is_compiled_once():
    counters = torch._dynamo.utils.counters
    network = context_unet(channel_mult=[1], attention_resolutions=[])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's
        x, t, context = inputs()
        expected = [network(x, t + step, context) for step in range(4)]
        prepare_for_inference(network)(x, t, context)
        prepare_for_inference(network, compile=True)
        counters.clear()
        for step in range(4):  # other values, as from step to step
            torch.testing.assert_close(network(x, t + step, context), expected[step], rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"] and not counters["recompiles"]
    assert list(network.state_dict()) == list(context_unet(channel_mult=[1], attention_resolutions=[]).state_dict())
