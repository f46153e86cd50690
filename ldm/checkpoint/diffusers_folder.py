"""A pipeline folder of diffusers → a config and weights in CompVis' layout, from its files alone: nothing is imported.

The folder holds model_index.json, and one sub-folder per part: a JSON file with its options, and its weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint.diffusers_config import autoencoder_config, schedule_params, unet_config
from ldm.checkpoint.diffusers_keys import autoencoder_weights, unet_weights
from ldm.checkpoint.diffusers_options import Options, read_json
from ldm.checkpoint.diffusers_text import bert_config, bert_weights, clip_config, clip_weights
from ldm.checkpoint.errors import CheckpointError, shown, some
from ldm.checkpoint.files import load_state_dict

_STABLE_DIFFUSION = tuple(
    f"StableDiffusion{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint", "InstructPix2Pix", "Depth2Img", "Upscale")
)
_LATENT_DIFFUSION = "LDMTextToImagePipeline"
_WEIGHTS = (  # diffusers' names, and transformers'
    ("diffusion_pytorch_model", "safetensors"),
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
    ("pytorch_model", "bin"),
)


def load_folder(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config ({"model": {"target", "params"}}) and the weights, under CompVis' keys, of a pipeline folder.

    Loads Stable Diffusion 1 and 2 and what was fine-tuned from them (text to image, inpainting, InstructPix2Pix, depth
    to image, the ×4 upscaler), and the text-to-image model before them. Weights are read from .safetensors before .bin,
    in one file or in shards, and in a variant (fp16, …) only where there are no others; they stay mapped from the file
    where their layout is the same. Safety checkers and depth estimators are passed over. CheckpointError says what is
    missing, damaged, or of a kind that cannot be loaded.
    """
    path = Path(path)
    index, first_stage, text = _read_index(path)
    unet = unet_config(Options(path / "unet" / "config.json"))
    autoencoder, scale_factor = autoencoder_config(Options(path / first_stage / "config.json"))
    text_options = Options(path / text / "config.json")
    encoder = bert_config(text_options) if text == "bert" else clip_config(text_options, path / "tokenizer")
    params = {
        **schedule_params(Options(path / "scheduler" / "scheduler_config.json")),
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["params"]["image_size"],
        "channels": autoencoder["params"]["embed_dim"],
        "scale_factor": scale_factor,
        "use_ema": False,
        "unet_config": unet,
        "first_stage_config": autoencoder,
        "cond_stage_config": encoder,
    }
    name, more = _kind(index, params)
    weights = {
        "model.diffusion_model": unet_weights(_read_weights(path / "unet"), unet["params"]),
        "first_stage_model": autoencoder_weights(_read_weights(path / first_stage), autoencoder["params"]["ddconfig"]),
        "cond_stage_model": (bert_weights if text == "bert" else clip_weights)(_read_weights(path / text), encoder),
    }
    config = {"model": {"target": f"ldm.models.diffusion.ddpm.{name}", "params": {**params, **more}}}
    return config, {f"{part}.{key}": value for part, named in weights.items() for key, value in named.items()}


