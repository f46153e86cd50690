"""What an autoencoder's encoder may return: a diagonal Gaussian, or a single point."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class AbstractDistribution:
    """Something that can be drawn from, and has a likeliest value."""

    def sample(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no sample()")

    def mode(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no mode()")


class DiracDistribution(AbstractDistribution):
    """Always `value`."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def sample(self) -> Tensor:
        return self.value

    def mode(self) -> Tensor:
        return self.value


class DiagonalGaussianDistribution(AbstractDistribution):
    """N(mean, exp(logvar)), independent in every entry.

    `parameters`: (B, 2C, …), means then log-variances; the latter are clamped to [−30, 20]. `deterministic` makes
    the variance zero, so that a sample is the mean.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.deterministic = deterministic
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std = torch.exp(0.5 * self.logvar)
            self.var = torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std · noise. The noise is drawn on the CPU and moved, so a seed means the same on every device."""
        device = "cpu" if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """KL(self ‖ other) in nats per sample, (B,); against N(0, 1) without `other`."""
        if self.deterministic:
            return self.mean.new_zeros(len(self.mean))
        if other is None:
            return _per_sample(normal_kl(self.mean, self.logvar, 0.0, 0.0))
        return _per_sample(normal_kl(self.mean, self.logvar, other.mean, other.logvar))

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """−log p(sample), summed over `dims`."""
        if self.deterministic:
            return self.mean.new_zeros(len(self.mean))
        return 0.5 * (math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var).sum(dim=dims)


def _per_sample(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def normal_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor | float, logvar2: Tensor | float) -> Tensor:
    """KL(N(mean1, e^logvar1) ‖ N(mean2, e^logvar2)) in nats, entry by entry. Arguments broadcast; numbers will do."""
    mean1, logvar1, mean2, logvar2 = (torch.as_tensor(x) for x in (mean1, logvar1, mean2, logvar2))
    return 0.5 * (logvar2 - logvar1 + torch.exp(logvar1 - logvar2) + (mean1 - mean2) ** 2 * torch.exp(-logvar2) - 1)
