import json
import sys

import einops
import numpy as np
import torch
from cldm.model import create_model, load_state_dict
from torch.utils.data import DataLoader
from tutorial_dataset import MyDataset

from ldm.models.diffusion.ddim import DDIMSampler

model = create_model("./models/cldm_tiny.yaml").cpu()
model.load_state_dict(load_state_dict(sys.argv[1], location="cpu"))
model.eval()
ddim_sampler = DDIMSampler(model)


def process(detected_map, prompt, a_prompt, n_prompt, num_samples, ddim_steps, scale, seed, eta, strength, guess_mode):
    with torch.no_grad():
        H, W, _ = detected_map.shape
        control = torch.from_numpy(detected_map.copy()).float() / 255.0
        control = torch.stack([control for _ in range(num_samples)], dim=0)
        control = einops.rearrange(control, "b h w c -> b c h w").clone()
        torch.manual_seed(seed)
        texts = [prompt + ", " + a_prompt] * num_samples
        cond = {"c_concat": [control], "c_crossattn": [model.get_learned_conditioning(texts)]}
        un_cond = {
            "c_concat": None if guess_mode else [control],
            "c_crossattn": [model.get_learned_conditioning([n_prompt] * num_samples)],
        }
        shape = (4, H // 8, W // 8)
        if guess_mode:
            model.control_scales = [strength * (0.825 ** float(12 - i)) for i in range(13)]
        else:
            model.control_scales = [strength] * 13
        samples, intermediates = ddim_sampler.sample(
            ddim_steps, num_samples, shape, cond, verbose=False, eta=eta,
            unconditional_guidance_scale=scale, unconditional_conditioning=un_cond,
        )  # fmt: skip
        x_samples = model.decode_first_stage(samples)
        x = einops.rearrange(x_samples, "b c h w -> b h w c") * 127.5 + 127.5
        return samples, [x.cpu().numpy().clip(0, 255).astype(np.uint8)[i] for i in range(num_samples)]


sample = MyDataset()[0]
hint = (sample["hint"] * 255).astype(np.uint8)
arguments = (sample["txt"], "best quality", "lowres", 2, 4, 9.0, 3)
with_hint, pictures = process(hint, *arguments, 0.0, 1.0, False)
without, _ = process(hint * 0, *arguments, 0.0, 1.0, False)
silent, _ = process(hint, *arguments, 0.0, 0.0, False)
guessed, _ = process(hint, *arguments, 0.0, 1.0, True)
log = model.log_images(
    next(iter(DataLoader(MyDataset(), batch_size=2))), N=2, sample=True, ddim_steps=2, plot_denoise_rows=True,
    plot_diffusion_rows=True,
)  # fmt: skip
print(json.dumps({
    "samples": with_hint.tolist(), "pictures": [list(p.shape) for p in pictures],
    "hint_matters": (with_hint - without).abs().max().item(), "silent": silent.tolist(),
    "guessed": (with_hint - guessed).abs().max().item(),
    "log": {name: list(value.shape) for name, value in log.items()},
}))  # fmt: skip