def _read_index(path: Path) -> tuple[Options, str, str]:
    """model_index.json, once all classes in it are known; the autoencoder's and the text encoder's sub-folders."""
    if not path.is_dir():
        raise FileNotFoundError(f"{str(path)!r} is no folder; give that of a pipeline, with a model_index.json in it")
    if not (path / "model_index.json").is_file():
        parent = str(path.parent) if (path.parent / "model_index.json").is_file() else None
        remedy = f"give the pipeline's, {parent!r}" if parent else "give one that has it, or a checkpoint's file"
        raise CheckpointError(f"the folder {str(path)!r} is not a diffusers pipeline (no model_index.json); {remedy}")
    index = Options(path / "model_index.json")
    if index.kind == _LATENT_DIFFUSION:
        parts = {"vqvae": ("AutoencoderKL",), "bert": ("LDMBertModel",), "tokenizer": ("BertTokenizer",)}
    elif index.kind in _STABLE_DIFFUSION:
        parts = {
            "vae": ("AutoencoderKL",),
            "text_encoder": ("CLIPTextModel",),
            "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        }
    else:
        raise CheckpointError(
            f"{str(path)!r} is of the class {shown(str(index.kind))}, which cannot be loaded here; these can:"
            f" {', '.join((*_STABLE_DIFFUSION, _LATENT_DIFFUSION))}"
        )
    for part, classes in {"unet": ("UNet2DConditionModel",), **parts}.items():
        found = index.take(part, None)
        found = found[1] if isinstance(found, list) and len(found) == 2 else found
        if found not in classes:
            index.refuse(part, found, f"only {' or '.join(classes)}")
    first_stage, text, _ = parts
    return index, first_stage, text


def _kind(index: Options, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class in `ddpm`, and its own parameters, by the channels that the U-Net takes beside the latent's."""
    latent, unet = params["channels"], params["unet_config"]["params"]
    kinds = {
        0: ("LatentDiffusion", "crossattn"),
        1: ("LatentDepth2ImageDiffusion", "hybrid"),  # the depth map
        3: ("LatentUpscaleDiffusion", "hybrid-adm"),  # the small picture
        latent: ("LatentDiffusion", "hybrid"),  # InstructPix2Pix: the latent of the picture to change
        latent + 1: ("LatentInpaintDiffusion", "hybrid"),  # the mask, and the latent of what it leaves
    }
    ins, outs = unet["in_channels"], unet["out_channels"]
    if ins - latent not in kinds or outs != latent:
        raise CheckpointError(
            f"{index}: the unet takes {ins} channels and gives {outs}; with latents of {latent} it can take"
            f" {', '.join(str(latent + extra) for extra in sorted(kinds))} and give {latent}"
        )
    name, key = kinds[ins - latent]
    if ("num_classes" in unet) != (key == "hybrid-adm"):
        raise CheckpointError(
            f"{index}: the unet has num_class_embeds={unet.get('num_classes')} and takes {ins} channels; the upscaler"
            f" has both classes and {latent + 3} channels, all others neither"
        )
    more: dict[str, Any] = {"conditioning_key": key}
    if name == "LatentUpscaleDiffusion":
        more |= {"low_scale_key": "lr", "low_scale_config": _low_scale_config(index)}
    return name, more


def _low_scale_config(index: Options) -> dict[str, Any]:
    """What puts noise on the upscaler's small picture."""
    options = Options(index.path.parent / "low_res_scheduler" / "scheduler_config.json")
    noise = schedule_params(options)
    del noise["parameterization"]  # it is added and never taken away
    if "given_betas" in noise:
        raise CheckpointError(f"{options} has betas of its own; only those of a named beta_schedule can be loaded here")
    return {
        "target": "ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation",
        "params": {"noise_schedule_config": noise, "max_noise_level": index.integer("max_noise_level", 350)},
    }


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of one part, from one file or from shards."""
    path = _find_weights(folder)
    if path.suffix != ".json":
        return load_state_dict(path)
    shards = read_json(path).get("weight_map")
    files = (
        set(shards.values()) if isinstance(shards, dict) and all(isinstance(s, str) for s in shards.values()) else ()
    )
    if not files or any(Path(name).name != name for name in files):
        raise CheckpointError(f"{str(path)!r} does not say which file of its folder holds which weight (weight_map)")
    if missing := files - {file.name for file in folder.iterdir() if file.is_file()}:
        raise CheckpointError(f"{str(path)!r} lists files that are not there: {some(sorted(missing))}")
    weights: dict[str, Tensor] = {}
    for shard in sorted(files):
        weights |= load_state_dict(folder / shard)
    if missing := [key for key in shards if key not in weights]:
        raise CheckpointError(f"{str(path)!r} lists weights that its files do not hold: {some(missing)}")
    return weights


def _find_weights(folder: Path) -> Path:
    """Plain names before variants, safetensors before .bin, one file before shards; variants in alphabetical order."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    for variant in ("", r"\.\w+"):
        for stem, suffix in _WEIGHTS:
            whole = rf"{stem}{variant}\.{suffix}"
            for form in (whole, rf"{whole}\.index\.json", rf"{stem}\.{suffix}\.index{variant}\.json"):
                for name in names:
                    if re.fullmatch(form, name):
                        return folder / name
    raise CheckpointError(
        f"{str(folder)!r} holds no weights ({' or '.join(map('.'.join, _WEIGHTS))}); it has {some(names) or 'nothing'}"
    )
