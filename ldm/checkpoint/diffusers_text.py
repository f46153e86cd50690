"""The text encoder and tokenizer of a diffusers pipeline → `target`, `params` and weights of ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.diffusers_keys import nested, rename
from ldm.checkpoint.diffusers_options import Options, read_json
from ldm.checkpoint.errors import CheckpointError, shown, some
from ldm.modules.encoders.clip import unused_in_open_clip

_MODULES = "ldm.modules.encoders.modules"
_CLIP_VOCABULARY, _BERT_VOCABULARY = 49408, 30522
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_END, _FIRST = "<|endoftext|>", "!"  # what Stable Diffusion 1 and 2 pad their prompts with; "!" is token 0
_CLIP_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "vocab_size",
)  # fmt: skip
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def clip_config(options: Options, tokenizer: Path) -> dict[str, Any]:
    """A CLIPTextModel as the embedder that pads its prompts as the folder's tokenizer does.

    Stable Diffusion 1 pads with the end-of-text token, 2 with token 0; a folder that does not say so is told by its
    activation.
    """
    config: dict[str, Any] = {name: options.integer(name) for name in _CLIP_SIZES}
    config["hidden_act"] = options.choice("hidden_act", {"quick_gelu": "quick_gelu", "gelu": "gelu"})
    config["layer_norm_eps"] = options.number("layer_norm_eps", 1e-5)
    if (width := config["hidden_size"]) % config["num_attention_heads"]:
        options.refuse("num_attention_heads", config["num_attention_heads"], f"a divisor of hidden_size, {width}")
    _check_words(options, config["vocab_size"], _CLIP_VOCABULARY)
    _check_vocabulary(tokenizer)
    pad = _pad_token(tokenizer) or (_END if config["hidden_act"] == "quick_gelu" else _FIRST)
    if pad not in (_END, _FIRST):
        raise CheckpointError(
            f"{str(tokenizer)!r} pads prompts with {shown(str(pad))!r}; the text encoders here pad with {_END!r} or"
            f" {_FIRST!r}, as Stable Diffusion 1 and 2 do"
        )
    if pad == _END:
        target, params = "FrozenCLIPEmbedder", {"text_config": config}
    else:
        target, params = "FrozenOpenCLIPEmbedder", _open_clip_params(options, config)
    if (length := config["max_position_embeddings"]) != 77:
        params["max_length"] = length
    return {"target": f"{_MODULES}.{target}", "params": params}


def _open_clip_params(options: Options, config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"]
    if config["intermediate_size"] != 4 * width:
        options.refuse("intermediate_size", config["intermediate_size"], f"only {4 * width}, four times hidden_size")
    if config["layer_norm_eps"] != 1e-5:
        options.refuse("layer_norm_eps", config["layer_norm_eps"], "only 1e-05")
    text_config = {
        "width": width,
        "heads": config["num_attention_heads"],
        "layers": config["num_hidden_layers"] + 1,
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "embed_dim": width,
    }
    arch = {} if config["hidden_act"] == "gelu" else {"arch": "ViT-H-14-quickgelu"}
    # diffusers saves no layer that is left out, CompVis' files have it: `_open_clip_weights` puts one there.
    return {**arch, "freeze": True, "layer": "penultimate", "text_config": text_config}


def clip_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A CLIPTextModel's weights, from any transformers, under the keys of the embedder that `clip_config` chose."""
    # transformers 5 dropped this prefix, 4.31 this constant.
    plain = {k.removeprefix("text_model."): v for k, v in weights.items()}
    if twice := [k for k in weights if not k.startswith("text_model.") and f"text_model.{k}" in weights]:
        raise CheckpointError(f"the text encoder has weights with and without 'text_model.' in front: {some(twice)}")
    plain.pop("embeddings.position_ids", None)
    if config["target"].endswith("FrozenOpenCLIPEmbedder"):
        return _open_clip_weights(plain, config["params"]["text_config"])
    return {f"transformer.text_model.{k}": v for k, v in plain.items()}


