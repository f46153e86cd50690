"""What is wrong with a diffusers pipeline folder is said by name: a file, an option, a class."""

import json

import pytest
import torch
from fuzzing.pipeline_folder import SD1, SD2, UPSCALER, WEIGHTS, write
from safetensors.torch import save_file

from ldm.checkpoint import CheckpointError
from ldm.checkpoint.diffusers_folder import load_folder


def test_a_folder_that_is_no_pipeline_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_folder(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no model_index.json"):
        load_folder(tmp_path)
    with pytest.raises(CheckpointError, match="give the pipeline's"):
        load_folder(write(tmp_path) / "unet")


@pytest.mark.parametrize("name", [name for name in SD1 if not name.startswith("tokenizer")])
def test_a_missing_or_broken_file_is_named(tmp_path, name):
    path = write(tmp_path) / name
    for content, message in (
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "a list"),
        (b"[" * 100_000, "not JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            load_folder(tmp_path)
        assert str(path) in str(error.value)
    with path.open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(CheckpointError, match="20000000 bytes"):
        load_folder(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing|no model_index"):
        load_folder(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_weights_is_named(tmp_path, part):
    write(tmp_path)
    next((tmp_path / part).glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=f"{part}' holds no weights .* it has config.json"):
        load_folder(tmp_path)


def test_weights_that_the_network_has_no_place_for_are_listed(tmp_path):
    write(tmp_path)
    for name, weights in WEIGHTS.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({**weights, "lora.down.weight": torch.zeros(1)}, path)
        if name.startswith("text"):  # takes them all: whether they fit is seen when the model is filled
            continue
        with pytest.raises(CheckpointError, match="1 weights have no place .*: lora.down.weight"):
            load_folder(tmp_path)
        save_file(weights, path)


def index(**values):
    return {"model_index.json": values}


def unet(**values):
    return {"unet/config.json": values}


def vae(**values):
    return {"vae/config.json": values}


def text(**values):
    return {"text_encoder/config.json": values}


def scheduler(**values):
    return {"scheduler/scheduler_config.json": values}


def upscaler(**values):
    return {**UPSCALER, "unet/config.json": UPSCALER["unet/config.json"] | values}


@pytest.mark.parametrize(
    "files, message",
    [
        (index(_class_name="StableDiffusionXLPipeline"), "StableDiffusionXLPipeline, .* can: StableDiffusionPipeline"),
        (index(_class_name="FluxPipeline"), "FluxPipeline"),
        (index(_class_name=None), "None"),
        (index(unet=["diffusers", "UNet2DModel"]), "unet='UNet2DModel' .* only UNet2DConditionModel"),
        (index(vae=["diffusers", "AutoencoderTiny"]), "vae='AutoencoderTiny' .* only AutoencoderKL"),
        (index(text_encoder=["transformers", "T5EncoderModel"]), "text_encoder='T5EncoderModel'"),
        (index(tokenizer=["transformers", "T5Tokenizer"]), "tokenizer='T5Tokenizer'"),
        (index(text_encoder=[None, None]), "text_encoder=None"),
        (unet(addition_embed_type="text_time"), "addition_embed_type='text_time' .* only None"),
        (unet(class_embed_type="projection"), "class_embed_type"),
        (unet(act_fn="gelu"), "act_fn='gelu' .* only 'silu'"),
        (unet(attention_type="gated"), "attention_type"),
        (unet(flip_sin_to_cos=False), "flip_sin_to_cos=False .* only True"),
        (unet(downsample_padding=0), "downsample_padding=0 .* only 1"),
        (unet(norm_eps=1e-6), "norm_eps"),
        (unet(time_cond_proj_dim=256), "time_cond_proj_dim"),
        (unet(brand_new=3, other="x"), "not known here: brand_new=3, other='x'"),
        (unet(block_out_channels=[320, 500, 1280, 1280]), "multiples of its first entry, 320"),
        (unet(block_out_channels=[]), "block_out_channels"),
        (unet(block_out_channels="320"), "block_out_channels='320'"),
        (unet(block_out_channels=None), "does not say block_out_channels"),
        (unet(block_out_channels=[10**9] * 4), "block_out_channels"),
        (unet(down_block_types=["DownBlock2D"] * 3), "down_block_types=.* a list of 4"),
        (unet(down_block_types=["AttnDownBlock2D"] * 4), "CrossAttnDownBlock2D, DownBlock2D"),
        (unet(up_block_types=["CrossAttnUpBlock2D"] * 4), "up_block_types"),
        (unet(attention_head_dim=[5, 9, 20, 20]), "attention_head_dim=.* heads as wide"),
        (unet(attention_head_dim=[8, 8]), "attention_head_dim"),
        (unet(attention_head_dim=0), "attention_head_dim=0"),
        (unet(num_attention_heads=8), "num_attention_heads"),
        (unet(transformer_layers_per_block=[1, 2, 1, 1]), "transformer_layers_per_block=.* same at every level"),
        (unet(cross_attention_dim=[768, 768, 768, 1024]), "cross_attention_dim=.* same at every level"),
        (unet(layers_per_block=True), "layers_per_block=True"),
        (unet(layers_per_block=101), "layers_per_block=101 .* up to 100"),
        (unet(layers_per_block=100, transformer_layers_per_block=100), "up to 1000 blocks"),
        (unet(block_out_channels=[320] * 17), "16 at most"),
        (unet(block_out_channels=[33] * 4), "multiples of 32"),
        (unet(attention_head_dim=7), "attention_head_dim"),
        (text(num_attention_heads=5), "num_attention_heads=5 .* divisor"),
        (text(num_hidden_layers=1, max_position_embeddings=5000), "max_position_embeddings=5000"),
        (vae(scaling_factor=10**400), "scaling_factor"),
        (scheduler(beta_start=10**400), "beta_start"),
        (index(_class_name="\x1b" + "a" * 1000), r"x1b(a{79})…|x1ba{79}\\u2026"),
        (unet(use_linear_projection="yes"), "use_linear_projection='yes'"),
        (unet(in_channels=6), "takes 6 channels and gives 4; .* take 4, 5, 7, 8, 9"),
        (unet(out_channels=8), "gives 8"),
        (unet(num_class_embeds=10), "num_class_embeds=10"),
        (upscaler(num_class_embeds=None), "num_class_embeds=None and takes 7"),
        (vae(shift_factor=0.1), "shift_factor=0.1 .* only None"),
        (vae(use_quant_conv=False), "use_quant_conv"),
        (vae(latents_mean=[0.0]), "latents_mean"),
        (vae(scaling_factor="big"), "scaling_factor='big' .* a number"),
        (vae(scaling_factor=0), "scaling_factor=0 .* a positive number"),
        (vae(down_block_types=["AttnDownEncoderBlock2D"] * 4), "DownEncoderBlock2D"),
        (vae(block_out_channels=[128, 200]), "multiples"),
        (text(hidden_act="relu"), "hidden_act='relu' .* quick_gelu, gelu"),
        (text(vocab_size=32000), "vocab_size=32000 .* 49408"),
        (text(hidden_size=None), "does not say hidden_size"),
        (text(hidden_size=-1), "hidden_size=-1 .* a positive integer"),
        ({"tokenizer/special_tokens_map.json": {"pad_token": "[PAD]"}}, "pads prompts with '\\[PAD\\]'"),
        ({"tokenizer/vocab.json": {"a": 0}}, "vocab.json' has 1 tokens, CLIP's vocabulary 49408"),
        ({"tokenizer/tokenizer.json": {"model": {"vocab": {"a": 0}}}}, "tokenizer.json' has 1 tokens"),
        ({"tokenizer/tokenizer.json": {"model": []}}, "tokenizer.json' has no tokens"),
        (scheduler(prediction_type="flow"), "prediction_type='flow' .* epsilon, v_prediction, sample"),
        (scheduler(beta_schedule="sigmoid"), "beta_schedule='sigmoid' .* scaled_linear, linear, squaredcos_cap_v2"),
        (scheduler(beta_schedule=None, _class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatch.* beta_schedule"),
        (scheduler(beta_start=0.5), "beta_end=0.012 .* beta_start"),
        (scheduler(beta_end=float("inf")), "beta_end=inf"),
        (scheduler(trained_betas=["a"]), "trained_betas"),
        (scheduler(num_train_timesteps=0), "num_train_timesteps=0"),
        (scheduler(rescale_betas_zero_snr=1), "rescale_betas_zero_snr=1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_loaded_is_named(tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        load_folder(write(tmp_path, files))


def test_the_open_clip_layout_has_fixed_proportions(tmp_path):
    with pytest.raises(CheckpointError, match="intermediate_size=100 .* only 4096, four times hidden_size"):
        load_folder(write(tmp_path, SD2, text(intermediate_size=100)))
    with pytest.raises(CheckpointError, match="layer_norm_eps"):
        load_folder(write(tmp_path, SD2, text(layer_norm_eps=1e-6)))
    save_file(WEIGHTS["text_encoder/model"], write(tmp_path, SD2) / "text_encoder" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no encoder.layers.0.self_attn.q_proj.weight"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "shards, message",
    [
        (None, "weight_map"),
        ({"conv_in.weight": "../other.safetensors"}, "of its folder"),
        ({"conv_in.weight": "."}, "of its folder"),
        ({"conv_in.weight": "a" * 300}, "not there: aaa"),
        ({"conv_in.weight": ".."}, "not there: .."),
        ({"conv_in.weight": "gone.safetensors"}, "not there: gone"),
        ({"conv_in.weight": "a.safetensors", "conv_in.bias": "a.safetensors"}, "do not hold: conv_in.bias"),
    ],
)
def test_a_bad_index_of_shards_is_an_error(tmp_path, shards, message):
    write(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "unet" / "a.safetensors")
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(CheckpointError, match=message):
        load_folder(tmp_path)


def test_two_names_of_one_weight_are_an_error(tmp_path):
    path = write(tmp_path) / "vae" / "diffusion_pytorch_model.safetensors"
    both = {f"decoder.mid_block.attentions.0.{name}.weight": torch.zeros(1) for name in ("to_q", "query")}
    save_file(both, path)
    with pytest.raises(CheckpointError, match="two weights of the autoencoder"):
        load_folder(tmp_path)


def test_the_text_encoders_positions_are_those_of_its_config(tmp_path):
    path = write(tmp_path, SD2) / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 100}))
    with pytest.raises(CheckpointError, match=r"the shape \(77, 1024\), and its config says \(100, 1024\)"):
        load_folder(tmp_path)
