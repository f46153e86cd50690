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
from torch import Tensor, nn

from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.untouched import is_own_kind


def _keep(weight: Tensor) -> None:
    """A function with a name, for layers that are pickled."""


def prepare_for_inference(
    model: nn.Module, *, compile: bool = False, release: Callable[[Tensor], Any] = _keep
) -> nn.Module:
    """Make every U-Net in `model` ready to be sampled from, in place; returns `model`. Its weights are frozen.

    Layers and parameters stay the objects that they are, for who saves, loads, moves, averages, patches or hooks them,
    or trains them again, after `requires_grad_(True)`. Layers of somebody else's are left as they are.
    `compile`: the U-Net goes through torch.compile, whole (fullgraph) and once for each size; on a CPU with its weights
    frozen in. `release` is called with each weight that is not used any more, such as `ldm.checkpoint.mapped.release`.
    """
    for network in [module for module in model.modules() if isinstance(module, UNetModel)]:
        network.requires_grad_(False)
        packs = network.time_embed[0].weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if network.dims == 2:
            network.channels_last = True
        if compile:
            _unpack(network)
            _compile(network)
        elif packs and network._compiled_call_impl is None:
            _pack(network, release)
        elif network.dims == 2:
            network.to(memory_format=torch.channels_last)
    return model


def _pack(network: nn.Module, release: Callable[[Tensor], Any]) -> None:
    for layer in list(_packable(network)):
        layer.__class__ = PackedConv2d if isinstance(layer, nn.Conv2d) else PackedLinear  # hooks and all stay
        layer.__dict__["_parameters"] = _Parameters(layer._parameters)
        layer.release, layer.refused = release, None


def _unpack(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, _Packed):
            layer.__class__ = layer.usual
            layer.__dict__["_parameters"] = dict(layer._parameters.items())


def _packable(network: nn.Module) -> Iterator[nn.Module]:
    """Convolutions, and the transformers' linear layers; those of the timestep see a row or two, and stay."""
    usual = [kind for kind in (nn.Conv2d, nn.Linear) if is_own_kind(kind)]
    for parent in network.modules():
        if nn.Conv2d in usual:
            for layer in parent.children():
                if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                    yield layer
        if nn.Linear in usual and isinstance(parent, BasicTransformerBlock):
            yield from (layer for layer in parent.modules() if type(layer) is nn.Linear and _gains(layer))


def _gains(layer: nn.Linear) -> bool:
    """In float32 the usual kernel is quick with small weights: by a third, where they are 128 wide."""
    return layer.weight.dtype != torch.float32 or layer.weight.numel() >= 2**20


class _Parameters(dict):
    """A layer's parameters. While the weight is `packed`, the parameter itself is empty; who looks at it finds it as it
    ever was, to save, load, move, average, change or train it, and the layer packs it again when next called."""

    packed: Tensor | None = None

    def pack(self, packed: Tensor) -> None:
        self.packed, weight = packed, dict.get(self, "weight")
        weight.data = weight.new_empty(0)

    def look(self) -> _Parameters:
        if self.packed is not None:
            with torch.inference_mode(False), torch.no_grad():
                dict.get(self, "weight").data = self.packed.to_dense()
            self.packed = None
        return self

    def __getitem__(self, name: str) -> Any:
        return super(_Parameters, self.look()).__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        super(_Parameters, self.look()).__setitem__(name, value)

    def items(self) -> Any:
        return super(_Parameters, self.look()).items()

    def values(self) -> Any:
        return super(_Parameters, self.look()).values()

    def __reduce__(self) -> tuple:
        return _Parameters, (dict(self.items()),)


class _Packed(nn.Module):
    """A layer whose weight is in the kernel's own order, from its first call without gradients on.

    Where the kernel does not take it (a dtype that this processor has no instructions for) the layer stays as it was.
    """

    usual: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        own = self.__dict__["_parameters"]  # not looked into: see there
        weight, bias = dict.get(own, "weight"), dict.get(own, "bias")
        fits = isinstance(weight, nn.Parameter) and x.dtype == weight.dtype and x.device.type == "cpu"
        if fits and not (torch.is_grad_enabled() or weight.requires_grad or torch.is_autocast_enabled("cpu")):
            if own.packed is None and self.refused != weight.dtype:
                self.pack(x, weight)
            if own.packed is not None:
                return self.fast(x, own.packed, bias)
        return super().forward(x)

    def pack(self, x: Tensor, weight: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            weight, own = weight.detach(), self.__dict__["_parameters"]
            try:
                packed = self.reordered(x, weight)
            except RuntimeError:
                self.refused = weight.dtype
            else:
                own.pack(packed)
                self.release(weight)

    def reordered(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def fast(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class PackedConv2d(_Packed, nn.Conv2d):
    """`nn.Conv2d`."""

    usual = nn.Conv2d

    def reordered(self, x: Tensor, weight: Tensor) -> Tensor:
        shape = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *shape, x.shape)

    def fast(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        shape = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *shape, "none", [], "")


class PackedLinear(_Packed, nn.Linear):
    """`nn.Linear`."""

    usual = nn.Linear

    def reordered(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, x.numel() // x.shape[-1])

    def fast(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _compile(network: UNetModel) -> None:
    """In place, by `nn.Module.compile`: `state_dict`, hooks and attributes stay the network's own."""
    if network.time_embed[0].weight.device.type == "cpu":
        network.compile(fullgraph=True, dynamic=False, options={"freezing": True})
    else:
        network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead")  # CUDA graphs
