"""Which released model a checkpoint holds, by the names and shapes of its weights; and where that model's config is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_IN = "model.diffusion_model.input_blocks.0.0.weight"  # its input channels say what stands beside the latent
_FIRST = "model.diffusion_model.input_blocks.1.1."  # the first block of attention, at full resolution
_SECOND = "model.diffusion_model.input_blocks.4.1."  # that at half of it, where there is none at full
_CROSS = "transformer_blocks.0.attn2.to_k.weight"  # (width, width of the text's vectors)
_CLASSES = "model.diffusion_model.label_emb.weight"
_VECTOR = "model.diffusion_model.label_emb.0.0.weight"  # of the variants that are shown an embedded picture (unCLIP)
_KL = "first_stage_model.quant_conv.weight"
_DEEP = "first_stage_model.encoder.down.3.block.0.conv1.weight"  # a fourth level: pictures have 8 times the size, not 4
_CODES = "first_stage_model.quantize.embedding.weight"
_MIDDLE = "first_stage_model.encoder.mid.attn_1.q.weight"
_CLIP = "cond_stage_model.transformer.embeddings.token_embedding.weight"
_OPEN_CLIP = "cond_stage_model.model.token_embedding.weight"
_BERT = "cond_stage_model.transformer.token_emb.weight"
_LABELS = "cond_stage_model.embedding.weight"

_KL_8 = {_KL: (8, 8, 1, 1), _DEEP: (512, 512, 3, 3)}
_VQ_4 = {_CODES: (8192, 3), _MIDDLE: (512, 512, 1, 1)}
_V1 = {_FIRST + _CROSS: (320, 768), _CLIP: (49408, 768), _VECTOR: None, **_KL_8}
_V2 = {_FIRST + _CROSS: (320, 1024), _OPEN_CLIP: (49408, 1024), _VECTOR: None, **_KL_8}
_FACES = {_IN: (224, 3, 3, 3), _SECOND + "qkv.weight": (1344, 448, 1), **_VQ_4}

# Config → the shapes that tell it from the others; None: there is no such weight.
_TELLING: dict[str, dict[str, tuple[int, ...] | None]] = {
    "stable-diffusion/v1-inference": {_IN: (320, 4, 3, 3), **_V1},
    "stable-diffusion/v1-inpainting-inference": {_IN: (320, 9, 3, 3), **_V1},
    "stable-diffusion/v2-inference-v": {_IN: (320, 4, 3, 3), **_V2},
    "stable-diffusion/v2-inference": {_IN: (320, 4, 3, 3), **_V2},
    "stable-diffusion/v2-inpainting-inference": {_IN: (320, 9, 3, 3), **_V2},
    "stable-diffusion/v2-midas-inference": {_IN: (320, 5, 3, 3), **_V2},
    "stable-diffusion/x4-upscaling": {
        _IN: (256, 7, 3, 3),
        _SECOND + _CROSS: (512, 1024),
        _CLASSES: (1000, 1024),
        _KL: (8, 8, 1, 1),
        _DEEP: None,
        _OPEN_CLIP: (49408, 1024),
    },
    "latent-diffusion/txt2img-1p4B-eval": {
        _IN: (320, 4, 3, 3),
        _FIRST + _CROSS: (320, 1280),
        _BERT: (30522, 1280),
        **_KL_8,
    },
    "latent-diffusion/cin256-v2": {
        _IN: (192, 3, 3, 3),
        _SECOND + _CROSS: (384, 512),
        _LABELS: (1001, 512),
        **_VQ_4,
    },
    "latent-diffusion/celebahq-ldm-vq-4": _FACES,
    "latent-diffusion/ffhq-ldm-vq-4": _FACES,
    "latent-diffusion/lsun_bedrooms-ldm-vq-4": _FACES,
    "latent-diffusion/lsun_churches-ldm-kl-8": {
        _IN: (192, 4, 3, 3),
        _FIRST + "qkv.weight": (576, 192, 1),
        **_KL_8,
    },
    "latent-diffusion/inpainting_big": {
        _IN: (256, 7, 3, 3),
        _SECOND + "qkv.weight": (1536, 512, 1),
        _CODES: (8192, 3),
        _MIDDLE: None,
    },
    "shapes": {_IN: (96, 8, 3, 3), "cond_stage_model.position_embedding": (28, 128)},  # the bundled model
}
_STEPS_OF_V2_BASE = 875000  # the `global_step` that 512-base-ema.ckpt was saved at


def recognise(weights: Mapping[str, Tensor | Sequence[int]], global_step: int | None = None) -> list[str]:
    """The names of the released configs (for `config_path`) that these weights fit, the likeliest first.

    weights: names → tensors or their shapes. Schedule buffers, averages (`model_ema.`) and the names that newer or
    older text encoders have are no matter, nor is the dtype. An empty list: none of the released models.

    Where several fit, keys and shapes cannot tell them apart. Stable Diffusion v2's two, which predict eps (512 pixels)
    and v (768): `predicts_v` can; before that, the file's `global_step`, if it has one, is a hint. CelebA-HQ, FFHQ and
    LSUN-Bedrooms: those configs are the same but for their names, so the first will do.
    """
    shapes = {key.replace(".text_model.", "."): tuple(getattr(value, "shape", value)) for key, value in weights.items()}
    names = [name for name, telling in _TELLING.items() if all(shapes.get(k) == shape for k, shape in telling.items())]
    if global_step == _STEPS_OF_V2_BASE:
        names.sort(key=lambda name: name != "stable-diffusion/v2-inference")
    return names


def config_path(name: str) -> Path:
    """The YAML file of a released model: inside an installed package, or beside `ldm` in a checkout."""
    if name not in _TELLING:
        raise ValueError(f"config {name!r} is unknown; choose one of {', '.join(_TELLING)}")
    package = Path(__file__).resolve().parents[1]
    places = [folder / "configs" / f"{name}.yaml" for folder in (package, package.parent)]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(f"config {name!r} is in neither {places[0]} nor {places[1]}; install the package again")


@torch.no_grad()
def predicts_v(model: Any) -> bool:
    """Whether a text-conditional model predicts v rather than eps, whatever its config says; one call of its network.

    v = √ᾱ ε − √(1 − ᾱ) x0 (Salimans & Ho 2022). At the last timestep x_t is almost ε alone, and √ᾱ is small (0.07 in
    Stable Diffusion): a network that predicts ε gives its input back, one that predicts v gives about −x0, which pure
    noise says nothing about. So it is asked how much of its input is in its output: the slope of the one on the
    other, 1 or √ᾱ and less. (Not their correlation: where x0 varies little, even √ᾱ ε is all that varies in v.)
    """
    noise = torch.randn(1, model.channels, 32, 32, generator=torch.Generator().manual_seed(0)).to(model.device)
    t = torch.full((1,), model.num_timesteps - 1, device=model.device)
    context = torch.zeros(1, 1, model.model.diffusion_model.context_dim, device=model.device)
    output = model.apply_model(noise, t, {"c_crossattn": [context]})
    slope = ((noise - noise.mean()) * output.float()).mean() / noise.var()
    return slope.item() <= 0.5
