import json
import sys

import torch
from cldm.model import create_model, load_state_dict
from torch.utils.data import DataLoader
from tutorial_dataset import MyDataset

resume_path, how, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])

torch.manual_seed(0)
model = create_model("./models/cldm_tiny.yaml").cpu()
model.load_state_dict(load_state_dict(resume_path, location="cpu"))
model.learning_rate = 3e-3
model.sd_locked = True
model.only_mid_control = False

dataset = MyDataset()
dataloader = DataLoader(dataset, num_workers=0, batch_size=4, shuffle=True)
fixed = next(iter(DataLoader(dataset, batch_size=8)))


def fixed_loss():
    """Of one batch at fixed noise and timesteps, so that two of them can be compared."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        x, c = model.get_input(fixed, model.first_stage_key)
        losses = [model.p_losses(x, c, torch.full((len(x),), t))[0].item() for t in (250, 500, 750)]
    return sum(losses) / len(losses)


before = fixed_loss()
locked = model.model.diffusion_model.input_blocks[0][0].weight.clone()
if how == "lightning":
    import lightning.pytorch as pl

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, dataloader)
else:
    optimizer, step = model.configure_optimizers(), 0
    model.train()
    while step < steps:
        for batch in dataloader:
            loss, log = model.shared_step(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
same = torch.equal(locked, model.model.diffusion_model.input_blocks[0][0].weight)
print(json.dumps({"before": before, "after": fixed_loss(), "locked": same}))
