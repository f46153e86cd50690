"""Feature reuse across steps: an approximation. After "DeepCache", Ma, Fang and Wang 2023 (arXiv 2312.00858).

    with reuse_features(model, every=3):
        sampler.sample(…)

From one step to the next the deep features of a U-Net change little. So all of it runs at every N-th step only; at
those between, its outermost blocks do, and what comes up to them from below is the feature of the last full step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.openaimodel import UNetModel


@contextlib.contextmanager
def reuse_features(model: nn.Module, every: int, shallow: int = 1) -> Iterator[FeatureReuse]:
    """Inside, the U-Net in `model` runs in full at the first step of a run and every `every`-th after it; 1 is exact.
    At the others the first `shallow` input blocks run, and as many output blocks: fewer are faster, more are nearer.

    ValueError unless 1 ≤ every, 1 ≤ shallow ≤ the number of input blocks, and the model has one U-Net, whose `forward`
    is ours and not compiled.
    """
    networks = [module for module in model.modules() if isinstance(module, UNetModel)]
    if len(networks) != 1 or type(networks[0]).forward is not UNetModel.forward or "forward" in vars(networks[0]):
        raise ValueError(
            f"reuse_features needs a model with one U-Net, whose forward is ldm's UNetModel's;"
            f" {type(model).__name__} has {len(networks)} U-Nets: leave it out"
        )
    (network,) = networks
    if every > 1 and network._compiled_call_impl is not None:
        raise ValueError(f"every={every}: a compiled network is always run in full; leave out one of the two")
    if not 1 <= shallow <= len(network.input_blocks):
        raise ValueError(f"shallow={shallow}: give a number of input blocks from 1 to {len(network.input_blocks)}")
    before, network.reuse = network.reuse, FeatureReuse(every, shallow)
    try:
        yield network.reuse
    finally:
        network.reuse = before


class _Kept(NamedTuple):
    """A deep feature, and the call that it is from."""

    step: int
    like: tuple  # of the features that entered
    nth: int  # of the calls in its step that are told the same
    context: Tensor | None
    y: Tensor | None
    feature: Tensor

    def fits(self, h: Tensor, context: Tensor | None, y: Tensor | None) -> bool:
        return self.like == _like(h) and _same(self.context, context) and _same(self.y, y)


class FeatureReuse:
    """What runs a U-Net's blocks, and remembers their deep feature: `UNetModel.reuse`.

    A step is the calls at one timestep (PLMS has two at its second). Guidance may ask for its conditionings in one call
    or in several: each has a feature of its own, and what has none of the last `every` steps is run in full.

    A new run, which must use no feature of the last, is noticed by a timestep that goes up, or by the conditioning that
    each of ldm's samplers makes for its run (`kept.keeping`); where neither tells, call `begin`. On the way up
    (inversion) nothing is reused, nor with gradients.
    """

    def __init__(self, every: int, shallow: int = 1) -> None:
        """ValueError for every < 1."""
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}: give a whole number of steps; 1 runs all of the network in each")
        self.every, self.shallow = every, shallow
        self.begin()

    def begin(self) -> None:
        """Forget all: the next call is the first of a run."""
        self._times, self._step, self._ups = (math.inf,), -1, 0  # ups: in a row, of the timestep
        self._kept: list[_Kept] = []
        self._calls: list[_Kept] = []  # of this step; their features are none

    def __call__(
        self, network: UNetModel, h: Tensor, emb: Tensor, context: Tensor | None, timesteps: Tensor, y: Tensor | None
    ) -> Tensor:
        """`network.blocks(h, emb, context)`, or nearly."""
        if self.every == 1 or torch.is_grad_enabled():
            return network.blocks(h, emb, context)
        self._see(timesteps)
        nth = sum(call.fits(h, context, y) for call in self._calls)
        call = _Kept(self._step, _like(h), nth, _own(context), _own(y), h.new_empty(0))
        self._calls.append(call)
        known = next((kept for kept in self._kept if kept.nth == nth and kept.fits(h, context, y)), None)
        if known is not None and known.step > self._step - self.every:
            return network.blocks(h, emb, context, end=self.shallow, inside=lambda _: known.feature)

        def deep(h: Tensor) -> Tensor:
            feature = network.blocks(h, emb, context, begin=self.shallow)
            current = [k for k in self._kept if k is not known and k.step > self._step - self.every]
            self._kept = [*current, call._replace(feature=feature)]
            return feature

        return network.blocks(h, emb, context, end=self.shallow, inside=deep)

    def _see(self, timesteps: Tensor) -> None:
        times = tuple(sorted(set(timesteps.tolist()), reverse=True))
        if times == self._times:
            return
        ups = self._ups + 1 if times > self._times else 0
        if ups or self._ups > 1:  # up: another run; down after several: an inversion turned round, another run as well
            self.begin()
        self._times, self._step, self._ups, self._calls = times, self._step + 1, ups, []


def _like(h: Tensor) -> tuple:
    return h.shape, h.dtype, h.device


def _own(told: Tensor | None) -> Tensor | None:
    """Such that it stays as it is: what is a run's own does, and the rest is little."""
    return told if told is None or hasattr(told, "kept") else told.clone()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two calls were told the same; a run's own conditioning is that of no other, whatever it says."""
    if one is None or other is None or hasattr(one, "kept") or hasattr(other, "kept"):
        return one is other
    return _like(one) == _like(other) and torch.equal(one, other)
