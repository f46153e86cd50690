"""Attention under CompVis' names: its formulas, its mask, and the ways in which repositories replace it."""

import copy

import pytest
import torch
from _networks import golden_weights, randn
from torch import nn

from ldm.modules.attention import (
    BasicTransformerBlock,
    CrossAttention,
    LinearAttention,
    MemoryEfficientCrossAttention,
    SpatialSelfAttention,
    SpatialTransformer,
    default,
    exists,
    init_,
    max_neg_value,
    uniq,
)
from ldm.modules.diffusionmodules.model import AttnBlock, LinAttnBlock, MemoryEfficientAttnBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel

MASK = torch.tensor([[True, True, False, True, False, False], [False, True, True, True, True, True]])


def small_attention(cls=CrossAttention):
    return golden_weights(cls(16, context_dim=12, heads=2, dim_head=8))


def explicit(layer, x, context=None, mask=None):
    """What CompVis' class computes, head by head; the masked scores are the least number there is."""
    context = x if context is None else context
    projected = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    heads = []
    for q, k, v in zip(*(y.chunk(layer.heads, dim=-1) for y in projected)):
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.finfo(scores.dtype).max)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        heads.append(weights / weights.sum(-1, keepdim=True) @ v)
    return layer.to_out(torch.cat(heads, dim=-1))


# --- the formulas


def test_cross_attention_is_its_formula_with_and_without_a_mask():
    layer, x, c = small_attention(), randn(2, 5, 16), randn(2, 6, 12, seed=1)
    torch.testing.assert_close(layer(x, c), explicit(layer, x, c))
    torch.testing.assert_close(layer(x, c, mask=MASK), explicit(layer, x, c, MASK))
    torch.testing.assert_close(layer(x, c, mask=MASK | True), layer(x, c))


def test_what_is_masked_has_no_influence():
    layer, x, c = small_attention(), randn(2, 5, 16), randn(2, 6, 12, seed=1)
    other = torch.where(MASK[..., None], c, 100 * randn(2, 6, 12, seed=2))
    assert layer(x, other, mask=MASK).equal(layer(x, c, mask=MASK))
    torch.testing.assert_close(layer(x, c, mask=MASK)[:1], layer(x[:1], c[:1, [0, 1, 3]]))


def test_a_mask_of_a_map_is_flattened_and_covers_the_layers_own_input_too():
    layer = golden_weights(CrossAttention(16, heads=2, dim_head=8))
    x = randn(2, 6, 16)
    torch.testing.assert_close(layer(x, mask=MASK.reshape(2, 2, 3)), explicit(layer, x, mask=MASK))


