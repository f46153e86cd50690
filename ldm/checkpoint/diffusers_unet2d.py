"""diffusers' UNet2DModel, the network of unconditional pipelines ↔ CompVis' `Model`: the same weights by other names.

UNet2DModel has many options; those that the DDPM paper's networks were published with (CIFAR-10, LSUN, CelebA-HQ) make
it CompVis' network, and only with those can it be read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.diffusers_folder import _read_weights
from ldm.checkpoint.diffusers_keys import nested, rename
from ldm.checkpoint.diffusers_options import Options, read_json
from ldm.checkpoint.errors import some
from ldm.checkpoint.load import load_weights
from ldm.checkpoint.save import save_checkpoint
from ldm.modules.diffusionmodules.model import Model

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_HEAD_DIM = 8  # diffusers' attention_head_dim where it is left out; null means one head
_BUILT_IN: dict[str, tuple[Any, Any]] = {  # what `Model` has, and what diffusers takes where the option is left out
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "act_fn": ("silu", "silu"),
    "norm_num_groups": (32, 32),
    "attn_norm_num_groups": (32, 32),
    "norm_eps": (1e-6, 1e-5),
    "resnet_time_scale_shift": ("default", "default"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
    "num_class_embeds": (None, None),
}
_REMEDY = ", as CompVis' network has it; let diffusers load another, and give it to DDIMPipeline"
_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "temb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_ATTENTION_OLD = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # until diffusers 0.16
_MATRICES = tuple(f".{name}.weight" for name in ("q", "k", "v", "proj_out"))  # 1×1 convolutions here


def load_unet2d(folder: str | Path, dtype: torch.dtype | None = None) -> Model:
    """The network of a folder with a UNet2DModel's config.json and weights, for inference.

    dtype: of the parameters (None: float32). In the file's own dtype they stay mapped from it, as `load_model` leaves
    them. CheckpointError names the option that no `Model` has, and whatever is missing or damaged.
    """
    folder = Path(folder)
    params = unet2d_params(Options(folder / "config.json"))
    weights = unet2d_weights(_read_weights(folder), params)
    with torch.device("meta"):
        model = Model(**params)
    load_weights(model, weights, str(folder), dtype=dtype or torch.float32)
    return model.eval()


def save_unet2d(model: Model, folder: str | Path) -> None:
    """Write `model` as a UNet2DModel that diffusers loads; files of these names are replaced.

    ValueError for a network that UNet2DModel cannot be: without timestep, with linear or no attention, or resampled
    without convolutions.
    """
    folder = Path(folder)
    params = params_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    ours = {b: a for a, b in _table(params).items()}
    weights = {k: v[..., 0, 0] if k.endswith(_MATRICES) else v for k, v in model.state_dict().items()}
    save_checkpoint(rename(weights, ours, "UNet2DModel"), folder / _WEIGHTS, overwrite=True)
    (folder / "config.json").write_text(json.dumps(unet2d_config(params), indent=2) + "\n", encoding="utf-8")


def unet2d_params(options: Options) -> dict[str, Any]:
    """A UNet2DModel's options as the parameters of `Model`."""
    if options.kind != "UNet2DModel":
        options.refuse("_class_name", options.kind, "only UNet2DModel")
    widths = options.integers("block_out_channels")
    levels = len(widths)
    if any(w % 32 or w % widths[0] for w in widths):
        options.refuse("block_out_channels", widths, "multiples of 32 and of the first")
    size = options.integer("sample_size")
    if size % 2 ** (levels - 1):
        options.refuse("sample_size", size, f"a multiple of {2 ** (levels - 1)}, to be halved {levels - 1} times")
    attention = options.choices("down_block_types", _DOWN, count=levels)
    if options.choices("up_block_types", _UP, count=levels) != attention[::-1]:
        options.refuse("up_block_types", "attention elsewhere", "the mirror of down_block_types only")
    _check_one_head(options, [w for w, attends in zip(widths, attention, strict=True) if attends] + [widths[-1]])
    _check_built_in(options, widths[0])
    params = {
        "ch": widths[0],
        "out_ch": options.integer("out_channels", 3),
        "ch_mult": [w // widths[0] for w in widths],
        "num_res_blocks": options.integer("layers_per_block", 2),
        "attn_resolutions": [size // 2**i for i, attends in enumerate(attention) if attends],
        "dropout": options.number("dropout", 0.0),
        "in_channels": options.integer("in_channels", 3),
        "resolution": size,
    }
    options.finish()
    return params


def _check_one_head(options: Options, widths: list[int]) -> None:
    """attention_head_dim is a head's width; CompVis' attention has one head, as wide as the layer."""
    default = None if "attention_head_dim" in read_json(options.path) else _HEAD_DIM  # null is not left out here
    width = options.integer("attention_head_dim", default)
    if width is not None and set(widths) != {width}:
        options.refuse("attention_head_dim", width, f"null{_REMEDY}")


def _check_built_in(options: Options, ch: int) -> None:
    options.ignore("num_train_timesteps")  # of a learned embedding, which is refused
    for name, (here, left_out) in {**_BUILT_IN, "time_embedding_dim": (4 * ch, 4 * ch)}.items():
        if (value := options.take(name, left_out)) != here:
            options.refuse(name, value, f"only {here!r}{_REMEDY}")


def unet2d_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the UNet2DModel that is the `Model` that `params` describe."""
    size, ch = params["resolution"], params["ch"]
    attends = [size // 2**i in params["attn_resolutions"] for i in range(len(params["ch_mult"]))]
    down, up = ({attends: name for name, attends in names.items()} for names in (_DOWN, _UP))
    return {
        "_class_name": "UNet2DModel",
        "sample_size": size,
        "in_channels": params["in_channels"],
        "out_channels": params["out_ch"],
        "block_out_channels": [ch * m for m in params["ch_mult"]],
        "layers_per_block": params["num_res_blocks"],
        "down_block_types": [down[a] for a in attends],
        "up_block_types": [up[a] for a in reversed(attends)],
        "dropout": params["dropout"],
        "attention_head_dim": None,
        **{name: here for name, (here, left_out) in _BUILT_IN.items() if here != left_out},
    }


def params_of(model: Model) -> dict[str, Any]:
    """What makes `model` anew, read off its layers, as CompVis' own class keeps less; ValueError if that is not all."""
    ch, size = model.conv_in.out_channels, model.resolution
    params = {
        "ch": ch,
        "out_ch": model.conv_out.out_channels,
        "ch_mult": [down.block[0].conv1.out_channels // ch for down in model.down],
        "num_res_blocks": len(model.down[0].block),
        "attn_resolutions": [size // 2**i for i, down in enumerate(model.down) if len(down.attn)],
        "dropout": model.down[0].block[0].dropout.p,
        "in_channels": model.conv_in.in_channels,
        "resolution": size,
    }
    with torch.device("meta"):
        twin = Model(**params)
    shapes = [{(k, v.shape) for k, v in network.state_dict().items()} for network in (model, twin)]
    if differ := sorted({key for key, _ in shapes[0] ^ shapes[1]}):
        raise ValueError(
            "the network cannot be saved as a UNet2DModel, which has a timestep, full attention in the middle, and"
            f" convolutions between the resolutions: {some(differ)} would differ"
        )
    return params


def unet2d_weights(weights: Mapping[str, Tensor], params: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNet2DModel's weights as those of the `Model` that `params` describe; the matrices of attention by a view."""
    renamed = rename(weights, _table(params, old_names=True), "U-Net")
    return {k: v[:, :, None, None] if v.ndim == 2 and k.endswith(_MATRICES) else v for k, v in renamed.items()}


def _table(params: Mapping[str, Any], old_names: bool = False) -> dict[str, str]:
    """diffusers' names of layers → ours."""
    levels, blocks = len(params["ch_mult"]), params["num_res_blocks"]
    table = {
        "time_embedding.linear_1": "temb.dense.0",
        "time_embedding.linear_2": "temb.dense.1",
        "conv_in": "conv_in",
        "conv_norm_out": "norm_out",
        "conv_out": "conv_out",
    }
    resnets = {f"mid_block.resnets.{i}": f"mid.block_{i + 1}" for i in (0, 1)}
    attentions = {"mid_block.attentions.0": "mid.attn_1"}
    for part, count in (("down", blocks), ("up", blocks + 1)):
        for i in range(levels):
            level = f"{part}.{i if part == 'down' else levels - 1 - i}"  # up[0] is the full resolution
            resnets |= {f"{part}_blocks.{i}.resnets.{j}": f"{level}.block.{j}" for j in range(count)}
            attentions |= {f"{part}_blocks.{i}.attentions.{j}": f"{level}.attn.{j}" for j in range(count)}
            table[f"{part}_blocks.{i}.{part}samplers.0.conv"] = f"{level}.{part}sample.conv"
    return table | nested(resnets, _RESNET) | nested(attentions, _ATTENTION | (_ATTENTION_OLD if old_names else {}))
