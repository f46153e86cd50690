"""The U-Net against the original networks, in every dtype and layout, and its errors."""

import gzip
import json

import pytest
import torch
from _networks import CASES, GOLDEN, golden, golden_weights, randn

from ldm.modules.attention import SpatialTransformer, attend
from ldm.modules.diffusionmodules import util as layers
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, ResBlock, UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.util import instantiate_from_config

UNETS = [name for name in CASES if name.startswith("unet")]
SMALL_UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": [2], "channel_mult": [1, 2], "num_heads": 2,
}  # fmt: skip


def small_unet(**options):
    return golden_weights(UNetModel(**{**SMALL_UNET, **options}))


def context_unet(**options):
    return small_unet(use_spatial_transformer=True, context_dim=12, **options)


def inputs(batch=2):
    return randn(batch, 4, 8, 8), torch.arange(batch) * 100 + 7, randn(batch, 5, 12, seed=1)


# --- the original networks


@pytest.mark.parametrize("name", CASES)
def test_state_dict_keys_and_shapes_are_the_originals(name):
    with gzip.open(GOLDEN / "keys.json.gz") as file:
        expected = json.load(file)[name]
    with torch.device("meta"):
        model = instantiate_from_config(CASES[name])
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected


@pytest.mark.parametrize("name", UNETS)
def test_unet_returns_what_the_original_returns(name):
    model, z = golden(name)
    out = model(z["in_x"], z["in_timesteps"], z.get("in_context"), z.get("in_y"))
    torch.testing.assert_close(out, z["out_eps"], rtol=0, atol=1e-4)


# --- dtypes and layouts


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.12)], ids=str
)
def test_unet_in_another_dtype_agrees_and_keeps_the_latents_dtype(dtype, atol):
    model, z = golden("unet_sd1")
    out = model.to(dtype)(z["in_x"], z["in_timesteps"], z["in_context"])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, z["out_eps"], rtol=0, atol=atol)
    assert model(z["in_x"].to(dtype), z["in_timesteps"], z["in_context"].to(dtype)).dtype == dtype


def test_channels_last_gives_the_same_numbers():
    model, (x, t, c) = context_unet(), inputs()
    expected = model(x, t, c)
    out = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), t, c)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_autocast_training_widens_no_layer_and_its_gradients_agree():
    model, (x, t, c) = context_unet().requires_grad_(True), inputs()
    with torch.no_grad():  # the reference starts from what bf16 holds too, so only the arithmetic differs
        for tensor in (*model.parameters(), x, c):
            tensor.copy_(tensor.bfloat16().float())
    weights = [model.input_blocks[0][0].weight, model.middle_block[1].transformer_blocks[0].attn2.to_k.weight]
    loss = model(x, t, c).square().mean()
    expected = torch.autograd.grad(loss, weights)
    wide = []
    for name, layer in model.named_modules():
        hook = lambda m, i, o, name=name: wide.append(name) if o.dtype != torch.bfloat16 else None  # noqa: E731
        layer.register_forward_hook(hook)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, t, c).square().mean()
    assert wide == [""]  # only the network's own output, which is float32 as its input is
    for grad, reference in zip(torch.autograd.grad(loss, weights), expected, strict=True):
        assert (grad - reference).norm() < 0.03 * reference.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_attention_keeps_its_dtype_and_its_gradients_agree(dtype):
    q, k, v = (randn(1, 2, n, 8, seed=i, dtype=torch.float64).requires_grad_() for i, n in enumerate((6, 3, 3)))
    expected = torch.autograd.grad(attend(q, k, v).square().sum(), (q, k, v))
    narrow = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", dtype):
        out = attend(*narrow)
    assert out.dtype == dtype
    for grad, reference in zip(torch.autograd.grad(out.float().square().sum(), narrow), expected, strict=True):
        assert grad.dtype == dtype
        assert (grad - reference).norm() < 0.02 * reference.norm()


# --- what the layers mean


def test_a_sample_is_the_same_alone_and_in_a_batch():
    model, (x, t, c) = context_unet(), inputs(batch=3)
    together = model(x, t, c)
    for i in range(3):
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1], c[i : i + 1]), together[i : i + 1])


