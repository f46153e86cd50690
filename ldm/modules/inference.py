"""A network made ready to be sampled from: its weights as the machine's kernels want them.

    prepare_for_inference(model)                # in place; and again for what was loaded later
    prepare_for_inference(model, compile=True)  # the denoiser compiled, too: slow to begin with

Feature maps get their channels last, which is the order of tokens, so that nothing is turned round between convolution
and attention. On a CPU, oneDNN reorders a layer's weights at each call, which for small pictures takes as long as the
convolution: here they are reordered once, at the first. The numbers are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel


def prepare_for_inference(
    model: nn.Module, *, compile: bool = False, release: Callable[[Tensor], Any] = lambda weight: None
) -> nn.Module:
    """Make every U-Net in `model` ready to be sampled from, in place; returns `model`. It can be trained no more.

    `state_dict()`, `.to()` and loading work as before. Layers of somebody else's, or hooked, are left as they are.
    `compile`: the U-Net goes through torch.compile, whole (fullgraph) and once for each size; on a CPU with its weights
    frozen in. `release` is called with each weight that is not used any more, such as `ldm.checkpoint.mapped.release`.
    """
    for network in [module for module in model.modules() if isinstance(module, UNetModel)]:
        network.requires_grad_(False)
        packs = network.time_embed[0].weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if network.dims == 2:
            network.memory_format = torch.channels_last
        if compile:
            _compile(network)
        elif packs:
            _pack(network, release)
        elif network.dims == 2:
            network.to(memory_format=torch.channels_last)
    return model


def _pack(network: nn.Module, release: Callable[[Tensor], Any]) -> None:
    for parent, name, layer in list(_packable(network)):
        setattr(parent, name, (PackedConv2d if isinstance(layer, nn.Conv2d) else PackedLinear)(layer, release))


def _packable(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Convolutions, and the transformers' linear layers; those of the timestep see a row or two, and stay."""
    for parent in network.modules():
        inside = isinstance(parent, BasicTransformerBlock)
        for name, layer in parent.named_children():
            if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                yield parent, name, layer
        if inside:
            for module in parent.modules():
                for name, layer in module.named_children():
                    if type(layer) is nn.Linear and _gains(layer):
                        yield module, name, layer


def _gains(layer: nn.Linear) -> bool:
    """In float32 the usual kernel is quick with small weights: by a third, where they are 128 wide."""
    return layer.weight.dtype != torch.float32 or layer.weight.numel() >= 2**20


class _Packed(nn.Module):
    """A layer whose weight is in the kernel's own order, from its first call on; in the state dict it is as ever.

    Where the kernel does not take it (a dtype that this processor has no instructions for) the layer stays as it was.
    """

    def __init__(self, layer: nn.Module, release: Callable[[Tensor], Any] = lambda weight: None):
        super().__init__()
        self.weight, self.bias, self.packed, self.release = layer.weight, layer.bias, None, release
        self.plain = False  # whether packing failed

    def pack(self, x: Tensor) -> None:
        try:
            packed = self.reordered(x)
        except RuntimeError:
            self.plain = True
        else:
            weight, self.packed, self.weight = self.weight, packed, None
            self.release(weight.detach())

    def unpack(self) -> None:
        if self.packed is not None:
            self.weight, self.packed = nn.Parameter(self.packed.to_dense(), requires_grad=False), None
        self.plain = False

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None and not self.plain and not torch.is_grad_enabled() and x.dtype == self.weight.dtype:
            self.pack(x)
        return self.slow(x) if self.packed is None else self.fast(x)

    def reordered(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> _Packed:
        self.unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.packed is not None:  # first, as ever
            destination[prefix + "weight"] = self.packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args)


class PackedConv2d(_Packed):
    """`nn.Conv2d`."""

    def __init__(self, layer: nn.Conv2d, *args: Any):
        super().__init__(layer, *args)
        self.shape = layer.padding, layer.stride, layer.dilation, layer.groups

    def reordered(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *self.shape, x.shape)

    def fast(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.shape, "none", [], "")

    def slow(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.shape
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class PackedLinear(_Packed):
    """`nn.Linear`."""

    def reordered(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), x.numel() // x.shape[-1])

    def fast(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def slow(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _compile(network: UNetModel) -> None:
    """In place, by `nn.Module.compile`: `state_dict`, hooks and attributes stay the network's own."""
    if network.time_embed[0].weight.device.type == "cpu":
        network.compile(fullgraph=True, dynamic=False, options={"freezing": True})
    else:
        network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead")  # CUDA graphs
