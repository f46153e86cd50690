"""The half U-Net that classifies, and the U-Net's layers under CompVis' names."""

import pytest
import torch
from _networks import golden, golden_weights, randn
from torch import nn

from ldm.modules.diffusionmodules.openaimodel import (
    AttentionBlock,
    AttentionPool2d,
    EncoderUNetModel,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    TransposedUpsample,
    UNetModel,
    convert_module_to_f16,
    convert_module_to_f32,
)

OPTIONS = {
    "image_size": 8, "in_channels": 3, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [2],
    "channel_mult": [1, 2], "num_head_channels": 16,
}  # fmt: skip
POOLS = ["adaptive", "attention", "spatial", "spatial_v2"]


def classifier(pool, **options):
    return golden_weights(EncoderUNetModel(**OPTIONS, out_channels=5, pool=pool, **options))


def residual(name, changes_width):
    layers = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    return {f"{name}.{layer}" for layer in layers + ["skip_connection"] * changes_width}


HEADS = {
    "adaptive": {"out.0", "out.3"},
    "attention": {"out.0", "out.2.qkv_proj", "out.2.c_proj"},
    "spatial": {"out.0", "out.2"},
    "spatial_v2": {"out.0", "out.1", "out.3"},
}


@pytest.mark.parametrize("pool", POOLS)
def test_the_classifiers_keys_are_the_originals(pool):
    attention = {
        f"{block}.1.{layer}" for block in ("input_blocks.3", "middle_block") for layer in ("norm", "qkv", "proj_out")
    }
    expected = {"time_embed.0", "time_embed.2", "input_blocks.0.0", "input_blocks.2.0.op"} | attention
    expected |= residual("input_blocks.1.0", False) | residual("input_blocks.3.0", True)
    expected |= residual("middle_block.0", False) | residual("middle_block.2", False) | HEADS[pool]
    keys = {f"{layer}.{kind}" for layer in expected for kind in ("weight", "bias")}
    keys |= {"out.2.positional_embedding"} if pool == "attention" else set()
    assert classifier(pool).state_dict().keys() == keys


def hand_made_logits(model, x, t):
    """The blocks run one after the other, and each pool by its definition."""
    angles = t[:, None] * 10000 ** (-torch.arange(16) / 16)
    emb = model.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
    h, means = x, []
    for block in [*model.input_blocks, model.middle_block]:
        h = block(h, emb)
        means.append(h.mean(dim=(2, 3)))
    out = model.out
    if model.pool == "adaptive":
        h = nn.functional.silu(nn.functional.group_norm(h, 32, out[0].weight, out[0].bias)).mean(dim=(2, 3))
        return h @ out[3].weight[:, :, 0, 0].T + out[3].bias
    if model.pool == "attention":
        return out[2](nn.functional.silu(out[0](h)))
    h = out[0](torch.cat(means, dim=1))
    if model.pool == "spatial":
        return out[2](h.clamp(min=0))
    return out[3](nn.functional.silu(nn.functional.group_norm(h, 32, out[1].weight, out[1].bias)))


@pytest.mark.parametrize("pool", POOLS)
def test_the_classifier_is_its_blocks_and_its_pool(pool):
    model, x, t = classifier(pool), randn(2, 3, 8, 8), torch.tensor([3, 500])
    out = model(x, t)
    assert out.shape == (2, 5) and (out[0] - out[1]).abs().max() > 1e-2
    torch.testing.assert_close(out, hand_made_logits(model, x, t), rtol=1e-4, atol=1e-4)


def test_the_classifiers_blocks_are_the_denoisers():
    """Whose numbers are the original's (test_networks.py)."""
    denoiser, z = golden("unet_resblock_updown")
    half = EncoderUNetModel(
        image_size=16, in_channels=7, model_channels=32, out_channels=5, num_res_blocks=2, attention_resolutions=[4, 2],
        channel_mult=[1, 2, 4, 4], num_heads=4, resblock_updown=True,
    )  # fmt: skip
    shared = {k: v for k, v in denoiser.state_dict().items() if not k.startswith("out")}
    left = half.load_state_dict(shared, strict=False)
    assert left.unexpected_keys == [] and all(key.startswith("out.") for key in left.missing_keys)
    seen = []
    for model in (denoiser, half.requires_grad_(False)):
        model.middle_block.register_forward_hook(lambda module, args, out: seen.append(out))
        model(z["in_x"], z["in_timesteps"])
    assert seen[0].equal(seen[1])


@pytest.mark.parametrize("pool", POOLS)
def test_every_weight_of_the_classifier_is_trained(pool):
    model = classifier(pool, use_checkpoint=True).requires_grad_(True)
    loss = nn.functional.cross_entropy(model(randn(4, 3, 8, 8), torch.arange(4)), torch.arange(4))
    loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("dims", [1, 3])
def test_maps_of_other_ranks_are_classified_too(dims):
    shape = (2, 3, 8) if dims == 1 else (2, 3, 3, 8, 8)
    for pool in ("adaptive", "spatial"):
        assert classifier(pool, dims=dims)(randn(*shape), torch.tensor([1, 2])).shape == (2, 5)


def test_the_classifier_names_what_does_not_fit():
    with pytest.raises(
        ValueError, match="pool='mean' is not known; choose one of adaptive, attention, spatial, spatial_v2"
    ):
        classifier("mean")
    with pytest.raises(ValueError, match='pool="attention" needs num_head_channels'):
        EncoderUNetModel(**{**OPTIONS, "num_head_channels": -1}, out_channels=5, pool="attention")
    with pytest.raises(ValueError, match="made for 16 pixels, got 64"):
        classifier("attention")(randn(2, 3, 16, 16), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="does not halve evenly"):
        classifier("adaptive")(randn(2, 3, 7, 7), torch.tensor([1, 2]))
    with pytest.warns(UserWarning, match="context_dim, use_spatial_transformer: without effect on an EncoderUNetModel"):
        classifier("adaptive", context_dim=12, use_spatial_transformer=True)