def test_pixels_context_timestep_and_class_all_reach_the_output():
    model, (x, t, c) = context_unet(num_classes=3), inputs()
    y = torch.tensor([0, 1])
    out = model(x, t, c, y)
    for other in (model(x + 0.1, t, c, y), model(x, t + 1, c, y), model(x, t, c + 0.1, y), model(x, t, c, y + 1)):
        assert (other - out).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_a_fresh_network_predicts_zero_and_its_branches_are_the_identity():
    x, t, c = inputs()
    assert not UNetModel(**SMALL_UNET)(x, t).any()
    h, emb = randn(2, 32, 4, 4), randn(2, 8)
    torch.testing.assert_close(SpatialTransformer(32, 2, 16, context_dim=12)(h, c), h, rtol=0, atol=0)
    torch.testing.assert_close(AttentionBlock(32, 2)(h), h, rtol=0, atol=0)
    torch.testing.assert_close(ResBlock(32, 8, 0.0)(h, emb), h, rtol=0, atol=0)


def test_linear_and_convolutional_projections_are_the_same_map():
    conv, linear = (SpatialTransformer(32, 2, 16, context_dim=12, use_linear=use) for use in (False, True))
    golden_weights(conv)
    linear.load_state_dict({k: v.reshape(linear.state_dict()[k].shape) for k, v in conv.state_dict().items()})
    h, c = randn(2, 32, 4, 6), randn(2, 5, 12)
    torch.testing.assert_close(linear(h, c), conv(h, c), rtol=0, atol=1e-5)


def test_both_attention_orders_are_the_same_map_of_reordered_weights():
    by_head, by_kind = AttentionBlock(32, 4), AttentionBlock(32, 4, use_new_attention_order=True)
    golden_weights(by_head)
    weights = by_head.state_dict()
    for k in ("qkv.weight", "qkv.bias"):
        weights[k] = weights[k].unflatten(0, (4, 3, 8)).transpose(0, 1).flatten(0, 2)
    by_kind.load_state_dict(weights)
    h = randn(2, 32, 4, 6)
    torch.testing.assert_close(by_kind(h), by_head(h), rtol=0, atol=1e-5)


def test_disabled_self_attention_attends_to_the_context_at_the_named_levels():
    model = context_unet(attention_resolutions=[1, 2], disable_self_attentions=[True, False])
    width = {k: v.shape[1] for k, v in model.state_dict().items() if k.endswith("attn1.to_k.weight")}
    to_context = {".".join(k.split(".")[:2]) for k, w in width.items() if w == 12}
    assert to_context == {"input_blocks.1", "output_blocks.2", "output_blocks.3"}


def test_checkpointing_changes_no_gradient_and_is_off_without_gradients(monkeypatch):
    calls = []
    real = layers._torch_checkpoint
    monkeypatch.setattr(layers, "_torch_checkpoint", lambda *a, **k: calls.append(a) or real(*a, **k))
    grads = []
    for use_checkpoint in (False, True):
        model, (x, t, c) = context_unet(use_checkpoint=use_checkpoint).requires_grad_(True), inputs()
        model(x, t, c).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
        assert bool(calls) == use_checkpoint
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)
    calls.clear()
    with torch.no_grad():
        model(x, t, c)
    assert not calls


def test_residual_blocks_may_be_counted_per_level():
    per_level = UNetModel(**{**SMALL_UNET, "num_res_blocks": [1, 1]}).state_dict()
    assert per_level.keys() == UNetModel(**SMALL_UNET).state_dict().keys()
    deeper = UNetModel(**{**SMALL_UNET, "num_res_blocks": [2, 1]})
    assert len(deeper.input_blocks) == len(UNetModel(**SMALL_UNET).input_blocks) + 1