def _open_clip_weights(weights: dict[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """OpenCLIP's layout: q, k and v of a layer are one matrix.

    What it has and this text encoder does not use is made up: a last layer, of zeros, which passes on what it gets; a
    projection to the space shared with pictures; the temperature of a loss. The causal mask is a constant.
    """
    layers, length, width = sizes["layers"] - 1, sizes["context_length"], sizes["width"]
    blocks = {f"encoder.layers.{i}": f"transformer.resblocks.{i}" for i in range(layers)}
    joined = {}
    for theirs, ours in blocks.items():
        for kind in ("weight", "bias"):
            parts = [_pop(weights, f"{theirs}.self_attn.{x}_proj.{kind}", 1 + (kind == "weight")) for x in "qkv"]
            if len({part.shape for part in parts}) > 1:
                raise CheckpointError(f"the text encoder's {theirs}.self_attn has a q, k and v of different shapes")
            joined[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
    positions = _pop(weights, "embeddings.position_embedding.weight", 2)
    if positions.shape != (length, width):
        raise CheckpointError(
            f"the text encoder's position_embedding has the shape {tuple(positions.shape)}, and its config says"
            f" {(length, width)} (max_position_embeddings, hidden_size)"
        )
    table = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    named = rename(weights, table | nested(blocks, _OPEN_CLIP_LAYER), "text encoder") | joined
    unused = {f"transformer.resblocks.{layers}.{name}": shape for name, shape in _open_clip_layer(width).items()}
    unused |= {"text_projection": (width, width), "logit_scale": (), "attn_mask": (length, length)}
    made_up = {name: unused_in_open_clip(name, shape).to(positions.dtype) for name, shape in unused.items()}
    return {f"model.{k}": v for k, v in (named | made_up | {"positional_embedding": positions}).items()}


def _open_clip_layer(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's weights."""
    rows = {"attn.in_proj_": 3 * width, "attn.out_proj.": width, "mlp.c_fc.": 4 * width, "mlp.c_proj.": width}
    columns = {"mlp.c_proj.": 4 * width}
    shapes = {f"{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    shapes |= {f"{name}weight": (count, columns.get(name, width)) for name, count in rows.items()}
    return shapes | {f"{name}bias": (count,) for name, count in rows.items()}


def _pop(weights: dict[str, Tensor], name: str, dimensions: int) -> Tensor:
    if name not in weights:
        raise CheckpointError(f"the text encoder's weights have no {name}; are they complete?")
    found = weights.pop(name)
    if found.ndim != dimensions or found.dtype not in _FLOATS:
        raise CheckpointError(
            f"the text encoder's {name} has {found.ndim} dimensions and the dtype {found.dtype}; it can have"
            f" {dimensions}, and {', '.join(map(str, _FLOATS))}"
        )
    return found


def _pad_token(tokenizer: Path) -> str | None:
    """special_tokens_map.json has the last word: Stable Diffusion 2's tokenizer_config.json says another token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (tokenizer / name).is_file():
            token = read_json(tokenizer / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None:
                return token
    return None


def _check_vocabulary(tokenizer: Path) -> None:
    """CLIP's vocabulary is built in here; with another one every prompt would mean something else."""
    for name in ("vocab.json", "tokenizer.json"):
        if (path := tokenizer / name).is_file():
            found: Any = read_json(path)
            if name == "tokenizer.json":
                found = found["model"].get("vocab") if isinstance(found.get("model"), dict) else None
            if not isinstance(found, dict) or len(found) != _CLIP_VOCABULARY:
                raise CheckpointError(
                    f"{str(path)!r} has {len(found) if isinstance(found, dict) else 'no'} tokens, CLIP's vocabulary"
                    f" {_CLIP_VOCABULARY}: a tokenizer of its own cannot be loaded, only CLIP's is built in here"
                )
            return


def _check_words(options: Options, found: int, built_in: int) -> None:
    if found < built_in:
        options.refuse("vocab_size", found, f"{built_in}, or more where words were added")
    if found > built_in:
        warnings.warn(
            f"{options}: {found - built_in} words were added to the vocabulary (textual inversion); the tokenizer here"
            " does not know them, so prompts cannot use them",
            stacklevel=4,
        )


def bert_config(options: Options) -> dict[str, Any]:
    """LDMTextToImagePipeline's LDMBertModel as `BERTEmbedder`."""
    width = options.integer("d_model")
    words = options.integer("vocab_size")
    _check_words(options, words, _BERT_VOCABULARY)
    for name, wanted in {"encoder_attention_heads": 8, "head_dim": 64, "encoder_ffn_dim": 4 * width}.items():
        options.only({name: wanted})
    options.only({"activation_function": "gelu"})
    params = {
        "n_embed": width,
        "n_layer": options.integer("encoder_layers"),
        "vocab_size": words,
        "max_seq_len": options.integer("max_position_embeddings"),
    }
    return {"target": f"{_MODULES}.BERTEmbedder", "params": params}


def bert_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """LDMBertModel's weights as `BERTEmbedder`'s: attention and MLP are layers of their own there."""
    table = {
        "model.embed_tokens": "token_emb",
        "model.embed_positions": "pos_emb.emb",
        "model.layer_norm": "norm",
        "to_logits": "to_logits",
    }
    layer = {
        "self_attn_layer_norm": (0, "0"),
        "self_attn.q_proj": (0, "1.to_q"),
        "self_attn.k_proj": (0, "1.to_k"),
        "self_attn.v_proj": (0, "1.to_v"),
        "self_attn.out_proj": (0, "1.to_out"),
        "final_layer_norm": (1, "0"),
        "fc1": (1, "1.net.0.0"),
        "fc2": (1, "1.net.2"),
    }
    for i in range(config["params"]["n_layer"]):
        for theirs, (half, ours) in layer.items():
            table[f"model.layers.{i}.{theirs}"] = f"attn_layers.layers.{2 * i + half}.{ours}"
    return {f"transformer.{k}": v for k, v in rename(weights, table, "text encoder").items()}
