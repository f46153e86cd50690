"""Data for which the right answer is known: mixtures of axis-aligned Gaussians, of any latent rank.

With x0 ~ sum_k w_k N(mu_k, s_k^2) and x_t = sqrt(a) x0 + sqrt(1 - a) eps (a is alpha-bar), x_t is again a mixture, of
N(sqrt(a) mu_k, a s_k^2 + 1 - a), so the best possible eps, x0 and v are closed forms (Bayes' rule; Karras et al. 2022,
appendix B.6, in the variance-preserving parameterisation). Nothing here knows how the sampler is written.
"""

import numpy as np
import torch
from torch import nn


def sd_betas(num_timesteps=1000, beta_start=0.00085, beta_end=0.012):
    """Stable Diffusion's betas in float64; other lengths are rescaled to end at about the same alpha-bar."""
    return np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2 * (1000 / num_timesteps)


def zero_terminal_snr_betas(num_timesteps=1000):
    """Betas whose last alpha-bar is exactly 0 (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - sd_betas(num_timesteps)))
    bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def _leaves(c):
    """Every tensor of a conditioning: None, a tensor, or lists and dicts of such."""
    if c is None:
        return []
    if torch.is_tensor(c):
        return [c]
    return [leaf for part in (c.values() if isinstance(c, dict) else c) for leaf in _leaves(part)]


class Mixture:
    """A mixture of Gaussians with diagonal covariances.

    `means`, `stds`: (K, *shape); `weights`: (K,). In the methods `x` is (B, *shape), `a` is alpha-bar as a scalar or
    (B,), and `shift`, (B,) or 0, moves every mean of a sample: it is what a conditioning does.
    """

    def __init__(self, means, stds, weights=None, dtype=torch.float64):
        self.means = torch.as_tensor(means, dtype=dtype)
        self.stds = torch.as_tensor(stds, dtype=dtype).expand(self.means.shape)
        k = len(self.means)
        self.weights = torch.as_tensor(np.full(k, 1 / k) if weights is None else weights, dtype=dtype)
        self.shape = tuple(self.means.shape[1:])

    def _column(self, value, x):
        """A scalar or (B,) as (B or 1, 1, 1, ...), to broadcast against (B, K, *shape)."""
        value = torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(-1)
        return value.reshape(-1, *[1] * (len(self.shape) + 1))

    def _posterior(self, x, a, shift):
        """Responsibilities (B, K, 1, ...), and per component the x0 and eps expected, (B, K, *shape)."""
        a, means, stds = self._column(a, x), self.means.to(x), self.stds.to(x)
        means = means + self._column(shift, x)
        variance = a * stds**2 + 1 - a
        residual = x.unsqueeze(1) - a.sqrt() * means
        logits = -0.5 * (residual**2 / variance + variance.log()).flatten(2).sum(2) + self.weights.to(x).log()
        r = logits.softmax(1).reshape(*logits.shape, *[1] * len(self.shape))
        return r, means + a.sqrt() * stds**2 / variance * residual, (1 - a).sqrt() / variance * residual

    def responsibilities(self, x, a, shift=0.0):
        """Probability of each component given x_t: (B, K)."""
        return self._posterior(x, a, shift)[0].flatten(1)

    def x0(self, x, a, shift=0.0):
        r, x0, _ = self._posterior(x, a, shift)
        return (r * x0).sum(1)

    def eps(self, x, a, shift=0.0):
        r, _, eps = self._posterior(x, a, shift)
        return (r * eps).sum(1)

    def v(self, x, a, shift=0.0):
        """v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans & Ho 2022, appendix D)."""
        a = self._column(a, x)[:, 0]
        return a.sqrt() * self.eps(x, a, shift) - (1 - a).sqrt() * self.x0(x, a, shift)

    def sample(self, n, a, generator):
        """n exact draws of x_t at alpha-bar a (a = 1 draws data): (n, *shape)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        scale = (a * self.stds[k] ** 2 + 1 - a).sqrt()
        z = torch.randn(n, *self.shape, dtype=self.means.dtype, generator=generator)
        return a**0.5 * self.means[k] + scale * z

    def flow(self, x, a_from, a_to, steps=1500):
        """The probability flow from alpha-bar a_from to a_to, by RK4 in u = asinh(sigma), to about 1e-9.

        With y = x / sqrt(a) and sigma = sqrt((1 - a) / a) the flow is dy/dsigma = eps (DDIM, eq. 14).
        """

        def slope(u, y):
            a = 1 / np.cosh(u) ** 2
            return np.cosh(u) * self.eps(y * a**0.5, a)

        u, end = (float(np.arcsinh(((1 - a) / a) ** 0.5)) for a in (a_from, a_to))
        h, y = (end - u) / steps, x / a_from**0.5
        for _ in range(steps):
            k1 = slope(u, y)
            k2 = slope(u + h / 2, y + h / 2 * k1)
            k3 = slope(u + h / 2, y + h / 2 * k2)
            k4 = slope(u + h, y + h * k3)
            y, u = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), u + h
        return y * a_to**0.5


