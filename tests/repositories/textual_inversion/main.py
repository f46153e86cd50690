"""Learn what a placeholder stands for; all else stays as it is (Gal et al. 2022)."""

import json
import sys

import torch
from omegaconf import OmegaConf
from personalized import PersonalizedBase
from torch.utils.data import DataLoader

from ldm.util import instantiate_from_config


def load_model_from_config(config, ckpt):
    sd = torch.load(ckpt, map_location="cpu")["state_dict"]
    config.model.params.ckpt_path = ckpt
    model = instantiate_from_config(config.model)
    assert not {k for k in sd if k not in model.state_dict()}
    return model


actual_resume, embedding_path, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = OmegaConf.load("v1-finetune.yaml")
torch.manual_seed(0)
model = load_model_from_config(config, actual_resume)
model.learning_rate = config.model.base_learning_rate
loader = DataLoader(PersonalizedBase(), batch_size=4, shuffle=True)
fixed = next(iter(DataLoader(PersonalizedBase(), batch_size=8)))


def fixed_loss():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        x, c = model.get_input(fixed, model.first_stage_key, force_c_encode=True)
        losses = []
        for t in (200, 400, 600, 800):
            t, noise = torch.full((len(x),), t), torch.randn_like(x)
            output = model.apply_model(model.q_sample(x, t, noise=noise), t, c)
            losses.append((output - noise).square().mean().item())
    return sum(losses) / len(losses)


vectors = list(model.embedding_manager.embedding_parameters())
others = {k: v.clone() for k, v in model.state_dict().items() if "embedding_manager" not in k}
before, start = fixed_loss(), vectors[0].detach().clone()
optimizer, step = torch.optim.AdamW(vectors, lr=model.learning_rate, weight_decay=0), 0
while step < steps:
    for batch in loader:
        loss, log = model.shared_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
model.embedding_manager.save(embedding_path)
print(json.dumps({
    "before": before, "after": fixed_loss(), "vectors": [list(v.shape) for v in vectors],
    "moved": (vectors[0].detach() - start).abs().max().item(),
    "others_moved": [k for k, v in model.state_dict().items() if k in others and not torch.equal(v, others[k])],
}))  # fmt: skip
