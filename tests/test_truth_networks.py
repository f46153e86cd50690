"""What the network predicts, and what for: eps, v and x0, any rank, zero terminal SNR, a score corrector."""

import pytest
import torch
from _mixture import (
    Mixture,
    MixtureModel,
    gaussian_flow,
    levels,
    one_mode,
    randn,
    reference_ddim,
    rms,
    two_modes,
    zero_terminal_snr_betas,
)

from ldm.sampling import DDIMSampler


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_eps_v_and_x0_networks_of_one_model_give_the_same_samples(eta):
    x_T, noise = randn(3, 1, 2, 2), [randn(3, 1, 2, 2, seed=i) for i in range(15)]
    options = {"eta": eta, "normals_sequence": noise} if eta else {}

    def run(kind):
        return DDIMSampler(MixtureModel(two_modes(), kind)).sample(
            15, 3, (1, 2, 2), x_T=x_T, progress=False, **options
        )[0]

    torch.testing.assert_close(run("v"), run("eps"), rtol=0, atol=1e-10)
    torch.testing.assert_close(run("x0"), run("eps"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4), (2, 2, 3, 2)])
def test_latents_of_any_rank_follow_the_flow(shape):
    mix, x_T = one_mode(shape), randn(2, *shape)
    sampler = DDIMSampler(MixtureModel(mix))
    out, _ = sampler.sample(100, 2, shape, x_T=x_T, progress=False)
    a = levels(sampler, sampler.model.alpha_bar[0])
    assert out.shape == (2, *shape)
    torch.testing.assert_close(out, reference_ddim(mix.eps, x_T, a), rtol=0, atol=1e-11)
    assert rms(out - gaussian_flow(x_T, mix.means[0], mix.stds[0], a[0], a[-1])) < 0.03
    drawn, _ = sampler.sample(5, 2, shape, eta=1.0, seeds=[1, 2], progress=False)
    assert drawn.shape == (2, *shape) and drawn.dtype == torch.float32


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["v", "x0"])
def test_zero_terminal_snr_starts_from_pure_noise(kind, eta):
    """At alpha-bar 0 the first step is a draw from N(sqrt(a) E[x0], 1 - a), whatever x_T says of the data."""
    mix, x_T, s = two_modes(), randn(4, 1, 2, 2), 10
    model = MixtureModel(mix, kind, betas=zero_terminal_snr_betas())
    assert model.alpha_bar[-1] == 0
    sampler, noise = DDIMSampler(model), [randn(4, 1, 2, 2, seed=i) for i in range(s)]
    options = {"eta": eta, "normals_sequence": noise} if eta else {}
    out, _ = sampler.sample(
        s, 4, mix.shape, x_T=x_T, ddim_discretize="trailing", final_alpha="one", progress=False, **options
    )
    a = levels(sampler, 1.0)
    assert a[0] == 0
    sigma = eta * (1 - a[1]) ** 0.5
    x = a[1] ** 0.5 * mix.x0(x_T, 0.0) + (1 - a[1] - sigma**2) ** 0.5 * x_T + sigma * noise[0]
    torch.testing.assert_close(out, reference_ddim(mix.eps, x, a[1:], eta, noise[1:]), rtol=0, atol=1e-10)


def test_zero_terminal_snr_is_refused_for_an_eps_network():
    """eps says nothing of x0 where there is no signal; v is the remedy."""
    sampler = DDIMSampler(MixtureModel(two_modes(), "eps", betas=zero_terminal_snr_betas()))
    with pytest.raises(ValueError, match=r"(?is)eps.*\bv\b|\bv\b.*eps"):
        sampler.sample(10, 1, (1, 2, 2), ddim_discretize="trailing", progress=False)


# a score corrector


class TowardsFirstMode:
    """Classifier guidance (Dhariwal & Nichol 2021, algorithm 2) by the exact classifier and autograd."""

    def __init__(self, mixture):
        self.mixture = mixture

    def modify_score(self, model, e_t, x, t, c, strength):
        a = model.alphas_cumprod[t]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logp = self.mixture.responsibilities(x, a)[:, 0].log().sum()
            (gradient,) = torch.autograd.grad(logp, x)
        return e_t - strength * (1 - a).sqrt().reshape(-1, 1, 1, 1) * gradient


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_an_exact_classifier_as_score_corrector_samples_the_class(kind):
    mix, x_T = two_modes(), randn(6, 1, 2, 2)
    first = Mixture(mix.means[:1], mix.stds[:1])
    options = {"x_T": x_T, "progress": False}
    alone, _ = DDIMSampler(MixtureModel(first)).sample(20, 6, mix.shape, **options)
    corrected, _ = DDIMSampler(MixtureModel(mix, kind)).sample(
        20, 6, mix.shape, score_corrector=TowardsFirstMode(mix), corrector_kwargs={"strength": 1.0}, **options
    )
    torch.testing.assert_close(corrected, alone, rtol=0, atol=1e-8)
