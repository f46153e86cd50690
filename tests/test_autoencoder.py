"""The autoencoder against the original, its Gaussian against torch.distributions, and their errors."""

import pytest
import torch
from _networks import golden, golden_weights, randn
from safetensors.torch import save_file
from torch.distributions import Normal, kl_divergence

from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, normal_kl

SMALL_KL = {
    "double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def test_autoencoder_returns_what_the_original_returns():
    model, z = golden("autoencoder_kl")
    posterior = model.encode(z["in_x"])
    torch.testing.assert_close(posterior.mean, z["out_mean"], rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior.logvar, z["out_logvar"], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.decode(posterior.mode()), z["out_decoded"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)], ids=str)
def test_autoencoder_in_another_dtype_takes_float32_pictures(dtype, atol):
    model = golden_weights(AutoencoderKL(SMALL_KL, embed_dim=4))
    x = randn(1, 3, 16, 16)
    expected = model(x, sample_posterior=False)[0]
    out = model.to(dtype)(x, sample_posterior=False)[0]
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=atol)


def test_channels_last_gives_the_same_pictures():
    auto, picture = golden_weights(AutoencoderKL(SMALL_KL, embed_dim=4)), randn(1, 3, 16, 16)
    expected = auto(picture, False)[0]
    out = auto.to(memory_format=torch.channels_last)(picture.contiguous(memory_format=torch.channels_last), False)[0]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_the_reconstruction_uses_a_sample_or_the_mean():
    model, x = golden_weights(AutoencoderKL(SMALL_KL, embed_dim=4)), randn(1, 3, 16, 16)
    by_mean, posterior = model(x, sample_posterior=False)
    torch.testing.assert_close(by_mean, model.decode(posterior.mode()))
    torch.manual_seed(3)
    by_sample, _ = model(x)
    torch.manual_seed(3)
    torch.testing.assert_close(by_sample, model.decode(posterior.sample()))
    assert (by_sample - by_mean).abs().max() > 0.01


def test_the_loss_of_a_training_config_is_not_built():
    model = AutoencoderKL(SMALL_KL, embed_dim=4, lossconfig={"target": "somebody.elses.Loss"})
    assert not hasattr(model, "loss")


def test_attention_stands_at_the_named_resolutions():
    keys = AutoencoderKL({**SMALL_KL, "attn_resolutions": [8]}, embed_dim=4).state_dict()
    places = {k.rsplit(".attn.", 1)[0] for k in keys if ".attn." in k}
    assert places == {"encoder.down.1", "decoder.up.1"}
    assert not any("attn" in k for k in AutoencoderKL({**SMALL_KL, "attn_type": "none"}, embed_dim=4).state_dict())


def test_weights_are_loaded_from_a_file_and_must_match(tmp_path):
    saved = golden_weights(AutoencoderKL(SMALL_KL, embed_dim=4))
    path = tmp_path / "autoencoder.safetensors"
    save_file({**saved.state_dict(), "loss.logvar": torch.zeros(())}, path)
    loaded = AutoencoderKL(SMALL_KL, embed_dim=4, ckpt_path=str(path)).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in saved.state_dict().items())
    partly = AutoencoderKL(SMALL_KL, embed_dim=4, ckpt_path=str(path), ignore_keys=["decoder."]).state_dict()
    assert {k.split(".")[0] for k, v in partly.items() if not torch.equal(v, loaded[k])} == {"decoder"}
    save_file({k: v for k, v in saved.state_dict().items() if k != "quant_conv.bias"}, path)
    with pytest.raises(ValueError, match="missing: quant_conv.bias"):
        AutoencoderKL(SMALL_KL, embed_dim=4, ckpt_path=str(path))


def test_identity_first_stage_hands_everything_through():
    x = randn(1, 3, 4, 4)
    plain, vq = IdentityFirstStage(), IdentityFirstStage(vq_interface=True)
    assert plain.encode(x) is plain.decode(x) is plain.quantize(x) is plain(x) is x
    assert vq.quantize(x)[0] is x and vq.quantize(x)[2] == (None, None, None)


