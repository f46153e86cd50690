"""The JSON files of pipeline folders, written by hand as diffusers publishes them: no library is needed for these."""

import json

import torch
from safetensors.torch import save_file

SD1 = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder/config.json": {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "skip_prk_steps": True,
    },
    "tokenizer/special_tokens_map.json": {"pad_token": "<|endoftext|>"},
    "tokenizer/tokenizer_config.json": {"pad_token": "<|endoftext|>"},
}
SD2 = {  # what differs
    "unet/config.json": {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "text_encoder/config.json": {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
    },
    "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "tokenizer/special_tokens_map.json": {"pad_token": "!"},  # but tokenizer_config.json says <|endoftext|>
}
UPSCALER = {
    "model_index.json": {
        "_class_name": "StableDiffusionUpscalePipeline",
        "max_noise_level": 350,
        "low_res_scheduler": ["diffusers", "DDPMScheduler"],
    },
    "unet/config.json": {
        **SD2["unet/config.json"],
        "attention_head_dim": 8,
        "block_out_channels": [256, 512, 512, 1024],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        "in_channels": 7,
        "num_class_embeds": 1000,
        "only_cross_attention": [True, True, True, False],
        "sample_size": 128,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
    },
    "vae/config.json": {
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "scaling_factor": 0.08333,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    },
    "text_encoder/config.json": SD2["text_encoder/config.json"],
    "scheduler/scheduler_config.json": {"beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"},
    "low_res_scheduler/scheduler_config.json": {
        "beta_end": 0.02,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0001,
    },
    "tokenizer/special_tokens_map.json": {"pad_token": "!"},
}

_SIZES = {"weight": (1, 1), "bias": (1,)}

# One weight of each part is enough where no model is built.
WEIGHTS = {
    "unet/diffusion_pytorch_model": {"conv_in.weight": torch.zeros(1)},
    "vae/diffusion_pytorch_model": {"quant_conv.weight": torch.zeros(1)},
    "text_encoder/model": {"text_model.embeddings.position_embedding.weight": torch.zeros(1, 1)},
}
ATTENTION = {f"self_attn.{x}_proj.{kind}": torch.zeros(size) for x in "qkv" for kind, size in _SIZES.items()}


def write(folder, *changes):
    """A pipeline folder: Stable Diffusion 1's files, updated by each of `changes` ({file: {option: value}})."""
    written = {name: dict(content) for name, content in SD1.items()}
    for files in changes:
        for name, content in files.items():
            written.setdefault(name, {}).update(content)
    for name, content in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    layers = range(written["text_encoder/config.json"]["num_hidden_layers"])
    attention = {f"text_model.encoder.layers.{i}.{k}": v.clone() for i in layers for k, v in ATTENTION.items()}
    for name, weights in WEIGHTS.items():
        if name.startswith("text"):
            width = written["text_encoder/config.json"]["hidden_size"]
            weights = attention | dict.fromkeys(weights, torch.zeros(77, max(width or 0, 0)))
        save_file(weights, folder / f"{name}.safetensors")
    return folder
