"""A copy of the U-Net's encoder that looks at a hint and whispers to the decoder (Zhang et al. 2023)."""

import einops
import torch
from einops import repeat
from torch import nn

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    UNetModel,
)
from ldm.modules.diffusionmodules.util import conv_nd, linear, timestep_embedding, zero_module
from ldm.util import exists, instantiate_from_config, log_txt_as_img

try:
    from ldm.models.diffusion.lightning import LightningMixin  # ldm: where lightning is installed
except ImportError:
    LightningMixin = object


class ControlledUnetModel(UNetModel):
    def forward(self, x, timesteps=None, context=None, control=None, only_mid_control=False, **kwargs):
        hs = []
        with torch.no_grad():
            t_emb = timestep_embedding(timesteps, self.model_channels, repeat_only=False)
            emb = self.time_embed(t_emb)
            h = x.type(self.dtype)
            for module in self.input_blocks:
                h = module(h, emb, context)
                hs.append(h)
            h = self.middle_block(h, emb, context)
        if control is not None:
            h = h + control.pop()
        for module in self.output_blocks:
            skip = hs.pop()
            if not only_mid_control and control is not None:
                skip = skip + control.pop()
            h = module(torch.cat([h, skip], dim=1), emb, context)
        return self.out(h.type(x.dtype))


class ControlNet(nn.Module):
    def __init__(
        self, image_size, in_channels, model_channels, hint_channels, num_res_blocks, attention_resolutions,
        dropout=0, channel_mult=(1, 2, 4, 8), conv_resample=True, dims=2, use_checkpoint=False, num_heads=-1,
        use_scale_shift_norm=False, use_spatial_transformer=False, transformer_depth=1, context_dim=None, legacy=True,
    ):  # fmt: skip
        super().__init__()
        if use_spatial_transformer:
            assert exists(context_dim)
        self.model_channels, self.dims = model_channels, dims
        self.dtype = torch.float32
        time_embed_dim = model_channels * 4
        self.time_embed = nn.Sequential(
            linear(model_channels, time_embed_dim), nn.SiLU(), linear(time_embed_dim, time_embed_dim)
        )
        self.input_blocks = nn.ModuleList(
            [TimestepEmbedSequential(conv_nd(dims, in_channels, model_channels, 3, padding=1))]
        )
        self.zero_convs = nn.ModuleList([self.make_zero_conv(model_channels)])
        self.input_hint_block = TimestepEmbedSequential(
            conv_nd(dims, hint_channels, 16, 3, padding=1, stride=2), nn.SiLU(),
            conv_nd(dims, 16, 32, 3, padding=1, stride=2), nn.SiLU(),
            conv_nd(dims, 32, 32, 3, padding=1, stride=2), nn.SiLU(),
            zero_module(conv_nd(dims, 32, model_channels, 3, padding=1)),
        )  # fmt: skip

        def attention(ch):
            if not use_spatial_transformer:
                return AttentionBlock(ch, use_checkpoint=use_checkpoint, num_heads=num_heads, num_head_channels=-1)
            return SpatialTransformer(
                ch, num_heads, ch // num_heads, depth=transformer_depth, context_dim=context_dim,
                disable_self_attn=False, use_linear=False, use_checkpoint=use_checkpoint,
            )  # fmt: skip

        def block(ch, out):
            return ResBlock(
                ch, time_embed_dim, dropout, out_channels=out, dims=dims, use_checkpoint=use_checkpoint,
                use_scale_shift_norm=use_scale_shift_norm,
            )  # fmt: skip

        ch, ds = model_channels, 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = [block(ch, mult * model_channels)]
                ch = mult * model_channels
                if ds in attention_resolutions:
                    layers.append(attention(ch))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                self.zero_convs.append(self.make_zero_conv(ch))
            if level != len(channel_mult) - 1:
                down = Downsample(ch, conv_resample, dims=dims, out_channels=ch)
                self.input_blocks.append(TimestepEmbedSequential(down))
                self.zero_convs.append(self.make_zero_conv(ch))
                ds *= 2
        self.middle_block = TimestepEmbedSequential(block(ch, ch), attention(ch), block(ch, ch))
        self.middle_block_out = self.make_zero_conv(ch)

    def make_zero_conv(self, channels):
        return TimestepEmbedSequential(zero_module(conv_nd(self.dims, channels, channels, 1, padding=0)))

    def forward(self, x, hint, timesteps, context, **kwargs):
        t_emb = timestep_embedding(timesteps, self.model_channels, repeat_only=False)
        emb = self.time_embed(t_emb)
        guided_hint = self.input_hint_block(hint, emb, context)
        outs = []
        h = x.type(self.dtype)
        for module, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = module(h, emb, context)
            if guided_hint is not None:
                h = h + guided_hint
                guided_hint = None
            outs.append(zero_conv(h, emb, context))
        h = self.middle_block(h, emb, context)
        outs.append(self.middle_block_out(h, emb, context))
        return outs


