"""CLIP's text transformers against transformers', under both sets of keys."""

import copy
import math

import pytest
import torch
from _networks import randn

from ldm.modules.encoders.clip import CLIPTextModel, OpenCLIPTextModel, rename_text_keys
from ldm.modules.encoders.clip_tokenizer import CLIPTokenizer
from ldm.modules.encoders.modules import (
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
)
from ldm.modules.encoders.text_config import clip_config

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
TINY = {**SMALL, "vocab_size": 100}
OPEN = {"width": 24, "heads": 3, "layers": 3, "embed_dim": 20, "mlp_ratio": 40 / 24}
TOKENS = torch.tensor([[98, 5, 7, 99, 99, 99, 99, 99], [98, 1, 2, 3, 4, 5, 6, 99]])


def peer(**config):
    """transformers' text model with random weights that make every part count."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(**TINY, bos_token_id=98, eos_token_id=99, **config)
    return randomised(transformers.CLIPTextModel(config).eval())


@torch.no_grad()
def randomised(model):
    for i, p in enumerate(model.parameters()):
        p.copy_(randn(*p.shape, seed=i) * (0.3 if p.ndim < 2 else 2 * p.shape[-1] ** -0.5))
    return model.requires_grad_(False)


def clip(model, **options):
    ours = FrozenCLIPEmbedder(text_config=model.config.to_dict(), **options)
    ours.transformer.load_state_dict(model.state_dict())
    return ours


def open_clip_weights(model):
    """transformers' weights under OpenCLIP's names, q, k and v as one."""
    theirs = {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
    weights = {
        "token_embedding.weight": theirs["embeddings.token_embedding.weight"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
    }
    for i in range(TINY["num_hidden_layers"]):
        old, new = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            packed = [theirs[f"{old}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            weights[f"{new}.attn.in_proj_{kind}"] = torch.cat(packed)
            weights[f"{new}.attn.out_proj.{kind}"] = theirs[f"{old}.self_attn.out_proj.{kind}"]
            weights[f"{new}.mlp.c_fc.{kind}"] = theirs[f"{old}.mlp.fc1.{kind}"]
            weights[f"{new}.mlp.c_proj.{kind}"] = theirs[f"{old}.mlp.fc2.{kind}"]
            weights[f"{new}.ln_1.{kind}"] = theirs[f"{old}.layer_norm1.{kind}"]
            weights[f"{new}.ln_2.{kind}"] = theirs[f"{old}.layer_norm2.{kind}"]
    return weights | {f"ln_final.{kind}": theirs[f"final_layer_norm.{kind}"] for kind in ("weight", "bias")}


def open_clip(model, activation, **options):
    arch = "ViT-H-14-quickgelu" if activation == "quick_gelu" else "ViT-H-14"
    ours = FrozenOpenCLIPEmbedder(arch, text_config={**OPEN, "vocab_size": 100}, **options)
    report = ours.model.load_state_dict(open_clip_weights(model), strict=False)
    assert set(report.missing_keys) == {"text_projection", "logit_scale", "attn_mask"} and not report.unexpected_keys
    return ours


# against transformers


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_returns_the_peers_numbers(activation):
    model = peer(hidden_act=activation)
    theirs = model(TOKENS, output_hidden_states=True)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(clip(model)(TOKENS), theirs.last_hidden_state, **close)
    torch.testing.assert_close(clip(model, layer="pooled")(TOKENS), theirs.pooler_output[:, None], **close)
    for i in range(-4, 4):
        hidden = clip(model, layer="hidden", layer_idx=i)(TOKENS)
        torch.testing.assert_close(hidden, theirs.hidden_states[i], **close)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_open_clip_returns_the_peers_numbers(activation):
    model = peer(hidden_act=activation)
    theirs = model(TOKENS, output_hidden_states=True)
    final_norm = getattr(model, "text_model", model).final_layer_norm
    last, penultimate = (open_clip(model, activation, layer=layer)(TOKENS) for layer in ("last", "penultimate"))
    torch.testing.assert_close(last, theirs.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(penultimate, final_norm(theirs.hidden_states[-2]), rtol=0, atol=1e-5)
    assert (last - penultimate).abs().max() > 0.1


def test_the_last_of_fewer_layers_is_the_penultimate():
    """diffusers saves Stable Diffusion 2's text encoder without the block that is not used."""
    full = randomised(FrozenOpenCLIPEmbedder(layer="penultimate", text_config={**OPEN, "vocab_size": 100}))
    cut = FrozenOpenCLIPEmbedder(layer="last", text_config={**OPEN, "vocab_size": 100, "layers": 2})
    weights = full.state_dict()
    cut.load_state_dict({k: weights[k] for k in cut.state_dict()})
    torch.testing.assert_close(cut(TOKENS), full(TOKENS))


# truth


