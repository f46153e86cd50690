"""CompVis' DDPM network: as large as the paper's, its parts in their places, and the embedding by its formula."""

import math

import pytest
import torch
from _networks import golden_weights, randn

from ldm.modules.diffusionmodules.ddpm_unet import get_timestep_embedding
from ldm.modules.diffusionmodules.layers import LinAttnBlock
from ldm.modules.diffusionmodules.model import Encoder, Model

SMALL = {
    "ch": 32, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": [4], "in_channels": 3,
    "resolution": 8,
}  # fmt: skip
T = torch.tensor([3, 901])


def small(**options):
    return golden_weights(Model(**SMALL | options))


@pytest.mark.parametrize(
    "resolution, ch_mult, parameters",
    [(32, (1, 2, 2, 2), 35_746_307), (64, (1, 2, 2, 2, 4), 78_700_803), (256, (1, 1, 2, 2, 4, 4), 113_673_219)],
    ids=["cifar10", "celeba", "lsun"],
)
def test_the_networks_are_as_large_as_the_published_ones(resolution, ch_mult, parameters):
    with torch.device("meta"):
        model = Model(
            ch=128, out_ch=3, ch_mult=ch_mult, num_res_blocks=2, attn_resolutions=[16], in_channels=3,
            resolution=resolution,
        )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_layers_have_compvis_names():
    names = {key.rpartition(".")[0] for key in small().state_dict()}
    block = {"norm1", "conv1", "temb_proj", "norm2", "conv2"}
    attention = {"norm", "q", "k", "v", "proj_out"}
    expected = {"temb.dense.0", "temb.dense.1", "conv_in", "norm_out", "conv_out"}
    for place in ("down.0.block.0", "down.1.block.0", "mid.block_1", "mid.block_2"):
        expected |= {f"{place}.{layer}" for layer in block}
    for place in ("up.0.block.0", "up.0.block.1", "up.1.block.0", "up.1.block.1"):
        expected |= {f"{place}.{layer}" for layer in block | {"nin_shortcut"}}  # what comes from the side widens all
    expected |= {"down.1.block.0.nin_shortcut", "down.0.downsample.conv", "up.1.upsample.conv"}
    for place in ("down.1.attn.0", "mid.attn_1", "up.1.attn.0", "up.1.attn.1"):
        expected |= {f"{place}.{layer}" for layer in attention}
    assert names == expected


def test_the_autoencoders_blocks_take_no_timestep():
    encoder = Encoder(**SMALL, z_channels=4)
    assert not any("temb" in key for key in encoder.state_dict())


@pytest.mark.parametrize("dim", [8, 9])
def test_the_embedding_has_sines_before_cosines_and_ends_at_the_longest_period(dim):
    out = get_timestep_embedding(torch.tensor([0.0, 7.5, 999.0]), dim).double()
    for row, t in zip(out, (0.0, 7.5, 999.0)):
        angles = [t * 10000 ** (-i / 3) for i in range(4)]  # the last frequency is 1/10000
        expected = [*map(math.sin, angles), *map(math.cos, angles)] + [0.0] * (dim - 8)
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-4)


@pytest.mark.parametrize("timesteps, dim", [(torch.tensor(3), 8), (T[:, None], 8), (T, 2)])
def test_the_embedding_names_what_it_cannot_take(timesteps, dim):
    with pytest.raises(ValueError, match="one of them for each sample"):
        get_timestep_embedding(timesteps, dim)


def test_each_picture_hears_of_its_own_timestep_at_every_block():
    model, x = small(ch=64), randn(2, 3, 8, 8)  # 32 groups of one channel would norm away what is added to a channel
    together = model(x, T)
    torch.testing.assert_close(together[1:], model(x[1:], T[1:]), rtol=0, atol=1e-5)
    for name, layer in model.named_modules():
        if name.endswith("temb_proj"):
            kept, layer.bias.data = layer.bias.data, randn(*layer.bias.shape)
            assert (model(x, T) - together).abs().max() > 1e-4, f"{name} changes nothing"
            layer.bias.data = kept


def test_without_a_timestep_the_network_ignores_one_and_keeps_its_weights():
    model, x = small(use_timestep=False), randn(2, 3, 8, 8)
    assert torch.equal(model(x), model(x, T))
    assert {k for k in small().state_dict() if k not in model.state_dict()} == {
        f"temb.dense.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


def test_a_context_is_joined_to_the_channels():
    model, x, context = small(in_channels=5), randn(2, 3, 8, 8), randn(2, 2, 8, 8, seed=1)
    assert torch.equal(model(x, T, context), model(torch.cat([x, context], 1), T))


@pytest.mark.parametrize(
    "options, lost",
    [({"attn_type": "none"}, "attn"), ({"resamp_with_conv": False}, "sample"), ({"attn_resolutions": []}, ".attn.")],
)
def test_an_option_takes_layers_away(options, lost):
    model = small(**options)
    assert set(small().state_dict()) - set(model.state_dict()) == {k for k in small().state_dict() if lost in k}
    assert model(randn(2, 3, 8, 8), T).shape == (2, 3, 8, 8)


def test_linear_attention_is_its_formula_by_either_name():
    layer, x = golden_weights(LinAttnBlock(32)), randn(2, 32, 3, 4)
    q, k, v = (w @ x.flatten(2) for w in layer.to_qkv.weight[..., 0, 0].chunk(3))
    weights = torch.einsum("bcn,bcm->bnm", q, k.softmax(dim=-1))  # pixel n's weight on pixel m: the large matrix
    expected = layer.to_out(torch.einsum("bnm,bdm->bdn", weights, v).view_as(x))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    models = small(use_linear_attn=True), small(attn_type="linear")
    assert torch.equal(*(model(randn(2, 3, 8, 8), T) for model in models))
    assert isinstance(models[0].mid.attn_1, LinAttnBlock)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)], ids=str)
def test_the_network_computes_in_another_dtype(dtype, atol):
    model, x = small(), randn(2, 3, 8, 8)
    expected = model(x, T)
    out = model.to(dtype)(x.to(dtype), T)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=atol)


def test_the_network_learns():
    model = Model(**SMALL, dropout=0.1)
    model(randn(2, 3, 8, 8), T).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(2, 3, 8, 7), (2, 4, 8, 8), (3, 8, 8)])
def test_the_network_names_the_pictures_it_takes(shape):
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\) with H and W divisible by 2, got \(.*; resize or crop"):
        small()(torch.zeros(shape), T)


@pytest.mark.parametrize("t, given", [(None, "none"), (torch.tensor(3), r"shape \(\)"), (T[:1], r"shape \(1,\)")])
def test_the_network_wants_a_timestep_for_each_picture(t, given):
    with pytest.raises(ValueError, match=f"one timestep for each of the 2 pictures, got .*{given}"):
        small()(torch.zeros(2, 3, 8, 8), t)