class ControlLDM(LatentDiffusion, LightningMixin):
    def __init__(self, control_stage_config, control_key, only_mid_control, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.control_model = instantiate_from_config(control_stage_config)
        self.control_key = control_key
        self.only_mid_control = only_mid_control
        self.control_scales = [1.0] * 13

    @torch.no_grad()
    def get_input(self, batch, k, bs=None, *args, **kwargs):
        x, c = super().get_input(batch, self.first_stage_key, *args, **kwargs)
        control = batch[self.control_key]
        if bs is not None:
            control = control[:bs]
        control = control.to(self.device)
        control = einops.rearrange(control, "b h w c -> b c h w")
        control = control.to(memory_format=torch.contiguous_format).float()
        return x, {"c_crossattn": [c], "c_concat": [control]}

    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        assert isinstance(cond, dict)
        diffusion_model = self.model.diffusion_model
        cond_txt = torch.cat(cond["c_crossattn"], 1)
        if cond["c_concat"] is None:
            return diffusion_model(
                x=x_noisy, timesteps=t, context=cond_txt, control=None, only_mid_control=self.only_mid_control
            )
        control = self.control_model(x=x_noisy, hint=torch.cat(cond["c_concat"], 1), timesteps=t, context=cond_txt)
        control = [c * scale for c, scale in zip(control, self.control_scales)]
        return diffusion_model(
            x=x_noisy, timesteps=t, context=cond_txt, control=control, only_mid_control=self.only_mid_control
        )

    @torch.no_grad()
    def get_unconditional_conditioning(self, N):
        return self.get_learned_conditioning([""] * N)

    @torch.no_grad()
    def log_images(
        self, batch, N=4, n_row=2, sample=False, ddim_steps=50, ddim_eta=0.0, plot_denoise_rows=False,
        plot_diffusion_rows=False, unconditional_guidance_scale=9.0, **kwargs,
    ):  # fmt: skip
        log = {}
        z, c = self.get_input(batch, self.first_stage_key, bs=N)
        c_cat, c = c["c_concat"][0][:N], c["c_crossattn"][0][:N]
        N, n_row = min(z.shape[0], N), min(z.shape[0], n_row)
        log["reconstruction"] = self.decode_first_stage(z)
        log["control"] = c_cat * 2.0 - 1.0
        log["conditioning"] = log_txt_as_img((64, 64), batch[self.cond_stage_key], size=16)
        if plot_diffusion_rows:
            rows = []
            z_start = z[:n_row]
            for t in range(self.num_timesteps):
                if t % self.log_every_t == 0 or t == self.num_timesteps - 1:
                    t = repeat(torch.tensor([t]), "1 -> b", b=n_row)
                    noise = torch.randn_like(z_start)
                    z_noisy = self.q_sample(x_start=z_start, t=t.to(self.device).long(), noise=noise)
                    rows.append(self.decode_first_stage(z_noisy))
            log["diffusion_row"] = torch.stack(rows)
        cond = {"c_concat": [c_cat], "c_crossattn": [c]}
        if sample:
            samples, z_denoise_row = self.sample_log(
                cond=cond, batch_size=N, ddim=True, ddim_steps=ddim_steps, eta=ddim_eta
            )
            log["samples"] = self.decode_first_stage(samples)
            if plot_denoise_rows:
                log["denoise_row"] = self._get_denoise_row_from_list(z_denoise_row["x_inter"])
        if unconditional_guidance_scale > 1.0:
            uc_full = {"c_concat": [c_cat], "c_crossattn": [self.get_unconditional_conditioning(N)]}
            samples_cfg, _ = self.sample_log(
                cond=cond, batch_size=N, ddim=True, ddim_steps=ddim_steps, eta=ddim_eta,
                unconditional_guidance_scale=unconditional_guidance_scale, unconditional_conditioning=uc_full,
            )  # fmt: skip
            log[f"samples_cfg_scale_{unconditional_guidance_scale:.2f}"] = self.decode_first_stage(samples_cfg)
        return log

    @torch.no_grad()
    def sample_log(self, cond, batch_size, ddim, ddim_steps, **kwargs):
        ddim_sampler = DDIMSampler(self)
        b, c, h, w = cond["c_concat"][0].shape
        shape = (self.channels, h // 8, w // 8)
        return ddim_sampler.sample(ddim_steps, batch_size, shape, cond, verbose=False, **kwargs)

    def configure_optimizers(self):
        params = list(self.control_model.parameters())
        if not self.sd_locked:
            params += list(self.model.diffusion_model.output_blocks.parameters())
            params += list(self.model.diffusion_model.out.parameters())
        return torch.optim.AdamW(params, lr=self.learning_rate)