@pytest.mark.parametrize("shape", [(1, 3, 16, 15), (1, 4, 16, 16), (3, 16, 16)])
def test_the_encoder_names_the_pictures_it_takes(shape):
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\) with H and W divisible by 2, got \(.*; resize or crop"):
        AutoencoderKL(SMALL_KL, embed_dim=4).encode(torch.zeros(shape))


def test_the_autoencoder_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"a latent has shape \(B, 4, h, w\) here, got \(1, 3, 8, 8\)"):
        AutoencoderKL(SMALL_KL, embed_dim=4).decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="double_z=False.*set double_z: true"):
        AutoencoderKL({**SMALL_KL, "double_z": False}, embed_dim=4)
    with pytest.raises(ValueError, match="attn_type='fast' is not known; choose one of 'vanilla', 'none'"):
        AutoencoderKL({**SMALL_KL, "attn_type": "fast"}, embed_dim=4)


# --- the Gaussian


def gaussian(seed=0, **options):
    parameters = torch.randn(3, 8, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return DiagonalGaussianDistribution(parameters, **options)


def as_torch(g):
    return Normal(g.mean, g.std)


def test_kl_is_the_textbooks():
    p, q = gaussian(0), gaussian(1)
    standard = Normal(torch.zeros_like(p.mean), torch.ones_like(p.mean))
    torch.testing.assert_close(p.kl(), kl_divergence(as_torch(p), standard).sum((1, 2, 3)))
    torch.testing.assert_close(p.kl(q), kl_divergence(as_torch(p), as_torch(q)).sum((1, 2, 3)))
    torch.testing.assert_close(p.kl(p), torch.zeros(3, dtype=torch.float64))


def test_normal_kl_takes_numbers_and_broadcasts():
    mean = torch.tensor([0.5, -1.0])
    expected = kl_divergence(Normal(mean, 1.0), Normal(0.0, torch.tensor(2.0).exp().sqrt()))
    torch.testing.assert_close(normal_kl(mean, 0.0, 0.0, 2.0), expected)


def test_nll_is_minus_the_log_density():
    p, x = gaussian(), torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(p.nll(x), -as_torch(p).log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(p.nll(x, dims=(1,)), -as_torch(p).log_prob(x).sum(1))


def test_a_sample_takes_one_draw_of_the_global_generator_as_in_compvis():
    p = gaussian()
    torch.manual_seed(5)
    sample, following = p.sample(), torch.randn(4)
    torch.manual_seed(5)
    torch.testing.assert_close(sample, p.mean + p.std * torch.randn(p.mean.shape))
    assert torch.equal(following, torch.randn(4))


def test_a_generator_makes_the_sample_repeatable_and_leaves_the_global_one_alone():
    p, state = gaussian(), torch.get_rng_state()
    first, second = (p.sample(torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, p.sample(torch.Generator().manual_seed(2)))


def test_samples_have_the_mean_and_the_variance():
    p = DiagonalGaussianDistribution(torch.tensor([2.0, -0.5])[None, :, None].expand(1, 2, 40000))
    x = p.sample(torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(2.0, abs=0.02)
    assert x.var().item() == pytest.approx(torch.tensor(-0.5).exp().item(), abs=0.02)


def test_the_log_variance_is_clamped():
    p = DiagonalGaussianDistribution(torch.tensor([0.0, 0.0, -1e4, 1e4])[None, :, None])
    assert p.logvar.flatten().tolist() == [-30.0, 20.0]
    assert p.std.isfinite().all() and p.var.isfinite().all()


def test_a_deterministic_gaussian_is_its_mean():
    p = gaussian(deterministic=True)
    assert torch.equal(p.sample(), p.mean) and torch.equal(p.mode(), p.mean)
    assert p.kl().tolist() == p.nll(p.mean).tolist() == [0.0] * 3
