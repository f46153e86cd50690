"""The modules that repositories import beside the networks: layers, encoders, distributions, the text transformer."""

import pytest
import torch
from _networks import golden_weights, randn
from torch import nn

from ldm.modules.diffusionmodules import util
from ldm.modules.diffusionmodules.model import Decoder, Encoder, ResnetBlock, nonlinearity
from ldm.modules.distributions.distributions import (
    AbstractDistribution,
    DiagonalGaussianDistribution,
    DiracDistribution,
)
from ldm.modules.encoders.modules import AbstractEncoder, BERTEmbedder, IdentityEncoder
from ldm.modules.x_transformer import Encoder as TextEncoder
from ldm.modules.x_transformer import TransformerWrapper

# --- modules and their parameters


def test_scale_module_scales_every_parameter_and_returns_the_module():
    layer = nn.Linear(2, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    assert util.scale_module(layer, 0.5) is layer and layer.weight.requires_grad
    assert layer.weight.equal(0.5 * weight) and layer.bias.equal(0.5 * bias)


def test_the_hybrid_conditioner_encodes_both_for_the_wrapper():
    rescaler = {"target": "ldm.modules.encoders.modules.SpatialRescaler", "params": {"multiplier": 0.5}}
    conditioner = util.HybridConditioner(rescaler, {"target": "ldm.modules.encoders.modules.IdentityEncoder"})
    picture, vectors = randn(2, 3, 8, 8), randn(2, 5, 4)
    c = conditioner(picture, vectors)
    assert set(c) == {"c_concat", "c_crossattn"} and c["c_crossattn"][0] is vectors
    torch.testing.assert_close(c["c_concat"][0], nn.functional.avg_pool2d(picture, 2))


def test_mean_flat_of_numbers_is_the_numbers():
    assert util.mean_flat(torch.tensor([1.0, 5.0])).tolist() == [1.0, 5.0]


def test_nonlinearity_and_silu_are_x_times_sigmoid():
    x = randn(50)
    for f in (nonlinearity, util.SiLU()):
        torch.testing.assert_close(f(x), x / (1 + (-x).exp()))


@pytest.mark.parametrize("conv_shortcut", [False, True])
def test_a_resnet_block_is_its_formula(conv_shortcut):
    block = golden_weights(ResnetBlock(in_channels=32, out_channels=64, dropout=0.1, conv_shortcut=conv_shortcut))
    x, temb = randn(2, 32, 4, 6), randn(2, 512)  # CompVis' default width

    def conv(layer, h):
        return nn.functional.conv2d(h, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def norm(layer, h):
        g = h.reshape(2, 32, -1)
        g = (g - g.mean(-1, keepdim=True)) / (g.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        h = g.reshape(h.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]
        return h * h.sigmoid()

    h = conv(block.conv1, norm(block.norm1, x))
    h = h + (block.temb_proj(temb * temb.sigmoid()))[:, :, None, None]
    h = conv(block.conv2, norm(block.norm2, h))
    shortcut = block.conv_shortcut if conv_shortcut else block.nin_shortcut
    torch.testing.assert_close(block(x, temb), conv(shortcut, x) + h, rtol=1e-4, atol=1e-4)
    assert shortcut.weight.shape[-1] == (3 if conv_shortcut else 1)


@pytest.mark.parametrize("cls", [Encoder, Decoder])
def test_linear_attention_may_be_asked_for_by_its_own_flag(cls):
    options = {"ch": 32, "out_ch": 3, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "in_channels": 3}
    options |= {"resolution": 8, "z_channels": 4}
    by_flag, by_type = cls(use_linear_attn=True, **options), cls(attn_type="linear", **options)
    assert by_flag.state_dict().keys() == by_type.state_dict().keys() != cls(**options).state_dict().keys()
    assert (by_flag.num_resolutions, by_flag.num_res_blocks, by_flag.resolution, by_flag.temb_ch) == (2, 1, 8, 0)


# --- distributions and encoders


def test_a_dirac_distribution_is_its_value():
    point = DiracDistribution(randn(2, 4))
    assert isinstance(point, AbstractDistribution) and point.sample() is point.mode() is point.value


def test_an_abstract_distribution_says_what_it_lacks():
    for method in ("sample", "mode"):
        with pytest.raises(NotImplementedError, match=rf"AbstractDistribution has no {method}\(\)"):
            getattr(AbstractDistribution(), method)()
    assert isinstance(DiagonalGaussianDistribution(torch.zeros(1, 2)), AbstractDistribution)


def test_the_identity_encoder_hands_on_what_it_is_given():
    x = {"anything": 1}
    assert IdentityEncoder().encode(x) is x and IdentityEncoder()(x) is x


class Repositorys(AbstractEncoder):
    """An encoder as repositories write them: own `freeze`, `forward`, and an `encode` that says more."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.freeze()

    def freeze(self):
        self.transformer = self.transformer.eval()
        for param in self.parameters():
            param.requires_grad = False

    def forward(self, text, scale=1.0):
        return scale * self.transformer(text)

    def encode(self, text):
        return self(text, scale=2.0)


def test_a_repositorys_encoder_keeps_its_own_methods():
    encoder, x = Repositorys(), randn(3, 2)
    torch.testing.assert_close(encoder.encode(x), 2 * encoder.transformer[0](x))
    assert encoder.train().transformer.training  # it froze the weights only, as it said
    bare = AbstractEncoder()
    bare.forward = lambda x, times=1: x * times
    assert bare.encode(3, times=2) == 6


# --- the text transformer


def text_transformer(**options):
    layers = TextEncoder(dim=16, depth=2, heads=2, attn_dim_head=8, **options)
    return golden_weights(TransformerWrapper(num_tokens=11, max_seq_len=6, attn_layers=layers))


def test_masked_tokens_are_as_if_they_were_not_there():
    model, tokens = text_transformer(), torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    out = model(tokens, return_embeddings=True, mask=mask)
    torch.testing.assert_close(out[:1, :2], model(tokens[:1, :2], return_embeddings=True))
    torch.testing.assert_close(out[1:], model(tokens[1:], return_embeddings=True))
    # and where there is no token, the layer averages all values, as the original does
    layer, x = model.attn_layers.layers[0][1], randn(2, 4, 16)
    mean = layer.to_out(layer.to_v(x).mean(1))
    torch.testing.assert_close(layer(x, mask)[0, 2:], mean[:1].expand(2, 16))


def test_the_text_encoders_options_reach_its_layers():
    shapes = {k: tuple(v.shape) for k, v in text_transformer(ff_mult=3, ff_glu=True).state_dict().items()}
    assert shapes["attn_layers.layers.0.1.to_q.weight"] == (16, 16)
    assert shapes["attn_layers.layers.1.1.net.0.proj.weight"] == (2 * 48, 16)
    dropouts = [m.p for m in text_transformer(ff_dropout=0.25).attn_layers.modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.25, 0.25]
    with pytest.raises(TypeError, match="use_rezero"):
        TextEncoder(dim=16, depth=1, use_rezero=True)


def test_a_learnt_vector_takes_a_words_place():
    """Textual inversion: as if the word's own vector were that one."""
    model, tokens, learnt = text_transformer(), torch.tensor([[3, 7, 4], [7, 1, 1]]), randn(16)

    def manager(tokens, vectors):
        return torch.where((tokens == 7)[..., None], learnt, vectors)

    out = model(tokens, return_embeddings=True, embedding_manager=manager)
    assert not torch.allclose(out, model(tokens, return_embeddings=True))
    model.token_emb.weight[7] = learnt
    torch.testing.assert_close(out, model(tokens, return_embeddings=True))


def test_the_bert_embedder_hands_the_manager_on():
    encoder = golden_weights(BERTEmbedder(16, 1, vocab_size=11, max_seq_len=3, use_tokenizer=False))
    tokens = torch.tensor([[1, 2, 3]])
    out = encoder.encode(tokens, embedding_manager=lambda tokens, vectors: torch.zeros_like(vectors))
    torch.testing.assert_close(out, encoder.encode(tokens + 4, embedding_manager=lambda t, v: 0 * v))
    assert not torch.allclose(out, encoder.encode(tokens))
