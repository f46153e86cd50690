import sys

import torch
from cldm.model import create_model, load_state_dict

input_path, output_path = sys.argv[1:]
model = create_model(config_path="./models/cldm_tiny.yaml")
pretrained, scratch, target = load_state_dict(input_path), model.state_dict(), {}
for k in scratch:
    copy_k = "model.diffusion_" + k if k.startswith("control_model") else k
    copy_k = copy_k.replace("model.diffusion_control_model.", "model.diffusion_model.")
    target[k] = pretrained[copy_k].clone() if copy_k in pretrained else scratch[k].clone()
model.load_state_dict(target, strict=True)
torch.save(model.state_dict(), output_path)