# --- layers


@pytest.mark.parametrize("cls", [QKVAttention, QKVAttentionLegacy])
def test_qkv_attention_is_its_formula_in_either_order(cls):
    heads, d, qkv = 3, 4, randn(2, 3 * 3 * 4, 7)
    expected = []
    for head in range(heads):
        if cls is QKVAttention:
            q, k, v = (qkv[:, part * heads * d :][:, head * d : (head + 1) * d] for part in range(3))
        else:
            q, k, v = qkv[:, head * 3 * d : (head + 1) * 3 * d].split(d, dim=1)
        weights = torch.einsum("bct, bcs -> bts", q, k).div(d**0.5).softmax(-1)
        expected.append(torch.einsum("bts, bcs -> bct", weights, v))
    torch.testing.assert_close(cls(heads)(qkv), torch.cat(expected, dim=1))
    assert type(AttentionBlock(32, 4, use_new_attention_order=cls is QKVAttention).attention) is cls


def test_the_attention_pool_lets_the_mean_attend_to_all_pixels():
    pool, x = golden_weights(AttentionPool2d(4, 8, 4, output_dim=3)), randn(2, 8, 4, 4)
    tokens = x.flatten(2)
    tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], dim=2) + pool.positional_embedding
    qkv = (pool.qkv_proj.weight[:, :, 0] @ tokens + pool.qkv_proj.bias[:, None]).chunk(3, dim=1)
    heads = []
    for q, k, v in zip(*(part.split(4, dim=1) for part in qkv)):
        weights = torch.einsum("bc, bcs -> bs", q[:, :, 0], k).div(2).softmax(-1)
        heads.append(torch.einsum("bs, bcs -> bc", weights, v))
    expected = torch.cat(heads, dim=1) @ pool.c_proj.weight[:, :, 0].T + pool.c_proj.bias
    torch.testing.assert_close(pool(x), expected)
    assert AttentionPool2d(4, 8, 4)(x).shape == (2, 8)


def test_the_transposed_upsampling_is_a_learnt_kernel_on_every_other_pixel():
    layer, x = golden_weights(TransposedUpsample(2, 3)), randn(1, 2, 4, 5)
    expected = layer.up.bias[:, None, None].repeat(1, 2 * 4 + 3, 2 * 5 + 3)
    for i in range(4):
        for j in range(5):
            expected[:, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5] += torch.einsum(
                "i, iohw -> ohw", x[0, :, i, j], layer.up.weight
            )
    torch.testing.assert_close(layer(x)[0], expected)
    assert TransposedUpsample(2, ks=3)(x).shape == (1, 2, 9, 11)


@pytest.mark.parametrize("resampling", [{}, {"up": True}, {"down": True}], ids=str)
def test_a_residual_block_can_be_run_by_compvis_names(resampling):
    """As repositories do that keep its features: by `updown`, `h_upd`, `x_upd` and the layers in their order."""
    block, x, emb = golden_weights(ResBlock(32, 8, 0.0, **resampling)), randn(2, 32, 4, 4), randn(2, 8)
    if block.updown:
        h = block.in_layers[-1](block.h_upd(block.in_layers[:-1](x)))
        x_in = block.x_upd(x)
    else:
        h, x_in = block.in_layers(x), x
    h = block.out_layers(h + block.emb_layers(emb)[:, :, None, None])
    assert block.updown == bool(resampling) and (block.channels, block.out_channels) == (32, 32)
    torch.testing.assert_close(block(x, emb), block.skip_connection(x_in) + h)


# --- how the networks are called


def denoiser():
    return golden_weights(
        UNetModel(**{**OPTIONS, "in_channels": 4}, out_channels=4, use_spatial_transformer=True, context_dim=12)
    )


def test_a_keyword_that_the_original_swallowed_is_warned_about():
    model, x, t, c = denoiser(), randn(2, 4, 8, 8), torch.tensor([1, 2]), randn(2, 5, 12)
    expected = model(x, t, c)
    assert model(x=x, timesteps=t, context=c, y=None).equal(expected)
    with pytest.warns(
        UserWarning, match="control, only_mid_control: without effect, a U-Net takes x, timesteps, context, y"
    ):
        assert model(x, t, context=c, control=[x], only_mid_control=True).equal(expected)
    with pytest.raises(ValueError, match=r"timesteps is missing; give one per sample, shape \(2,\)"):
        model(x, context=c)


@pytest.mark.parametrize("make", [denoiser, lambda: classifier("adaptive")], ids=["denoiser", "classifier"])
def test_networks_are_converted_to_half_precision_and_back(make):
    model, x, t = make(), randn(2, 4, 8, 8), torch.tensor([1, 2])
    args = (x, t, randn(2, 5, 12)) if isinstance(model, UNetModel) else (x[:, :3], t)
    expected = model(*args)
    assert model.convert_to_fp16() is None and model.dtype == torch.float16
    out = model(*args)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0.02)
    model.convert_to_fp32()
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model(*args).equal(expected)
    model.input_blocks.apply(convert_module_to_f16)
    assert {p.dtype for p in model.input_blocks.parameters()} == {torch.float16} and model.dtype == torch.float32
    model.input_blocks.apply(convert_module_to_f32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
