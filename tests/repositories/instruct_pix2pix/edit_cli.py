"""Edit a picture as told: guidance with one scale for the text and one for the picture (Brooks et al. 2023)."""

import json

import einops
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.util import allow_targets, instantiate_from_config

allow_targets("ddpm_edit")  # ldm: a config may name only what is allowed by name


class CFGDenoiser(nn.Module):
    """The repository's own way to have two scales: a model whose output is guided already."""

    def __init__(self, model, uncond, text_cfg_scale, image_cfg_scale):
        super().__init__()
        self.inner_model, self.uncond = model, uncond
        self.text_cfg_scale, self.image_cfg_scale = text_cfg_scale, image_cfg_scale
        for name in ("num_timesteps", "betas", "alphas_cumprod", "alphas_cumprod_prev"):
            setattr(self, name, getattr(model, name))

    def apply_model(self, z, t, cond):
        uncond = self.uncond
        cfg_z = einops.repeat(z, "b ... -> (n b) ...", n=3)
        cfg_t = einops.repeat(t, "b -> (n b)", n=3)
        texts = [cond["c_crossattn"][0], uncond["c_crossattn"][0], uncond["c_crossattn"][0]]
        pictures = [cond["c_concat"][0], cond["c_concat"][0], uncond["c_concat"][0]]
        cfg_cond = {"c_crossattn": [torch.cat(texts)], "c_concat": [torch.cat(pictures)]}
        out_cond, out_img_cond, out_uncond = self.inner_model.apply_model(cfg_z, cfg_t, cfg_cond).chunk(3)
        text, picture = out_cond - out_img_cond, out_img_cond - out_uncond
        return out_uncond + self.text_cfg_scale * text + self.image_cfg_scale * picture


torch.manual_seed(0)
config = OmegaConf.load("generate.yaml")
model = instantiate_from_config(config.model).eval()
nn.init.normal_(model.model.diffusion_model.out[2].weight, std=0.1)  # zero at first, as if it had not been trained
image = torch.rand(1, 3, 64, 64) * 2 - 1
with torch.no_grad():
    cond = {
        "c_crossattn": [model.get_learned_conditioning(["make it blue"])],
        "c_concat": [model.encode_first_stage(image).mode()],
    }
    uncond = {
        "c_crossattn": [model.get_learned_conditioning([""])],
        "c_concat": [torch.zeros_like(cond["c_concat"][0])],
    }
    x_T = torch.randn(1, 4, 8, 8)
    theirs, _ = DDIMSampler(CFGDenoiser(model, uncond, 7.5, 1.5)).sample(5, 1, (4, 8, 8), cond, x_T=x_T, verbose=False)
    # ldm: the sampler knows the second scale; the picture alone is the picture with the empty text
    ours, _ = DDIMSampler(model).sample(
        5, 1, (4, 8, 8), cond, x_T=x_T, verbose=False,
        unconditional_guidance_scale=7.5, unconditional_conditioning=uncond,
        image_guidance_scale=1.5, image_conditioning={**cond, "c_crossattn": uncond["c_crossattn"]},
    )  # fmt: skip
    one_scale, _ = model.sample_log(
        cond, 1, 5, x_T=x_T, unconditional_guidance_scale=7.5, unconditional_conditioning=uncond
    )
    edited = model.decode_first_stage(ours)

batch = {"edited": image, "edit": {"c_concat": image, "c_crossattn": ["make it blue"]}}
loss, log = model.shared_step(batch)
loss.backward()
model.model_ema(model.model)
print(json.dumps({
    "apart": (theirs - ours).abs().max().item(), "second_scale": (one_scale - ours).abs().max().item(),
    "edited": list(edited.shape), "loss": loss.item(),
    "gradient": model.model.diffusion_model.input_blocks[0][0].weight.grad[:, 4:].abs().max().item(),
}))  # fmt: skip
