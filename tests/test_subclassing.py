"""Models of others' repositories as subclasses: a network steered by a second one, and one that edits a picture."""

import pytest
import torch
from _networks import randn
from _trained import BATCHES, UNET, build
from torch import nn

import ldm.util
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.util import instantiate_from_config

# --- ControlNet's way: a copy of the encoder reads a hint, and what it finds is added to the locked network's skips


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
    def __init__(self, **unet):
        super().__init__()
        self.net = UNetModel(**unet)
        self.hint = nn.Conv2d(3, self.net.model_channels, 3, padding=1)
        width = self.net.model_channels
        self.zero_convs = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(len(self.net.input_blocks) + 1))
        for p in self.zero_convs.parameters():
            nn.init.zeros_(p)

    def forward(self, x, hint, timesteps, context):
        net, outs = self.net, []
        emb = net.time_embed(timestep_embedding(timesteps, net.model_channels))
        h, guided = x.type(net.dtype), self.hint(hint)
        for module, zero in zip(net.input_blocks, self.zero_convs):
            h = module(h, emb, context)
            if guided is not None:
                h, guided = h + guided, None
            outs.append(zero(h))
        return [*outs, self.zero_convs[-1](net.middle_block(h, emb, context))]


class ControlLDM(LatentDiffusion):
    def __init__(self, control_stage_config, control_key, only_mid_control, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.control_model = instantiate_from_config(control_stage_config)
        self.control_key, self.only_mid_control = control_key, only_mid_control
        self.control_scales, self.sd_locked = [1.0] * 13, True

    @torch.no_grad()
    def get_input(self, batch, k, bs=None, *args, **kwargs):
        x, c = super().get_input(batch, self.first_stage_key, *args, **kwargs)
        control = batch[self.control_key]
        control = control if bs is None else control[:bs]
        control = control.to(self.device).permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()
        return x, {"c_crossattn": [c], "c_concat": [control]}

    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        assert isinstance(cond, dict)
        network, text = self.model.diffusion_model, torch.cat(cond["c_crossattn"], 1)
        if cond["c_concat"] is None:
            return network(x=x_noisy, timesteps=t, context=text, control=None, only_mid_control=self.only_mid_control)
        control = self.control_model(x=x_noisy, hint=torch.cat(cond["c_concat"], 1), timesteps=t, context=text)
        control = [c * scale for c, scale in zip(control, self.control_scales)]
        return network(x=x_noisy, timesteps=t, context=text, control=control, only_mid_control=self.only_mid_control)

    @torch.no_grad()
    def get_unconditional_conditioning(self, N):
        return self.get_learned_conditioning([""] * N)

    @torch.no_grad()
    def log_images(self, batch, N=4, ddim_steps=3, ddim_eta=0.0, unconditional_guidance_scale=9.0, **kwargs):
        z, c = self.get_input(batch, self.first_stage_key, bs=N)
        c_cat, c = c["c_concat"][0][:N], c["c_crossattn"][0][:N]
        log = {"reconstruction": self.decode_first_stage(z), "control": c_cat * 2.0 - 1.0}
        t = torch.full((len(z),), self.num_timesteps // 2, device=self.device)
        log["noisy"] = self.decode_first_stage(self.q_sample(x_start=z, t=t, noise=torch.randn_like(z)))
        uc_full = {"c_concat": [c_cat], "c_crossattn": [self.get_unconditional_conditioning(N)]}
        samples_cfg, steps = self.sample_log(
            cond={"c_concat": [c_cat], "c_crossattn": [c]}, batch_size=N, ddim=True, ddim_steps=ddim_steps,
            eta=ddim_eta, unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=uc_full,
        )  # fmt: skip
        log["denoise_row"] = self._get_denoise_row_from_list(steps["x_inter"])
        log[f"samples_cfg_scale_{unconditional_guidance_scale:.2f}"] = self.decode_first_stage(samples_cfg)
        return log

    @torch.no_grad()
    def sample_log(self, cond, batch_size, ddim, ddim_steps, **kwargs):
        b, c, h, w = cond["c_concat"][0].shape
        shape = (self.channels, h, w)
        return DDIMSampler(self).sample(ddim_steps, batch_size, shape, cond, verbose=False, **kwargs)

    def configure_optimizers(self):
        params = list(self.control_model.parameters())
        if not self.sd_locked:
            params += list(self.model.diffusion_model.output_blocks.parameters())
            params += list(self.model.diffusion_model.out.parameters())
        return torch.optim.AdamW(params, lr=self.learning_rate)


@pytest.fixture
def controlled(monkeypatch):
    monkeypatch.setattr(ldm.util, "_allowed_everywhere", [*ldm.util._allowed_everywhere, __name__])
    unet = {"target": f"{__name__}.ControlledUnetModel", "params": UNET["params"]}
    control = {"target": f"{__name__}.ControlNet", "params": UNET["params"]}
    settings = {"control_stage_config": control, "control_key": "hint", "only_mid_control": False, "use_ema": False}
    model = build(ControlLDM, **settings, unet_config=unet, cond_stage_trainable=False)
    for k, p in enumerate(model.model.parameters()):
        p.data = randn(*p.shape, seed=k) * 0.1
    return model


HINTED = [{**batch, "hint": batch["jpg"].abs()} for batch in BATCHES]


def test_a_steered_network_begins_as_the_locked_one(controlled):
    x, t = randn(4, 3, 4, 4), torch.tensor([1, 30, 60, 99])
    z, cond = controlled.get_input(HINTED[0], "jpg")
    steered = controlled.apply_model(x, t, cond)
    torch.testing.assert_close(steered, controlled.apply_model(x, t, {**cond, "c_concat": None}))
    plain = build(use_ema=False)
    plain.load_state_dict({k: v for k, v in controlled.state_dict().items() if not k.startswith("control_model.")})
    torch.testing.assert_close(steered, plain.apply_model(x, t, cond["c_crossattn"]))


def test_it_learns_in_the_control_alone_and_logs_what_it_draws(controlled):
    controlled.learning_rate = 2e-3
    optimizer, locked = controlled.configure_optimizers(), [p.clone() for p in controlled.model.parameters()]
    z, cond = controlled.get_input(HINTED[0], "jpg")
    fixed = z, cond, torch.tensor([5, 30, 60, 95]), randn(4, 3, 4, 4, seed=9)
    before = controlled.p_losses(*fixed)[0].item()
    for number, batch in enumerate(HINTED * 8):
        optimizer.zero_grad()
        controlled.training_step(batch, number).backward()
        optimizer.step()
    assert controlled.p_losses(*fixed)[0].item() < before
    assert all(torch.equal(p, q) for p, q in zip(locked, controlled.model.parameters()))
    log = controlled.log_images(HINTED[0], N=4)
    assert log["samples_cfg_scale_9.00"].shape == log["control"].shape == (4, 3, 4, 4)
    assert all(value.isfinite().all() for value in log.values())


# --- InstructPix2Pix' way: the picture to edit stands beside the latents, and both are sometimes left out


class EditLDM(LatentDiffusion):
    @torch.no_grad()
    def get_input(self, batch, k, return_first_stage_outputs=False, force_c_encode=False, cond_key=None,
                  return_original_cond=False, bs=None, uncond=0.05):  # fmt: skip
        z, c, *rest = super().get_input(batch, k, return_first_stage_outputs, True, "caption", return_original_cond, bs)
        shown = self.encode_first_stage(self.pictures(batch, "edit", bs))
        random = torch.rand(len(z), device=z.device)
        null = self.get_learned_conditioning([""])
        text = torch.where((random < 2 * uncond).view(-1, 1, 1), null, c)
        kept = 1 - ((random >= uncond) & (random < 3 * uncond)).float().view(-1, 1, 1, 1)
        return [z, {"c_crossattn": [text], "c_concat": [kept * shown]}, *rest]


EDITS = [{"edited": b["jpg"].flip(2), "edit": b["jpg"], "caption": b["txt"]} for b in BATCHES]


@pytest.fixture
def edits():
    unet = {**UNET, "params": {**UNET["params"], "in_channels": 6}}
    settings = {"conditioning_key": "hybrid", "first_stage_key": "edited", "cond_stage_key": "edit", "use_ema": False}
    return build(EditLDM, **settings, unet_config=unet, ucg_training={"caption": {"p": 0.05, "val": ""}})


def test_an_editing_model_trains_on_pairs(edits):
    edits.learning_rate = 2e-3
    optimizer = edits.configure_optimizers()
    z, cond = edits.get_input(EDITS[0], "edited", uncond=0.0)
    fixed = z, cond, torch.tensor([5, 30, 60, 95]), randn(4, 3, 4, 4, seed=9)
    before = edits.p_losses(*fixed)[0].item()
    for number, batch in enumerate(EDITS * 10):
        optimizer.zero_grad()
        edits.training_step(batch, number).backward()
        optimizer.step()
    assert edits.p_losses(*fixed)[0].item() < 0.95 * before


def test_both_conditionings_are_left_out_now_and_then(edits):
    batch = {
        key: (value * 100 if isinstance(value, list) else value.repeat(100, 1, 1, 1)) for key, value in EDITS[0].items()
    }
    _, cond = edits.get_input(batch, "edited", uncond=0.2)
    dark = cond["c_concat"][0].flatten(1).eq(0).all(1)
    silent = cond["c_crossattn"][0].eq(edits.get_learned_conditioning([""])).flatten(1).all(1)
    says = torch.tensor([caption != "" for caption in batch["caption"]])
    rates = [(dark & ~silent)[says], (dark & silent)[says], (silent & ~dark)[says]]
    assert [rate.float().mean().item() for rate in rates] == pytest.approx([0.2, 0.2, 0.2], abs=0.08)


def test_an_editing_model_logs_and_samples_under_the_picture(edits, monkeypatch):
    monkeypatch.setattr(
        ldm.util, "log_txt_as_img", lambda wh, xc, size=10: torch.zeros(len(xc), 3, *wh[::-1]), raising=False
    )
    log = edits.log_images(
        EDITS[0], N=2, ddim_steps=3, inpaint=False, plot_diffusion_rows=False, unconditional_guidance_scale=2.0,
        unconditional_guidance_label="",
    )  # fmt: skip
    assert log["samples"].shape == log["samples_cfg_scale_2.00"].shape == log["conditioning"].shape == (2, 3, 4, 4)
    assert torch.equal(log["inputs"], EDITS[0]["edited"][:2].permute(0, 3, 1, 2))
