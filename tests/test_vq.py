"""The VQ autoencoders against the original, and the quantiser against its definition."""

import pytest
import torch
from _networks import golden, golden_weights, randn
from safetensors.torch import save_file

from ldm.models.autoencoder import VQModel, VQModelInterface
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.vqvae import quantize
from ldm.modules.vqvae.quantize import VectorQuantizer
from ldm.sampling import DDIMSampler

DDCONFIG = {
    "double_z": False, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
SMALL_VQ = {"ddconfig": DDCONFIG, "embed_dim": 3, "n_embed": 20}


def quantizer(n_e=20, e_dim=3, **options):
    vq = VectorQuantizer(n_e, e_dim, **options)
    torch.nn.init.normal_(vq.embedding.weight, generator=torch.Generator().manual_seed(0))
    return vq


def on_the_codes(z, vq):
    """Is every vector of the feature map one of the codes?"""
    rows = z.movedim(1, -1).reshape(-1, vq.e_dim)
    return (rows[:, None] - vq.embedding.weight).abs().amax(-1).amin(1).max().item() < 1e-4


# --- the original


@pytest.mark.parametrize("name", ["vq_f4", "vq_attn"])
def test_the_vq_autoencoder_returns_what_the_original_returns(name):
    model, z = golden(name)
    h = model.encode(z["in_x"])
    quantized, _, (_, _, indices) = model.quantize(h)
    torch.testing.assert_close(h, z["out_h"], rtol=0, atol=1e-4)
    torch.testing.assert_close(quantized, z["out_quantized"], rtol=0, atol=1e-4)
    assert torch.equal(indices, z["out_indices"])
    torch.testing.assert_close(model.decode(h), z["out_decoded"], rtol=0, atol=1e-4)


# --- the quantiser


def test_the_nearest_code_is_found_however_many_rows_are_compared_at_a_time(monkeypatch):
    vq, z = quantizer(500), randn(700, 3)
    expected = (z.double()[:, None] - vq.embedding.weight.double()).square().sum(-1).argmin(1)
    assert torch.equal(vq.nearest(z), expected)
    monkeypatch.setattr(quantize, "_MOST_DISTANCES", 500 * 64)
    assert torch.equal(vq.nearest(z), expected)


def test_half_precision_around_it_does_not_move_the_choice():
    vq, z = quantizer(500), randn(200, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq.nearest(z), vq.nearest(z.double()))
    half = quantizer(500).half()
    assert torch.equal(half.nearest(z), half.float().nearest(z))


@pytest.mark.parametrize(("legacy", "on_commitment", "on_codebook"), [(True, 1.0, 0.25), (False, 0.25, 1.0)])
def test_beta_weighs_the_codebook_in_the_legacy_loss_and_the_commitment_in_the_papers(
    legacy, on_commitment, on_codebook
):
    vq, z = quantizer(legacy=legacy), randn(2, 3, 4, 4).requires_grad_()
    z_q, loss, _ = vq(z)
    distance = (z_q - z).square().mean().item()
    assert loss.item() == pytest.approx((on_commitment + on_codebook) * distance, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(z.grad, on_commitment * 2 * (z - z_q).detach() / z.numel())
    pull = vq.embedding.weight.grad.sum(0)  # all that the codebook feels, by channel
    torch.testing.assert_close(pull, on_codebook * 2 * (z_q - z).detach().sum((0, 2, 3)) / z.numel())


def test_gradients_pass_as_if_nothing_had_been_quantised():
    vq, z, weight = quantizer(), randn(2, 3, 4, 4).requires_grad_(), randn(2, 3, 4, 4, seed=1)
    (vq(z)[0] * weight).sum().backward()
    assert torch.equal(z.grad, weight) and vq.embedding.weight.grad is None


def test_indices_lead_back_to_the_codes():
    vq, z = quantizer(sane_index_shape=True), randn(2, 3, 4, 5)
    z_q, _, (_, _, indices) = vq(z)
    assert indices.shape == (2, 4, 5)
    torch.testing.assert_close(vq.get_codebook_entry(indices.flatten(), (2, 4, 5, 3)), z_q)
    torch.testing.assert_close(vq.get_codebook_entry(indices).movedim(-1, 1), z_q)
    assert torch.equal(quantizer()(z)[2][2], indices.flatten())


def test_the_quantiser_says_what_it_does_not_take():
    with pytest.raises(ValueError, match=r"shape \(B, 3, h, w\) here, got \(1, 4, 2, 2\)"):
        quantizer()(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="remap='used.npy'.*leave remap out"):
        quantizer(remap="used.npy")
    with pytest.raises(ValueError, match="double_z: false"):
        VQModel({**DDCONFIG, "double_z": True}, n_embed=20, embed_dim=3)


# --- the models


def test_the_plain_model_quantises_in_encode_and_the_interface_in_decode():
    plain, interface = golden_weights(VQModel(**SMALL_VQ)), golden_weights(VQModelInterface(**SMALL_VQ))
    x = randn(1, 3, 16, 16)
    quantized, loss, (_, _, indices) = plain.encode(x)
    h = interface.encode(x)
    assert on_the_codes(quantized, plain.quantize) and not on_the_codes(h, plain.quantize)
    torch.testing.assert_close(plain.encode_to_prequant(x), h)
    picture = plain.decode(quantized)
    torch.testing.assert_close(interface.decode(h), picture)
    torch.testing.assert_close(interface.decode(quantized, force_not_quantize=True), picture)
    assert (interface.decode(h, force_not_quantize=True) - picture).abs().max() > 1e-3
    for model in (plain, interface):
        torch.testing.assert_close(model.decode_code(indices.view(1, 8, 8)), picture)
        reconstruction, own_loss, own_indices = model(x, return_pred_indices=True)
        torch.testing.assert_close(reconstruction, picture)
        assert own_loss == loss and torch.equal(own_indices, indices)


def test_what_belongs_to_training_is_accepted_and_not_built(tmp_path):
    saved = golden_weights(VQModelInterface(**SMALL_VQ))
    path = tmp_path / "vq.safetensors"
    save_file({**saved.state_dict(), "loss.discriminator.weight": torch.zeros(1)}, path)
    loss = {"target": "somebody.elses.Loss"}
    model = VQModelInterface(
        **SMALL_VQ, lossconfig=loss, batch_resize_range=[1, 2], lr_g_factor=2.0, use_ema=True, ckpt_path=str(path)
    )
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.state_dict().items())


# --- as the first stage of a diffusion model


def diffusion():
    unet = {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [],
            "num_res_blocks": 1, "channel_mult": [1], "num_heads": 1,
        },
    }  # fmt: skip
    first_stage = {"target": "ldm.models.autoencoder.VQModelInterface", "params": SMALL_VQ}
    settings = {"unet_config": unet, "use_ema": False, "image_size": 8, "channels": 3}
    model = LatentDiffusion(first_stage, "__is_unconditional__", **settings)
    golden_weights(model.first_stage_model), golden_weights(model.model)
    return model.eval()