def gaussian_flow(x, mean, std, a_from, a_to):
    """The same flow for one Gaussian, exactly: each coordinate keeps its number of standard deviations."""
    scale = ((a_to * std**2 + 1 - a_to) / (a_from * std**2 + 1 - a_from)) ** 0.5
    return a_to**0.5 * mean + (x - a_from**0.5 * mean) * scale


def reference_ddim(eps, x, alphas, eta=0.0, noise=None):
    """DDIM, eq. 12, by the letter: `alphas` are the alpha-bars from the start to the end, both included."""
    for i, (a, a_next) in enumerate(zip(alphas[:-1], alphas[1:])):
        sigma = eta * ((1 - a_next) / (1 - a)) ** 0.5 * max(1 - a / a_next, 0.0) ** 0.5
        e = eps(x, a)
        x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
        x = a_next**0.5 * x0 + max(1 - a_next - sigma**2, 0.0) ** 0.5 * e + (sigma * noise[i] if sigma else 0.0)
    return x


def exact_discrete_variance(std, a, eta, start=None):
    """The variance of a Gaussian's samples after the steps between the alpha-bars `a`, exact for every eta and S.

    A Gaussian's DDIM step is linear, so this is a recursion; `start` is the variance of x_T (default: the exact one).
    """
    variance = a[0] * std**2 + 1 - a[0] if start is None else start
    for now, to in zip(a[:-1], a[1:]):
        sigma2 = eta**2 * (1 - to) / (1 - now) * (1 - now / to)
        factor = (to * now) ** 0.5 * std**2 + ((1 - to - sigma2) * (1 - now)) ** 0.5
        variance = (factor / (now * std**2 + 1 - now)) ** 2 * variance + sigma2
    return variance


class MixtureModel(nn.Module):
    """The perfect network for a mixture, with no more than a sampler may ask for.

    A conditioning moves the means by the sum over its tensors of their per-sample mean. `batches` and `times` record
    the calls. The schedule is kept in the mixture's dtype.
    """

    def __init__(self, mixture, parameterization="eps", betas=None):
        super().__init__()
        betas = sd_betas() if betas is None else np.asarray(betas, dtype=np.float64)
        bar = np.cumprod(1 - betas)
        self.mixture, self.parameterization, self.num_timesteps = mixture, parameterization, len(betas)
        for name, value in (
            ("betas", betas),
            ("alphas_cumprod", bar),
            ("alphas_cumprod_prev", np.append(1.0, bar[:-1])),
        ):
            self.register_buffer(name, torch.as_tensor(value, dtype=mixture.means.dtype))
        self.alpha_bar = bar
        self.batches, self.times = [], []

    @property
    def device(self):
        return self.betas.device

    def apply_model(self, x, t, c):
        self.batches.append(len(x))
        self.times.append(t.tolist())
        shift = sum((leaf.to(x).reshape(len(leaf), -1).mean(1) for leaf in _leaves(c)), torch.zeros(len(x)).to(x))
        return getattr(self.mixture, self.parameterization)(x, self.alphas_cumprod[t].to(x), shift)

    def q_sample(self, x_start, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        a = self.alphas_cumprod[t].to(x_start).reshape(-1, *[1] * (x_start.ndim - 1))
        return a.sqrt() * x_start + (1 - a).sqrt() * noise


def two_modes(dtype=torch.float64):
    """A plain mixture on (1, 2, 2) latents: unequal weights, anisotropic, modes well apart."""
    means = np.array([[[[1.0, -0.5], [0.8, 0.4]]], [[[-1.2, 0.6], [-0.3, -0.9]]]])
    stds = np.array([[[[0.3, 0.5], [0.4, 0.2]]], [[[0.25, 0.3], [0.6, 0.4]]]])
    return Mixture(means, stds, [0.7, 0.3], dtype)


def one_mode(shape=(1, 2, 2), dtype=torch.float64, seed=0):
    """One anisotropic Gaussian on latents of the given shape."""
    rng = np.random.default_rng(seed)
    return Mixture(rng.normal(size=(1, *shape)), rng.uniform(0.2, 1.5, size=(1, *shape)), dtype=dtype)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def levels(sampler, final):
    """The alpha-bars of a run from its start to its end, as the sampler's own timesteps say."""
    return np.append(sampler.model.alpha_bar[np.sort(np.asarray(sampler.ddim_timesteps))[::-1]], final)


def rms(x):
    return x.square().mean().sqrt().item()
