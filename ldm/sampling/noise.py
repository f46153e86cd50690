"""Where noise comes from: the global generator, one generator, or one for each sample."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .values import as_device, to_device


@dataclass(frozen=True)
class NoiseSource:
    """Draws for a batch, from generators that each feed `count` of its samples.

    `shares`: ((generator, count), …); None is the global generator. `device`: where that one draws (None: where the
    noise is wanted). Numbers are drawn in float32 unless told, so that a seed means the same in every precision.
    """

    shares: tuple[tuple[Generator | None, int], ...]
    device: torch.device | None = None

    @property
    def is_global(self) -> bool:
        """CompVis' own source: the global generator of the latents' device."""
        return self.shares[0][0] is None and self.device is None

    def normal(
        self,
        shape: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        drawn: torch.dtype = torch.float32,
    ) -> Tensor:
        """Standard normal noise of `shape`, (B, …), in `dtype`; `drawn`: that in which the generator draws."""
        return self._draw(torch.randn, shape, device, drawn).to(dtype)

    def dropout(self, noise: Tensor, p: float) -> Tensor:
        """Zero each element with probability p and scale the rest by 1/(1 − p)."""
        if p == 0:
            return noise
        if self.is_global:
            return F.dropout(noise, p)
        kept = self._draw(torch.rand, noise.shape, noise.device) >= p
        return kept * noise / (1 - p) if p < 1 else torch.zeros_like(noise)

    def _draw(
        self, sampler: Callable[..., Tensor], shape: Sequence[int], device: torch.device, dtype=torch.float32
    ) -> Tensor:
        parts = []
        for generator, count in self.shares:
            where = generator.device if generator is not None else self.device or device
            parts.append(sampler(count, *shape[1:], generator=generator, device=where, dtype=dtype))
        return to_device(parts[0] if len(parts) == 1 else torch.cat(parts), device)


def global_noise(x: Tensor, repeat: bool = False, dropout: float = 0.0) -> Tensor:
    """Noise of x's shape from the global generator, as CompVis draws it; `repeat`: the same for all samples."""
    source = noise_source(1 if repeat else len(x))
    return source.dropout(source.normal(x.shape, x.device, x.dtype).expand_as(x), dropout)


def noise_source(
    batch_size: int,
    generator: Generator | Sequence[Generator] | None = None,
    seeds: Iterable[int] | None = None,
    noise_device: torch.device | str | None = None,
) -> NoiseSource:
    """The source that a caller's options describe.

    `generator`: one for the batch, or a list with one for each sample. `seeds`: one for each sample, each a generator
    on `noise_device` ("cpu" unless told, so that a seed means the same on every device). Neither: the global generator,
    of `noise_device` if that is given. ValueError if both are given or the number of them is not `batch_size`.
    """
    device = None if noise_device is None else as_device("noise_device", noise_device)
    if seeds is not None:
        if generator is not None:
            raise ValueError("generator and seeds are both given: give one of them")
        try:
            seeds = [operator.index(seed) for seed in seeds]
        except TypeError:
            raise TypeError(f"seeds = {seeds!r}: give one int for each of the {batch_size} samples") from None
        for seed in seeds:
            if not -(2**63) <= seed < 2**64:
                raise ValueError(f"seeds holds {seed}, but torch takes -2**63 to 2**64 - 1: choose from there")
        generator = [Generator(device or "cpu").manual_seed(seed) for seed in seeds]
    if generator is None or isinstance(generator, Generator):
        return NoiseSource(((generator, batch_size),), device)
    if not isinstance(generator, list | tuple) or not all(isinstance(g, Generator) for g in generator):
        raise TypeError(f"generator = {generator!r}: give a torch.Generator, or a list with one for each sample")
    shares = tuple((g, 1) for g in generator)
    if len(shares) != batch_size:
        name = "generator" if seeds is None else "seeds"
        raise ValueError(f"{name} holds {len(shares)}, but batch_size is {batch_size}: give one for each sample")
    return NoiseSource(shares)