@pytest.mark.parametrize("make", [FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder])
def test_a_token_sees_those_before_it_only(make):
    encoder = randomised(make(text_config=TINY if make is FrozenCLIPEmbedder else {**OPEN, "vocab_size": 100}))
    other = TOKENS.clone()
    other[:, 5] = 50
    a, b = encoder(TOKENS), encoder(other)
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert ((a - b)[:, 5:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder])
def test_low_precision_gives_low_precision(make, dtype):
    encoder = randomised(make(text_config=TINY if make is FrozenCLIPEmbedder else {**OPEN, "vocab_size": 100}))
    wide = encoder(TOKENS)
    narrow = encoder.to(dtype)(TOKENS)
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.float(), wide, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    "make, config, pad", [(FrozenCLIPEmbedder, SMALL, 49407), (FrozenOpenCLIPEmbedder, OPEN, 0)], ids=["clip", "open"]
)
def test_prompts_and_their_tokens_are_encoded_alike(make, config, pad):
    encoder = randomised(make(text_config=config))
    out = encoder(["a horse", ""])
    assert out.shape == (2, 77, 24)
    torch.testing.assert_close(encoder.encode(CLIPTokenizer(pad=pad)(["a horse", ""])), out)
    torch.testing.assert_close(encoder("a horse"), out[:1], rtol=1e-4, atol=1e-5)


# keys


def layers(prefix, n, shapes):
    return {f"{prefix}.{i}.{name}": shape for i in range(n) for name, shape in shapes.items()}


def shapes(module):
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


def test_stable_diffusion_1s_keys():
    linear = {"weight": (768, 768), "bias": (768,)}
    block = {f"self_attn.{x}_proj.{k}": s for x in ("q", "k", "v", "out") for k, s in linear.items()}
    block |= {f"layer_norm{i}.{k}": (768,) for i in (1, 2) for k in ("weight", "bias")}
    block |= {"mlp.fc1.weight": (3072, 768), "mlp.fc1.bias": (3072,)}
    block |= {"mlp.fc2.weight": (768, 3072), "mlp.fc2.bias": (768,)}
    text = "transformer.text_model"
    expected = layers(f"{text}.encoder.layers", 12, block) | {
        f"{text}.embeddings.token_embedding.weight": (49408, 768),
        f"{text}.embeddings.position_embedding.weight": (77, 768),
        f"{text}.final_layer_norm.weight": (768,),
        f"{text}.final_layer_norm.bias": (768,),
    }
    with torch.device("meta"):
        assert shapes(FrozenCLIPEmbedder()) == expected


def test_stable_diffusion_2s_keys():
    block = {"attn.in_proj_weight": (3072, 1024), "attn.in_proj_bias": (3072,)}
    block |= {"attn.out_proj.weight": (1024, 1024), "attn.out_proj.bias": (1024,)}
    block |= {f"ln_{i}.{k}": (1024,) for i in (1, 2) for k in ("weight", "bias")}
    block |= {"mlp.c_fc.weight": (4096, 1024), "mlp.c_fc.bias": (4096,)}
    block |= {"mlp.c_proj.weight": (1024, 4096), "mlp.c_proj.bias": (1024,)}
    expected = layers("model.transformer.resblocks", 24, block) | {
        "model.token_embedding.weight": (49408, 1024),
        "model.positional_embedding": (77, 1024),
        "model.ln_final.weight": (1024,),
        "model.ln_final.bias": (1024,),
        "model.text_projection": (1024, 1024),
        "model.logit_scale": (),
        "model.attn_mask": (77, 77),
    }
    with torch.device("meta"):
        assert shapes(FrozenOpenCLIPEmbedder(freeze=True, layer="penultimate")) == expected


def test_an_empty_model_takes_a_files_tensors():
    weights = randomised(FrozenOpenCLIPEmbedder(text_config={**OPEN, "vocab_size": 100})).state_dict()
    with torch.device("meta"):
        empty = FrozenOpenCLIPEmbedder(text_config={**OPEN, "vocab_size": 100})
    empty.load_state_dict(weights, assign=True)
    assert empty.model.ln_final.weight.data_ptr() == weights["model.ln_final.weight"].data_ptr()
    assert empty(TOKENS).isfinite().all()


@pytest.mark.parametrize("old", [True, False])
def test_old_and_new_key_names_load(old):
    """Old files hold a constant beside the weights; transformers 5 leaves "text_model." out."""
    encoder = randomised(FrozenCLIPEmbedder(text_config=TINY))
    weights = encoder.state_dict()
    if old:
        weights["transformer.text_model.embeddings.position_ids"] = torch.arange(12)[None]
    else:
        weights = {k.replace("text_model.", ""): v for k, v in weights.items()}
        weights["transformer.embeddings.position_ids"] = torch.arange(12)[None]
    before = dict(weights)
    other = FrozenCLIPEmbedder(text_config=TINY)
    other.load_state_dict(weights)
    torch.testing.assert_close(other(TOKENS), encoder(TOKENS))
    assert weights.keys() == before.keys(), "the caller's weights are changed"
    assert rename_text_keys(weights, "transformer.").keys() == other.state_dict().keys()


