import argparse
import json

import torch
from einops import rearrange
from omegaconf import OmegaConf

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.util import instantiate_from_config

parser = argparse.ArgumentParser()
parser.add_argument("--prompt", default="a photo of a *")
parser.add_argument("--ckpt")
parser.add_argument("--embedding_path")
parser.add_argument("--plms", action="store_true")
opt = parser.parse_args()

config = OmegaConf.load("v1-finetune.yaml")
model = instantiate_from_config(config.model)
model.load_state_dict(torch.load(opt.ckpt, map_location="cpu")["state_dict"], strict=False)
model.eval()
if opt.embedding_path:
    model.embedding_manager.load(opt.embedding_path)
sampler = PLMSSampler(model) if opt.plms else DDIMSampler(model)
start_code = torch.randn([2, 4, 8, 8], generator=torch.Generator().manual_seed(0))
with torch.no_grad(), model.ema_scope():
    uc = model.get_learned_conditioning(2 * [""])
    c = model.get_learned_conditioning(2 * [opt.prompt])
    samples_ddim, _ = sampler.sample(S=4, conditioning=c, batch_size=2, shape=[4, 8, 8], verbose=False,
                                     unconditional_guidance_scale=7.5, unconditional_conditioning=uc, eta=0.0,
                                     x_T=start_code)  # fmt: skip
    x_samples_ddim = model.decode_first_stage(samples_ddim)
    x_samples_ddim = torch.clamp((x_samples_ddim + 1.0) / 2.0, min=0.0, max=1.0)
    grid = rearrange(x_samples_ddim, "b c h w -> b h w c")
print(json.dumps({"samples": samples_ddim.tolist(), "picture": list(grid.shape)}))
