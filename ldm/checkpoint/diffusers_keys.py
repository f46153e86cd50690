"""diffusers' names of weights → CompVis'. Tensors are renamed, not copied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.checkpoint.errors import CheckpointError, shown, some

_LONGEST_KEY = 1000  # letters
_RESNET = {  # of the U-Net
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",  # until diffusers 0.16
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}


def unet_weights(weights: Mapping[str, Tensor], params: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNet2DConditionModel's weights as those of the `UNetModel` that `params` describe."""
    levels = len(params["channel_mult"])
    blocks = params["num_res_blocks"]
    blocks = [blocks] * levels if isinstance(blocks, int) else blocks
    table = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    block = 1
    for level, count in enumerate(blocks):
        for i in range(count):
            resnets[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{block}.0"
            table[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for up, level in enumerate(reversed(range(levels))):  # theirs counts from the deepest
        for i in range(blocks[level] + 1):
            resnets[f"up_blocks.{up}.resnets.{i}"] = f"output_blocks.{block}.0"
            table[f"up_blocks.{up}.attentions.{i}"] = f"output_blocks.{block}.1"
            block += 1
        place = 2 if 2**level in params["attention_resolutions"] else 1
        table[f"up_blocks.{up}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{place}.conv"
    return rename(weights, table | nested(resnets, _RESNET), "U-Net")


def autoencoder_weights(weights: Mapping[str, Tensor], ddconfig: Mapping[str, Any]) -> dict[str, Tensor]:
    """diffusers' AutoencoderKL's weights as CompVis'; the attention's matrices become 1×1 convolutions, by a view."""
    levels, blocks = len(ddconfig["ch_mult"]), ddconfig["num_res_blocks"]
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    resnets, attentions = {}, {}
    for part, theirs, ours in (("encoder", "down_blocks", "down"), ("decoder", "up_blocks", "up")):
        table |= {f"{part}.{name}": f"{part}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{part}.conv_norm_out"] = f"{part}.norm_out"
        attentions[f"{part}.mid_block.attentions.0"] = f"{part}.mid.attn_1"
        resnets |= {f"{part}.mid_block.resnets.{i}": f"{part}.mid.block_{i + 1}" for i in (0, 1)}
        for i in range(levels):
            level = f"{part}.{ours}.{i if ours == 'down' else levels - 1 - i}"  # up[0] is the full resolution
            count = blocks + (part == "decoder")
            resnets |= {f"{part}.{theirs}.{i}.resnets.{j}": f"{level}.block.{j}" for j in range(count)}
            table[f"{part}.{theirs}.{i}.{ours}samplers.0.conv"] = f"{level}.{ours}sample.conv"
    table |= nested(resnets, _VAE_RESNET) | nested(attentions, _VAE_ATTENTION)
    renamed = rename(weights, table, "autoencoder")
    matrix = re.compile(r".*\.attn_1\.(q|k|v|proj_out)\.weight")
    return {k: v[:, :, None, None] if v.ndim == 2 and matrix.fullmatch(k) else v for k, v in renamed.items()}


def nested(outer: Mapping[str, str], inner: Mapping[str, str]) -> dict[str, str]:
    """The names of layers in layers."""
    return {f"{a}.{x}": f"{b}.{y}" for a, b in outer.items() for x, y in inner.items()}


def rename(weights: Mapping[str, Tensor], table: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """Replace the part of each key that `table` has, up to some dot; CheckpointError lists keys without such a part."""
    renamed, unknown = {}, []
    longest = max(name.count(".") for name in table) + 1
    for key, value in weights.items():
        parts = key[:_LONGEST_KEY].split(".")
        heads = (".".join(parts[:count]) for count in range(min(len(parts), longest), 0, -1))
        head = next((head for head in heads if head in table), None)
        if head is None or len(key) > _LONGEST_KEY:
            unknown.append(key)
        elif (new := table[head] + key[len(head) :]) in renamed:
            raise CheckpointError(f"two weights of the {what} are {shown(new)} here, one of them {shown(key)}")
        else:
            renamed[new] = value
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} weights have no place in the {what} that the folder's config describes: {some(unknown)}"
        )
    return renamed