def test_a_missing_or_foreign_key_still_stops_the_loading():
    model = CLIPTextModel(clip_config("openai/clip-vit-large-patch14", TINY))
    weights = model.state_dict()
    with pytest.raises(RuntimeError, match="final_layer_norm.bias"):
        model.load_state_dict({k: v for k, v in weights.items() if k != "text_model.final_layer_norm.bias"})
    with pytest.raises(RuntimeError, match="encoder.surplus"):
        model.load_state_dict({**weights, "encoder.surplus": torch.zeros(1)})


def test_renaming_leaves_other_encoders_and_networks_alone():
    weights = dict.fromkeys(
        ["model.diffusion_model.out.0.weight", "cond_stage_model.transformer.token_emb.weight", "encoder.a"],
        torch.zeros(1),
    )
    assert rename_text_keys(weights) == weights
    assert list(rename_text_keys({"cond_stage_model.transformer.encoder.layers.0.x": 0})) == [
        "cond_stage_model.transformer.text_model.encoder.layers.0.x"
    ]


# frozen or not


@pytest.mark.parametrize("make, config", [(FrozenCLIPEmbedder, TINY), (FrozenOpenCLIPEmbedder, OPEN)])
def test_a_frozen_encoder_stays_so_inside_a_model_in_training(make, config):
    model = torch.nn.Sequential(make(text_config=config)).train()
    assert model.training and not any(m.training for m in model[0].modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_an_encoder_that_is_not_frozen_learns():
    encoder = FrozenCLIPEmbedder(text_config=TINY, freeze=False).train()
    encoder(TOKENS).square().sum().backward()
    assert encoder.training and all(p.grad is not None for p in encoder.parameters())


def test_an_encoder_can_be_copied():
    encoder = randomised(FrozenCLIPEmbedder(text_config=TINY))
    torch.testing.assert_close(copy.deepcopy(encoder)(TOKENS), encoder(TOKENS))


# what does not fit


def test_the_known_text_towers_have_their_sizes():
    with torch.device("meta"):
        base = FrozenCLIPEmbedder("openai/clip-vit-base-patch32").transformer.config
        big, openai = (
            FrozenOpenCLIPEmbedder(*names).model.config
            for names in [("ViT-bigG-14", "laion2b_s39b_b160k"), ("ViT-L-14", "openai")]
        )
    assert (base.width, base.layers, base.heads, base.hidden) == (512, 12, 8, 2048)
    assert (big.width, big.layers, big.heads, big.embed_dim, big.activation) == (1280, 32, 20, 1280, "gelu")
    assert (openai.width, openai.activation) == (768, "quick_gelu")


@pytest.mark.parametrize(
    "make, options, message",
    [
        (FrozenCLIPEmbedder, {"version": "openai/clip"}, "version='openai/clip' is not known.*large-patch14"),
        (FrozenCLIPEmbedder, {"version": "mine", "text_config": {"hidden_size": 8}}, "intermediate_size"),
        (FrozenCLIPEmbedder, {"layer": "first"}, "layer='first' is not known; choose one of last, pooled, hidden"),
        (FrozenCLIPEmbedder, {"layer": "hidden"}, "needs layer_idx from -13 to 12"),
        (FrozenCLIPEmbedder, {"layer": "hidden", "layer_idx": 13}, "needs layer_idx from -13 to 12"),
        (FrozenCLIPEmbedder, {"max_length": 78}, "positions for 77 tokens"),
        (FrozenCLIPEmbedder, {"text_config": {**TINY, "hidden_act": "relu"}}, "'relu' is not known; .*quick_gelu"),
        (FrozenCLIPEmbedder, {"text_config": {**TINY, "hidden_size": 25}}, "25 does not divide into 3"),
        (FrozenOpenCLIPEmbedder, {"arch": "ViT-X"}, "arch='ViT-X' is not known.*ViT-H-14"),
        (FrozenOpenCLIPEmbedder, {"layer": "pooled"}, "choose one of last, penultimate"),
        (FrozenOpenCLIPEmbedder, {"text_config": {"hidden_size": 8}}, "text_config has hidden_size; known are width"),
    ],
)
def test_what_cannot_be_built_is_named(make, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make(**options)


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="13 tokens are more than the 12"):
        FrozenCLIPEmbedder(text_config={**TINY, "max_position_embeddings": 12}, max_length=12)(
            TOKENS.repeat(1, 2)[:, :13]
        )


def test_prompts_are_refused_where_the_vocabulary_is_another():
    with pytest.raises(ValueError, match="100 tokens and its tokenizer 49408"):
        FrozenCLIPEmbedder(text_config=TINY)("a horse")


def test_the_activations_are_told_apart():
    x = torch.linspace(-3, 3, 7)
    config = clip_config("mine", TINY)
    torch.testing.assert_close(CLIPTextModel(config).text_model.encoder.layers[0].mlp[1](x), x * (1.702 * x).sigmoid())
    config = clip_config("mine", {**TINY, "hidden_act": "gelu"})
    expected = torch.tensor([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.tolist()])
    torch.testing.assert_close(OpenCLIPTextModel(config).transformer.resblocks[0].mlp[1](x), expected)