def test_the_sampler_can_put_every_prediction_on_the_codes():
    model, x_T = diffusion(), randn(2, 3, 8, 8)
    for quantized in (True, False):
        _, seen = DDIMSampler(model).sample(
            4, 2, (3, 8, 8), x_T=x_T, verbose=False, log_every_t=1, quantize_x0=quantized
        )
        landed = [on_the_codes(x0, model.first_stage_model.quantize) for x0 in seen["pred_x0"][1:]]
        assert landed == [quantized] * 4


def test_pictures_come_from_latents_from_codes_and_from_their_scores():
    model, h = diffusion(), randn(1, 3, 8, 8)
    vq = model.first_stage_model
    indices = vq.quantize(h)[2][2].view(1, 8, 8)
    picture = model.decode_first_stage(h)
    torch.testing.assert_close(picture, vq.decode(h))
    torch.testing.assert_close(model.decode_first_stage(indices, predict_cids=True), picture)
    scores = torch.nn.functional.one_hot(indices, 20).movedim(-1, 1).float()
    torch.testing.assert_close(model.decode_first_stage(scores, predict_cids=True), picture)
    unquantized = model.decode_first_stage(h, force_not_quantize=True)
    torch.testing.assert_close(unquantized, vq.decode(h, force_not_quantize=True))
    assert not model.decode_first_stage(h.requires_grad_()).requires_grad
    assert model.differentiable_decode_first_stage(h).requires_grad


def test_a_first_stage_that_gives_no_latent_is_named():
    model = diffusion()
    model.first_stage_model = golden_weights(VQModel(**SMALL_VQ))
    with pytest.raises(ValueError, match="VQModel.encode returned a tuple.*VQModelInterface"):
        model.get_first_stage_encoding(model.encode_first_stage(randn(1, 3, 16, 16)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantised_latents_are_codes_to_the_last_bit(dtype):
    quantizer = VectorQuantizer(16, 3).to(dtype)
    z = (30 * randn(2, 3, 4, 4)).to(dtype)
    z_q, _, (_, _, indices) = quantizer(z)
    codes = quantizer.embedding.weight[indices].view(2, 4, 4, 3).movedim(-1, 1)
    assert torch.equal(z_q, codes)
