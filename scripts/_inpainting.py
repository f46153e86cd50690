"""How a hole in pictures is filled: by any model that draws, and by those that are shown the picture and its mask.

- masking: latents without a pixel of the hole are kept, at each step, and the others sampled (`ldm.sampling.mask`);
  the less of it one holds, the later, so that what is drawn finds its place inside of the hole;
- concat: LDM's inpainting model sees the picture, black in the hole, and the mask from -1 to 1, and is told nothing;
- hybrid: Stable Diffusion's see the mask from 0 to 1, and the picture, grey in the hole; they are told a text, too.

In all of them a pixel that is kept comes out as it went in: `composite`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import _config
import _machine
import _model

SHOWN = ("concat", "hybrid")  # the conditioning_keys of models that are shown the picture


def way_of(config) -> str:
    """One of "masking", "concat", "hybrid". ValueError for a model that is shown a picture, but none with a hole."""
    key = _model.conditioning_key(config)
    if key not in SHOWN:
        return "masking"
    channels = _config.of_model(config, "channels", int)
    takes = _config.of_model(config, "unet_config.params.in_channels", int)
    if None in (channels, takes) or takes != 2 * channels + 1:
        raise ValueError(
            f"this model is shown a picture beside the noise, but none with a hole: its network takes {takes} "
            f"channels, not {channels} of latents, 1 of a mask and {channels} of a picture; give an inpainting model, "
            "or one that is shown nothing"
        )
    return key


def shown_and_given(model, way: str, images, holes, strength: float = 1.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the model is shown, what the sampler is given) to fill holes: for `Session.sample`, as for one batch.

    `images`: (B, 3, H, W) in [-1, 1]; `holes`: (B, 1, H, W), 1 in the hole. With `strength` below 1 the hole is drawn
    from what was in it, as in img2img.
    """
    import torch
    import torch.nn.functional as F

    images, holes = images.to(model.device), holes.to(model.device)
    given = {} if strength == 1 else {"init": _machine.encode(model, images), "strength": strength}
    if way == "masking":
        latents = _machine.encode(model, images)
        share = F.adaptive_avg_pool2d(holes, latents.shape[2:])  # of the hole, in each latent
        if not (share == 0).flatten(1).any(1).all():
            warnings.warn("each latent holds a pixel of the hole, so that the model sees nothing of what is kept; "
                          "make the hole smaller, or the picture larger", stacklevel=2)  # fmt: skip
        keep = 1 - share / share.amax((1, 2, 3), keepdim=True)  # in one latent, at least, all steps are free
        return {}, {**given, "x0": latents, "mask": keep, "gradual_mask": True, "blend_final": True}
    if way == "concat":
        rest = model.get_learned_conditioning((images + 1) * (1 - holes) - 1)
        seen = [rest, F.interpolate(2 * holes - 1, rest.shape[2:]).to(rest)]  # the nearest pixel, as in its training
    else:
        rest = _machine.encode(model, images * (1 - holes))
        masks = F.interpolate(holes, rest.shape[2:])
        key = getattr(model, "masked_image_key", "masked_image")  # a plain LatentDiffusion can be one, too
        seen = [rest if each == key else masks for each in getattr(model, "concat_keys", ("mask", key))]
    return {"c_concat": [torch.cat(seen, dim=1)]}, given


def expanded(value: Any, n: int) -> Any:
    """Tensors (1, …), in dicts and lists, as a batch of n without a copy; other values as they are."""
    if isinstance(value, dict):
        return {key: expanded(each, n) for key, each in value.items()}
    if isinstance(value, list):
        return [expanded(each, n) for each in value]
    return value.expand(n, *value.shape[1:]) if hasattr(value, "expand") else value


def composite(picture, drawn: Sequence, hole) -> list:
    """The pictures `drawn` (PIL, RGB) with every pixel of `picture` outside the hole (bool, (H, W)), bit for bit."""
    import numpy as np
    from PIL import Image

    known = np.asarray(picture)
    return [Image.fromarray(np.where(hole[..., None], np.asarray(each), known)) for each in drawn]