def test_attention_blocks_may_be_counted_per_level():
    model = small_unet(num_res_blocks=2, attention_resolutions=[1, 2], num_attention_blocks=[0, 1])
    assert [any(isinstance(m, AttentionBlock) for m in block) for block in model.input_blocks] == [0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("resample", [{}, {"conv_resample": False}, {"resblock_updown": True}], ids=str)
def test_networks_of_one_and_three_dimensions_keep_the_size(dims, resample):
    shape = (2, 4, 8) if dims == 1 else (2, 4, 3, 4, 8)  # an odd depth: it is never halved
    out = small_unet(dims=dims, **resample)(randn(*shape), torch.tensor([1, 2]))
    assert out.shape == shape and out.std() > 0.1


@pytest.mark.parametrize(
    ("options", "y"),
    [
        ({"num_classes": "continuous"}, randn(2, 1)),
        ({"num_classes": "sequential", "adm_in_channels": 6}, randn(2, 6)),
    ],
    ids=["continuous", "sequential"],
)
def test_vectors_as_labels_are_taken_in_any_dtype(options, y):
    x, t, _ = inputs()
    model = small_unet(**options)
    torch.testing.assert_close(model(x, t, y=y.double()), model(x, t, y=y))
    assert (model(x, t, y=y + 1) - model(x, t, y=y)).abs().max() > 1e-3


def test_a_codebook_network_scores_every_entry():
    x, t, _ = inputs()
    assert small_unet(n_embed=10)(x, t).shape == (2, 10, 8, 8)


def test_a_repeated_context_width_is_one_width():
    listed = small_unet(use_spatial_transformer=True, context_dim=[12, 12], transformer_depth=2)
    x, t, c = inputs()
    torch.testing.assert_close(listed(x, t, c), context_unet(transformer_depth=2)(x, t, c))


def test_one_timestep_serves_a_whole_batch():
    model, (x, _, c) = context_unet(), inputs()
    torch.testing.assert_close(model(x, torch.tensor([5]), c), model(x, torch.tensor([5, 5]), c))


def test_timestep_embedding_is_cosines_then_sines_from_one_to_max_period():
    t = torch.tensor([0, 1, 999])
    out = timestep_embedding(t, 8, max_period=100)
    angle = t.double()[:, None] * 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    torch.testing.assert_close(out.double(), torch.cat([angle.cos(), angle.sin()], 1), rtol=0, atol=1e-4)
    assert out.dtype == torch.float32 and out[0].tolist() == [1] * 4 + [0] * 4


def test_timestep_embedding_takes_odd_widths_and_fractions():
    out = timestep_embedding(torch.tensor([0.5, 2.5]), 7)
    assert out.shape == (2, 7) and not out[:, -1].any()
    torch.testing.assert_close(out[:, 0], torch.tensor([0.5, 2.5]).cos())
    assert timestep_embedding(torch.tensor([3, 4]), 2, repeat_only=True).tolist() == [[3, 3], [4, 4]]


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, r"context is missing.*\(2, M, 12\)"),
        ({"context": torch.zeros(2, 5, 13)}, r"context has shape \(2, 5, 13\).*must be \(2, M, 12\)"),
        ({"context": torch.zeros(3, 5, 12)}, r"context has shape \(3, 5, 12\).*must be \(2, M, 12\)"),
        ({"context": torch.zeros(2, 12)}, r"context has shape \(2, 12\)"),
        ({"x": torch.zeros(2, 5, 8, 8)}, r"x has shape \(2, 5, 8, 8\); this network takes \(batch, 4, …\)"),
        ({"x": torch.zeros(4, 8, 8)}, r"x has shape \(4, 8, 8\)"),
        ({"x": torch.zeros(2, 4, 8, 7)}, r"size \(8, 7\) does not halve evenly 1 times.*divisible by 2"),
        ({"timesteps": torch.tensor([1, 2, 3])}, r"timesteps has shape \(3,\); give one per sample, shape \(2,\)"),
        ({"timesteps": torch.tensor(1)}, r"timesteps has shape \(\)"),
        ({"y": torch.tensor([1, 2])}, r"num_classes=None and y is given"),
    ],
)
def test_unet_names_the_input_that_does_not_fit(change, message):
    x, t, c = inputs()
    with pytest.raises(ValueError, match=message):
        context_unet()(**{"x": x, "timesteps": t, "context": c, **change})


def test_unet_names_a_label_that_does_not_fit():
    x, t, _ = inputs()
    with pytest.raises(ValueError, match="num_classes=3 and y is missing"):
        small_unet(num_classes=3)(x, t)
    with pytest.raises(ValueError, match=r"y has shape \(1,\); give one entry per sample, 2 in all"):
        small_unet(num_classes=3)(x, t, y=torch.tensor([1]))


def test_a_context_that_nothing_attends_to_is_warned_about():
    x, t, c = inputs()
    with pytest.warns(UserWarning, match="context has no effect"):
        small_unet()(x, t, c)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": -1}, "set one of them"),
        ({"num_heads": 3}, r"do not split into num_heads=3"),
        ({"num_head_channels": 24}, r"num_head_channels=24"),
        ({"use_spatial_transformer": True}, "use_spatial_transformer=True with context_dim=None"),
        ({"context_dim": 12}, "use_spatial_transformer=False with context_dim=12"),
        ({"use_spatial_transformer": True, "context_dim": [12, 13]}, r"context_dim=\[12, 13\]"),
        ({"use_spatial_transformer": True, "context_dim": 12, "dims": 3}, "dims=3"),
        ({"dims": 4}, "dims=4: a network has 1, 2 or 3"),
        ({"num_res_blocks": [1, 1, 1]}, r"num_res_blocks=\[1, 1, 1\] has 3 entries for 2 levels"),
        ({"num_classes": "many"}, "num_classes='many': choose a number, 'continuous', 'sequential' or None"),
        ({"num_classes": "sequential"}, "needs adm_in_channels"),
    ],
)
def test_unet_names_the_option_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        UNetModel(**{**SMALL_UNET, **options})