def test_where_all_is_masked_the_values_are_averaged_as_in_the_original():
    layer, x, c = small_attention(), randn(2, 5, 16), randn(2, 6, 12, seed=1)
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    mean = layer.to_out(layer.to_v(c).mean(1, keepdim=True)).expand(2, 5, 16)
    torch.testing.assert_close(layer(x, c, mask=nothing), mean)
    torch.testing.assert_close(explicit(layer, x, c, nothing), mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_mask_works_in_low_precision_with_and_without_gradients(dtype):
    layer, x, c = small_attention(), randn(2, 5, 16), randn(2, 6, 12, seed=1)
    expected = explicit(layer, x, c, MASK)
    layer.to(dtype)
    for trained in (False, True):
        out = layer.requires_grad_(trained)(x.to(dtype), c.to(dtype), MASK)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.float(), r"mask is torch.float32 of shape \(2, 6\); give bool of shape \(2, 6\)"),
        (MASK[:, :5], r"of shape \(2, 5\); give bool of shape \(2, 6\), true where the context"),
        (MASK[:1], r"of shape \(1, 6\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(mask, message):
    with pytest.raises(ValueError, match=message):
        small_attention()(randn(2, 5, 16), randn(2, 6, 12), mask)


def test_scale_is_the_roots_reciprocal_and_what_is_written_to_it_counts():
    layer, x, c = small_attention(), randn(2, 5, 16), randn(2, 6, 12, seed=1)
    assert layer.scale == 8**-0.5 and layer.heads == 2 and layer.dim_head == 8
    layer.scale *= 3
    scaled = layer(x, c)
    trained = copy.deepcopy(layer).bfloat16().requires_grad_(True)(x.bfloat16(), c.bfloat16())
    layer.scale /= 3
    layer.to_q.weight.mul_(3)
    torch.testing.assert_close(scaled, layer(x, c))
    torch.testing.assert_close(trained.float(), scaled, rtol=0, atol=0.05)


def test_memory_efficient_attention_has_the_same_weights_and_numbers():
    ours, theirs, x, c = (
        small_attention(),
        small_attention(MemoryEfficientCrossAttention),
        randn(2, 5, 16),
        randn(2, 6, 12),
    )
    theirs.load_state_dict(ours.state_dict())
    assert theirs(x, c, mask=MASK).equal(ours(x, c, mask=MASK))


def test_linear_attention_is_its_formula():
    layer, x = golden_weights(LinearAttention(6, heads=3, dim_head=5)), randn(2, 6, 4, 7)
    qkv = torch.einsum("oc, bchw -> bohw", layer.to_qkv.weight[:, :, 0, 0], x).reshape(2, 3, 3, 5, 28)
    q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
    k = k.exp() / k.exp().sum(-1, keepdim=True)
    context = torch.einsum("bhdn, bhen -> bhde", k, v)
    out = torch.einsum("bhde, bhdn -> bhen", context, q).reshape(2, 15, 4, 7)
    out = torch.einsum("oc, bchw -> bohw", layer.to_out.weight[:, :, 0, 0], out) + layer.to_out.bias[:, None, None]
    torch.testing.assert_close(layer(x), out)
    assert LinearAttention(6).to_qkv.weight.shape == (3 * 4 * 32, 6, 1, 1)
    assert LinAttnBlock(6).state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize("cls", [SpatialSelfAttention, AttnBlock, MemoryEfficientAttnBlock])
def test_spatial_self_attention_is_its_formula(cls):
    layer, x = golden_weights(cls(32)), randn(2, 32, 3, 5)
    h = nn.functional.group_norm(x, 32, layer.norm.weight, layer.norm.bias, eps=1e-6)
    q, k, v = ((p.weight[:, :, 0, 0] @ h.flatten(2) + p.bias[:, None]) for p in (layer.q, layer.k, layer.v))
    weights = torch.einsum("bci, bcj -> bij", q, k).mul(32**-0.5).softmax(-1)
    out = torch.einsum("bij, bcj -> bci", weights, v)
    out = (layer.proj_out.weight[:, :, 0, 0] @ out + layer.proj_out.bias[:, None]).reshape(x.shape)
    torch.testing.assert_close(layer(x), x + out, rtol=1e-4, atol=1e-5)


def test_small_helpers_do_what_they_did():
    assert exists(0) and not exists(None) and default(None, lambda: 3) == 3
    assert list(uniq([3, 1, 3, 2, 1])) == [3, 1, 2]
    assert max_neg_value(torch.ones(1, dtype=torch.float16)) == -65504
    torch.manual_seed(0)
    filled = torch.empty(50, 64)
    assert init_(filled) is filled and 0.12 < filled.abs().max() <= 0.125


# --- blocks and transformers


def test_a_transformer_with_several_contexts_shows_each_block_its_own():
    model = golden_weights(SpatialTransformer(32, 2, 16, depth=2, context_dim=[12, 7]))
    x, contexts = randn(2, 32, 4, 4), [randn(2, 5, 12), randn(2, 3, 7, seed=1)]
    h = model.proj_in(model.norm(x)).flatten(2).transpose(1, 2)
    for block, c in zip(model.transformer_blocks, contexts):
        h = block(h, context=c)
    out = model.proj_out(h.transpose(1, 2).reshape(x.shape)) + x
    torch.testing.assert_close(model(x, context=contexts), out)
    one = SpatialTransformer(32, 2, 16, depth=2, context_dim=[12])
    one.load_state_dict(SpatialTransformer(32, 2, 16, depth=2, context_dim=12).state_dict())
    golden_weights(one)
    assert one(x, [contexts[0]]).equal(one(x, contexts[0]))


def test_a_wrong_number_of_contexts_is_named():
    with pytest.raises(
        ValueError, match="context_dim has 2 entries for 3 transformer blocks; give one for each, or one"
    ):
        SpatialTransformer(32, 2, 16, depth=3, context_dim=[12, 7])
    with pytest.raises(ValueError, match="context has 2 entries for 1 transformer blocks"):
        SpatialTransformer(32, 2, 16, context_dim=12)(randn(1, 32, 2, 2), [randn(1, 5, 12)] * 2)


# --- replaced by repositories


def unet(**options):
    options |= {"channel_mult": [1, 2], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 12}
    return golden_weights(UNetModel(8, 4, 32, 4, 1, [1, 2], **options))


def inputs():
    return randn(2, 4, 8, 8), torch.tensor([7, 107]), randn(2, 5, 12, seed=1)


def sliced(self, x, context=None, mask=None):
    """Attention a head at a time, as those write it who want less memory: by CompVis' attributes alone."""
    sliced.calls.append((context is not None, mask))
    context = default(context, x)
    q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
    out = torch.empty_like(q)
    for i in range(self.heads):
        scores = torch.einsum("bnd, bmd -> bnm", q[:, :, i], k[:, :, i]) * self.scale
        out[:, :, i] = scores.softmax(-1) @ v[:, :, i]
    return self.to_out(out.flatten(2))


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_a_forward_put_on_the_class_runs_in_a_whole_network(monkeypatch, use_checkpoint):
    model = unet(use_checkpoint=use_checkpoint)
    expected, layers = model(*inputs()), [m for m in model.modules() if isinstance(m, CrossAttention)]
    monkeypatch.setattr(sliced, "calls", [], raising=False)
    monkeypatch.setattr(CrossAttention, "forward", sliced)
    torch.testing.assert_close(model(*inputs()), expected, rtol=0, atol=1e-5)
    transformers = sum(isinstance(m, BasicTransformerBlock) for m in model.modules())
    assert len(sliced.calls) == len(layers) == 2 * transformers > 8
    assert sliced.calls == [(False, None), (True, None)] * transformers


def test_a_forward_put_on_single_layers_runs_and_can_edit_attention():
    """As prompt-to-prompt does: each cross-attention's weights are seen, and what is done to them has effect."""
    model, (x, t, c) = unet(), inputs()
    expected, seen, edits = model(x, t, c), {}, {"keep": torch.ones(5)}

    def replacement(layer, name):
        def forward(x, context=None, mask=None):
            q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
            q, k, v = (y.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for y in (q, k, v))
            weights = (torch.einsum("bhnd, bhmd -> bhnm", q, k) * layer.scale).softmax(-1) * edits["keep"]
            seen[name] = weights
            return layer.to_out((weights @ v).transpose(1, 2).flatten(2))

        return forward

    layers = {n: m for n, m in model.named_modules() if type(m).__name__ == "CrossAttention" and n.endswith("attn2")}
    for name, layer in layers.items():
        layer.forward = replacement(layer, name)
    torch.testing.assert_close(model(x, t, c), expected, rtol=0, atol=1e-5)
    assert seen.keys() == layers.keys()
    assert {w.shape[1:] for w in seen.values()} == {(2, 64, 5), (2, 16, 5)}
    edits["keep"] = torch.tensor([1.0, 1, 0, 1, 1])
    changed = model(x, t, c)
    assert (changed - expected).abs().max() > 1e-3
    edits["keep"] = torch.ones(5)
    layers.popitem()[1].forward = lambda x, context=None, mask=None: torch.zeros_like(x)
    assert not torch.allclose(model(x, t, c), expected)


def test_a_class_put_into_attention_modes_is_what_new_blocks_are_made_of(monkeypatch):
    class Ours(CrossAttention):
        pass

    monkeypatch.setitem(BasicTransformerBlock.ATTENTION_MODES, "softmax", Ours)
    block = BasicTransformerBlock(16, 2, 8, context_dim=12)
    assert type(block.attn1) is type(block.attn2) is Ours
    assert block.attn1.to_k.in_features == 16 and block.attn2.to_k.in_features == 12
