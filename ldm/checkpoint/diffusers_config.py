"""The options of diffusers' networks and schedulers → `target` and `params` of ours, as CompVis' configs write them.

Every option is either carried over, known to change nothing here, or checked to have the one value that our networks
have built in: a folder that says anything else is refused, with the option's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.checkpoint.diffusers_options import Options
from ldm.sampling.schedule import make_beta_schedule, rescale_zero_terminal_snr

_GROUPS = 32  # of every normalization
_MOST_BLOCKS = 1000  # transformer blocks; those released have up to 70
_UNET_BUILT_IN = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": _GROUPS,
    "norm_eps": 1e-5,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
# Of use in training, to precision, or only beside an option that is refused.
_UNET_IGNORED = (
    "dropout", "upcast_attention", "mid_block_only_cross_attention", "addition_embed_type_num_heads",
    "addition_time_embed_dim", "projection_class_embeddings_input_dim",
)  # fmt: skip
_AUTOENCODER_BUILT_IN = {
    "act_fn": "silu",
    "norm_num_groups": _GROUPS,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def unet_config(options: Options) -> dict[str, Any]:
    """A UNet2DConditionModel as `UNetModel`."""
    widths = _widths(options)
    levels = len(widths)
    attention = options.choices("down_block_types", {"CrossAttnDownBlock2D": True, "DownBlock2D": False}, count=levels)
    up = options.choices("up_block_types", {"CrossAttnUpBlock2D": True, "UpBlock2D": False}, count=levels)
    if up != attention[::-1]:
        options.refuse("up_block_types", f"attention {up}", "the mirror of down_block_types only")
    layers = options.integers("layers_per_block", count=levels)
    depth = options.integers("transformer_layers_per_block", 1, count=levels)
    if 2 * sum(n * deep for n, deep in zip(layers, depth, strict=True)) > _MOST_BLOCKS:
        options.refuse("transformer_layers_per_block", depth, f"fewer, for up to {_MOST_BLOCKS} blocks in all")
    params = {
        "image_size": _one_or_all(options.integers("sample_size", 64, count=2)),  # of a square, or height and width
        "in_channels": options.integer("in_channels"),
        "out_channels": options.integer("out_channels"),
        "model_channels": widths[0],
        "attention_resolutions": [2**i for i, attends in enumerate(attention) if attends],
        "num_res_blocks": _one_or_all(layers),
        "channel_mult": [w // widths[0] for w in widths],
        **_heads(options, widths, attention),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": options.flags("use_linear_projection", False, count=1)[0],
        "transformer_depth": options.same("transformer_layers_per_block", _used(depth, attention)),
        "context_dim": options.same("cross_attention_dim", options.integers("cross_attention_dim", count=levels)),
        "use_checkpoint": False,
        "legacy": False,
    }
    only_cross = options.flags("only_cross_attention", False, count=levels)
    if any(only_cross):  # the middle block keeps its self-attention in both libraries
        params["disable_self_attentions"] = only_cross
    if (classes := options.integer("num_class_embeds", None)) is not None:
        params["num_classes"] = classes
    options.only(_UNET_BUILT_IN)
    options.ignore(*_UNET_IGNORED)
    options.finish()
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


def _heads(options: Options, widths: Sequence[int], attention: Sequence[bool]) -> dict[str, int]:
    """diffusers' `attention_head_dim` is, in spite of its name, the number of heads."""
    heads = options.integers("attention_head_dim", count=len(widths))
    counts, used = _used(heads, attention), _used(widths, attention)
    if len(set(counts)) == 1 and not any(w % counts[0] for w in used):
        return {"num_heads": counts[0]}
    if len({(w // n, w % n) for w, n in zip(used, counts, strict=True)}) == 1 and used[0] % counts[0] == 0:
        return {"num_head_channels": used[0] // counts[0]}
    return options.refuse("attention_head_dim", heads, "one number of heads, or numbers that make all heads as wide")


def _used(values: Sequence[int], attention: Sequence[bool]) -> list[int]:
    """Of one value per level those where attention is: the marked levels, and the middle block as deep as the last."""
    return [v for v, attends in zip(values, attention, strict=True) if attends] + [values[-1]]


def _one_or_all(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _widths(options: Options) -> list[int]:
    """Channels per level; CompVis' networks know them as multiples of the first."""
    widths = options.integers("block_out_channels")
    if any(w % widths[0] for w in widths):
        options.refuse("block_out_channels", widths, f"a list of multiples of its first entry, {widths[0]}")
    if any(w % _GROUPS for w in widths):
        options.refuse("block_out_channels", widths, f"a list of multiples of {_GROUPS}, for the normalization")
    return widths


def autoencoder_config(options: Options) -> tuple[dict[str, Any], float]:
    """diffusers' AutoencoderKL as CompVis', and the factor that brings its latents to unit variance."""
    widths = _widths(options)
    options.choices("down_block_types", {"DownEncoderBlock2D": None}, count=len(widths))
    options.choices("up_block_types", {"UpDecoderBlock2D": None}, count=len(widths))
    latent_channels = options.integer("latent_channels")
    ddconfig = {
        "double_z": True,
        "z_channels": latent_channels,
        "resolution": options.integers("sample_size", 256, count=2)[0],
        "in_channels": options.integer("in_channels"),
        "out_ch": options.integer("out_channels"),
        "ch": widths[0],
        "ch_mult": [w // widths[0] for w in widths],
        "num_res_blocks": options.integer("layers_per_block"),
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    scale_factor = options.number("scaling_factor", 0.18215)  # left out before diffusers 0.11
    if scale_factor <= 0:
        options.refuse("scaling_factor", scale_factor, "a positive number")
    options.only(_AUTOENCODER_BUILT_IN)
    options.ignore("force_upcast")
    options.finish()
    params = {"embed_dim": latent_channels, "ddconfig": ddconfig}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}, scale_factor


def schedule_params(options: Options) -> dict[str, Any]:
    """A scheduler's betas and what the network predicts; how it walks the timesteps is the sampler's business."""
    timesteps = options.integer("num_train_timesteps", 1000)
    params = {"parameterization": options.choice("prediction_type", _PREDICTIONS, "epsilon"), "timesteps": timesteps}
    betas = options.take("trained_betas", None)
    if betas is None:
        schedule = options.choice("beta_schedule", _BETA_SCHEDULES)
        start, end = options.number("beta_start"), options.number("beta_end")
        if not 0 < start <= end < 1:
            options.refuse("beta_end", end, f"a number from beta_start ({start}) to 1")
        params |= {"beta_schedule": schedule, "linear_start": start, "linear_end": end}
        betas = make_beta_schedule(schedule, timesteps, start, end)
    elif not (isinstance(betas, list) and betas and all(isinstance(b, float) and 0 < b <= 1 for b in betas)):
        options.refuse("trained_betas", betas, "a list of numbers from 0 to 1")
    else:
        params["given_betas"] = betas
        params["timesteps"] = len(betas)
    if options.flags("rescale_betas_zero_snr", False, count=1)[0]:
        params["given_betas"] = rescale_zero_terminal_snr(betas).tolist()
    return params
