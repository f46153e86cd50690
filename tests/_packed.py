"""A prepared network that was called, and how much of it is packed."""

import torch
from test_networks import context_unet, inputs

from ldm.modules.inference import PackedConv2d, PackedLinear, prepare_for_inference


def packed(network):
    """How many weights are packed, looking at none."""
    return sum(
        layer.__dict__["_parameters"].packed is not None
        for layer in network.modules()
        if isinstance(layer, (PackedConv2d, PackedLinear))
    )


def used(network=None):
    """A prepared network that was called, beside what it is to return."""
    network = network or context_unet()
    expected = network(*inputs())
    with torch.no_grad():
        prepare_for_inference(network)(*inputs())
    assert packed(network) > 40
    return network, expected


def says(network, expected, atol=1e-5):
    with torch.no_grad():
        torch.testing.assert_close(network(*inputs()).to(expected), expected, rtol=0, atol=atol)
