"""The diffusion model as such a repository keeps its own of it: only the parts come from `ldm`."""

import torch
from torch import nn

from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModelInterface
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.modules.diffusionmodules.util import extract_into_tensor, make_beta_schedule, noise_like
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, normal_kl
from ldm.modules.ema import LitEma
from ldm.util import (
    count_params,
    default,
    exists,
    instantiate_from_config,
    isimage,
    ismap,
    log_txt_as_img,
    mean_flat,
)

__all__ = ["AutoencoderKL", "IdentityFirstStage", "VQModelInterface", "LatentDiffusion", "noise_like", "normal_kl"]
__all__ += ["count_params", "exists", "isimage", "ismap", "log_txt_as_img"]


class DDPM(nn.Module):
    def __init__(self, unet_config, timesteps=1000, beta_schedule="linear", first_stage_key="edited", image_size=8,
                 channels=4, linear_start=1e-4, linear_end=2e-2, cosine_s=8e-3, given_betas=None, conditioning_key=None,
                 use_ema=True, parameterization="eps", load_ema=True, **ignored):  # fmt: skip
        super().__init__()
        self.parameterization, self.first_stage_key, self.channels = parameterization, first_stage_key, channels
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.use_ema = use_ema
        if self.use_ema:
            self.model_ema = LitEma(self.model)
        betas = default(given_betas, lambda: make_beta_schedule(
            beta_schedule, timesteps, linear_start=linear_start, linear_end=linear_end, cosine_s=cosine_s,
        ))  # fmt: skip
        betas = torch.as_tensor(betas, dtype=torch.float64)
        alphas_cumprod = torch.cumprod(1.0 - betas, 0)
        self.num_timesteps = len(betas)
        self.register_buffer("betas", betas.float())
        self.register_buffer("alphas_cumprod", alphas_cumprod.float())
        self.register_buffer("alphas_cumprod_prev", torch.cat([torch.ones(1), alphas_cumprod[:-1].float()]))
        self.register_buffer("sqrt_alphas_cumprod", alphas_cumprod.sqrt().float())
        self.register_buffer("sqrt_one_minus_alphas_cumprod", (1.0 - alphas_cumprod).sqrt().float())

    def q_sample(self, x_start, t, noise=None):
        noise = default(noise, lambda: torch.randn_like(x_start))
        return (extract_into_tensor(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
                + extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise)  # fmt: skip


class LatentDiffusion(DDPM):
    def __init__(self, first_stage_config, cond_stage_config, cond_stage_key="edit", scale_factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.cond_stage_key, self.scale_factor = cond_stage_key, scale_factor
        self.first_stage_model = instantiate_from_config(first_stage_config).eval()
        self.cond_stage_model = instantiate_from_config(cond_stage_config).eval()

    @property
    def device(self):
        return self.betas.device

    def get_first_stage_encoding(self, encoder_posterior):
        if isinstance(encoder_posterior, DiagonalGaussianDistribution):
            return self.scale_factor * encoder_posterior.sample()
        return self.scale_factor * encoder_posterior

    @torch.no_grad()
    def encode_first_stage(self, x):
        return self.first_stage_model.encode(x)

    @torch.no_grad()
    def decode_first_stage(self, z):
        return self.first_stage_model.decode(z / self.scale_factor)

    def get_learned_conditioning(self, c):
        return self.cond_stage_model.encode(c)

    @torch.no_grad()
    def get_input(self, batch, k, uncond=0.05):
        x = self.get_first_stage_encoding(self.encode_first_stage(batch[k])).detach()
        random = torch.rand(x.size(0), device=x.device)
        prompt_mask = (random < 2 * uncond)[:, None, None]
        input_mask = 1 - ((random >= uncond).float() * (random < 3 * uncond).float())[:, None, None, None]
        null_prompt = self.get_learned_conditioning([""])
        cond = {
            "c_crossattn": [
                torch.where(prompt_mask, null_prompt, self.get_learned_conditioning(batch["edit"]["c_crossattn"]))
            ],
            "c_concat": [input_mask * self.encode_first_stage(batch["edit"]["c_concat"]).mode().detach()],
        }
        return x, cond

    def shared_step(self, batch):
        x, c = self.get_input(batch, self.first_stage_key)
        t = torch.randint(0, self.num_timesteps, (x.shape[0],), device=self.device).long()
        noise = torch.randn_like(x)
        output = self.apply_model(self.q_sample(x, t, noise), t, c)
        loss = mean_flat((output - noise) ** 2).mean()
        return loss, {"train/loss": loss}

    def apply_model(self, x_noisy, t, cond):
        return self.model(x_noisy, t, **cond)

    @torch.no_grad()
    def sample_log(self, cond, batch_size, ddim_steps, **kwargs):
        ddim_sampler = DDIMSampler(self)
        return ddim_sampler.sample(ddim_steps, batch_size, (self.channels, 8, 8), cond, verbose=False, **kwargs)


class DiffusionWrapper(nn.Module):
    def __init__(self, diff_model_config, conditioning_key):
        super().__init__()
        self.diffusion_model = instantiate_from_config(diff_model_config)
        assert conditioning_key == "hybrid"

    def forward(self, x, t, c_concat=None, c_crossattn=None):
        return self.diffusion_model(torch.cat([x] + c_concat, dim=1), t, context=torch.cat(c_crossattn, 1))
