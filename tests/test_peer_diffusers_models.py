"""A pipeline saved by diffusers loads here and computes the same: networks to 1e-4, a picture to one grey level."""

import json
import shutil

import _diffusers as peer
import pytest
import torch
from _networks import randn
from safetensors.torch import load_file, save_file

from ldm.checkpoint import load_model
from ldm.checkpoint.diffusers_config import schedule_params, unet_config
from ldm.checkpoint.diffusers_folder import load_folder
from ldm.checkpoint.diffusers_keys import unet_weights
from ldm.checkpoint.diffusers_options import Options
from ldm.sampling import NoiseSchedule, make_beta_schedule
from ldm.util import instantiate_from_config

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:the prompt .* was cut:UserWarning")  # a long one is cut, as there

WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(None, folder)


# -------------------------------------------------------------------------------------------------- theirs, read here


def test_the_networks_of_a_pipeline_folder_agree(model, pipe):
    peer.assert_networks_agree(model, pipe)


def test_a_picture_from_a_pipeline_folder_agrees(model, pipe):
    timesteps = peer.our_timesteps(model)
    pipe.scheduler.set_timesteps(peer.STEPS)
    assert timesteps == pipe.scheduler.timesteps.tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    peer.assert_pictures_agree(model, pipe)


def as_bin(folder):
    """.bin files instead of .safetensors."""
    for name in WEIGHTS:
        path = folder / f"{name}.safetensors"
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


def as_variant(folder):
    for name in WEIGHTS:
        (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")


def as_before_2023(folder):
    """The names of the autoencoder's attention, and of the text encoder's weights, that most published folders have."""
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {k.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for k, v in weights.items()}
    assert sum("proj_attn" in key for key in weights) == 4
    save_file(weights, path)
    path = folder / "text_encoder/model.safetensors"
    weights = {"text_model." + k.removeprefix("text_model."): v for k, v in load_file(path).items()}
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(77)[None]}, path)


@pytest.mark.parametrize("change", [as_bin, as_variant, as_before_2023])
def test_other_forms_of_a_folder_hold_the_same(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy")
    peer.assert_same_weights(load_folder(tmp_path / "copy")[1], load_folder(folder)[1])


def test_shards_that_diffusers_saved_are_joined(folder, pipe, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    unet = tmp_path / "copy" / "unet"
    shutil.rmtree(unet)
    pipe.unet.save_pretrained(unet, max_shard_size="1MB")
    assert len(list(unet.glob("*.safetensors"))) > 1
    peer.assert_same_weights(load_folder(tmp_path / "copy")[1], load_folder(folder)[1])


@pytest.mark.parametrize(
    "channels, kind, target",
    [
        (9, "Inpaint", "LatentInpaintDiffusion"),
        (8, "InstructPix2Pix", "LatentDiffusion"),
        (5, "Depth2Img", "LatentDepth2ImageDiffusion"),
        (7, "Upscale", "LatentUpscaleDiffusion"),
    ],
)
def test_models_that_are_shown_a_picture_agree(tmp_path, channels, kind, target):
    more = {"num_class_embeds": 20, "only_cross_attention": [True, True, False]} if kind == "Upscale" else {}
    pipe = peer.pipeline("v2-v", unet={"in_channels": channels, **more})
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"_class_name": f"StableDiffusion{kind}Pipeline", "max_noise_level": 15}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(tmp_path / "scheduler", tmp_path / "low_res_scheduler")
    model = load_model(None, tmp_path)
    assert type(model).__name__ == target
    x, t, context = randn(2, channels, 8, 8), torch.tensor([3, 901]), randn(2, 77, 32, seed=1)
    c, level = {"c_concat": [x[:, 4:]], "c_crossattn": [context]}, None
    if kind == "Upscale":
        level = c["c_adm"] = torch.tensor([0, 15])
        assert model.low_scale_model.max_noise_level == 15
    peer.close(model.apply_model(x[:, :4], t, c), pipe.unet(x, t, context, class_labels=level).sample)


@pytest.mark.parametrize(
    "options",
    [
        {"layers_per_block": (1, 2, 3)},
        {"transformer_layers_per_block": 2},
        {"only_cross_attention": True},
        {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (3, 2, 2)},
        {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_unets_of_other_shapes_agree(tmp_path, options):
    theirs = peer.unet(**options)
    theirs.save_pretrained(tmp_path)
    config = unet_config(Options(tmp_path / "config.json"))
    ours = instantiate_from_config(config).eval()
    ours.load_state_dict(unet_weights(theirs.state_dict(), config["params"]))
    x, t, context = randn(2, 4, 8, 8), torch.tensor([3, 901]), randn(2, 77, 32, seed=1)
    peer.close(ours(x, t, context), theirs(x, t, context).sample)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
        {"rescale_betas_zero_snr": True},
        {"trained_betas": [0.001, 0.01, 0.1]},
    ],
    ids=str,
)
def test_the_noise_schedule_agrees(tmp_path, options):
    theirs = peer.scheduler(**options)
    theirs.save_pretrained(tmp_path)
    params = schedule_params(Options(tmp_path / "scheduler_config.json"))
    betas = params.get("given_betas")
    if betas is None:
        names = {"schedule": "beta_schedule", "n_timestep": "timesteps"}
        betas = make_beta_schedule(
            **{name: params[names.get(name, name)] for name in ("schedule", "n_timestep", "linear_start", "linear_end")}
        )
    ours = torch.from_numpy(NoiseSchedule.from_betas(betas).alpha_bar).float()
    torch.testing.assert_close(ours, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_the_first_text_to_image_model_agrees(tmp_path):
    """LDMTextToImagePipeline: a transformer of its own instead of CLIP."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    sizes = {"d_model": 32, "encoder_ffn_dim": 128, "encoder_layers": 2, "max_position_embeddings": 77}
    config = LDMBertConfig(vocab_size=30522, encoder_attention_heads=8, head_dim=64, **sizes)
    parts = {"unet": peer.unet(), "vqvae": peer.vae(), "bert": peer.randomized(LDMBertModel(config), 3)}
    for name, part in {**parts, "scheduler": peer.scheduler()}.items():
        part.save_pretrained(tmp_path / name)
    index = {name: ["library", type(part).__name__] for name, part in parts.items()}
    index |= {"_class_name": "LDMTextToImagePipeline", "tokenizer": ["transformers", "BertTokenizer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    model = load_model(None, tmp_path)
    tokens = model.cond_stage_model.tknz_fn.tokenizer([peer.PROMPT, ""])
    context = parts["bert"](tokens)[0]
    peer.close(model.get_learned_conditioning([peer.PROMPT, ""]), context)
    x, t = randn(2, 4, 8, 8), torch.tensor([3, 901])
    peer.close(model.apply_model(x, t, context), parts["unet"](x, t, context).sample)


@pytest.mark.parametrize("pipe", ["v2-v"], indirect=True)
def test_the_layer_that_a_folder_lacks_passes_on_what_it_gets(model, pipe):
    """CompVis' layout of Stable Diffusion 2 has a last layer that is left out; here it makes no difference."""
    encoder = model.cond_stage_model
    tokens = torch.arange(77)[None]
    assert len(encoder.model.transformer.resblocks) == pipe.text_encoder.config.num_hidden_layers + 1
    assert torch.equal(encoder.model(tokens, skip=0), encoder(tokens))
