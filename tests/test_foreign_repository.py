"""The sampler in someone else's training repository, which has an `ldm/` of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILES = {
    "ldm/util.py": 'WHOSE = "theirs"\n\n\ndef exists(x):\n    return x is not None\n',
    "ldm/models/diffusion/ddpm.py": """
import torch
from torch import nn

from ldm.util import WHOSE, exists
from ldm.modules.ema import LitEma


class LatentDiffusion(nn.Module):
    parameterization = "eps"

    def __init__(self, num_timesteps=100):
        super().__init__()
        assert WHOSE == "theirs" and exists(LitEma)
        betas = torch.linspace(0.03, 0.3, num_timesteps) ** 2
        bar = torch.cumprod(1 - betas, 0)
        self.num_timesteps = num_timesteps
        self.net = nn.Conv2d(3, 3, 1)
        self.register_buffer("betas", betas)
        self.register_buffer("alphas_cumprod", bar)
        self.register_buffer("alphas_cumprod_prev", torch.cat([torch.ones(1), bar[:-1]]))

    @property
    def device(self):
        return self.betas.device

    def apply_model(self, x, t, c):
        return torch.tanh(self.net(x)) + 0.01 * c.mean() + 0.001 * t[:, None, None, None]
""",
    "ldm/models/diffusion/ddim.py": 'raise ImportError("their sampler, which nobody asked for")\n',
    "ldm/modules/ema.py": "class LitEma:\n    pass\n",
    "sample.py": """
import json
import sys

import torch

SAMPLER_FIRST = "--sampler-first" in sys.argv
if SAMPLER_FIRST:
    from ldm.sampling import DDIMSampler

import ldm.util
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling import DDIMSampler

torch.manual_seed(0)
model = LatentDiffusion()
model.sampler = DDIMSampler(model)
out, _ = model.sampler.sample(
    5, 2, (3, 4, 4), torch.ones(2, 3), eta=1.0, seeds=[1, 2], progress=False,
    unconditional_conditioning=torch.zeros(2, 3), unconditional_guidance_scale=2.0,
)
ours = sorted(name for name in sys.modules if name.startswith("ldm."))
print(json.dumps({
    "util": ldm.util.__file__,
    "sampler": sys.modules["ldm.sampling"].__file__,
    "ddpm": sys.modules["ldm.models.diffusion.ddpm"].__file__,
    "modules": {name: getattr(sys.modules[name], "__file__", None) for name in ours},
    "shape": list(out.shape),
    "finite": bool(torch.isfinite(out).all()),
    "state": sorted(model.state_dict()),
}))
""",
}


@pytest.fixture
def repository(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(repository, *arguments):
    """Run sample.py as its owner would, with this project after the repository on the path."""
    path = os.pathsep.join([str(repository), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "sample.py", *arguments],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("order", [[], ["--sampler-first"]], ids=["model first", "sampler first"])
def test_the_sampler_is_ours_and_everything_else_is_theirs(repository, order):
    said = run(repository, *order)
    assert Path(said["sampler"]).is_relative_to(ROOT / "ldm" / "sampling")
    for theirs in ("util", "ddpm"):
        assert Path(said[theirs]).is_relative_to(repository)
    assert said["shape"] == [2, 3, 4, 4] and said["finite"]
    assert said["state"] == ["alphas_cumprod", "alphas_cumprod_prev", "betas", "net.bias", "net.weight"]
    ours = {name for name, file in said["modules"].items() if file and Path(file).is_relative_to(ROOT / "ldm")}
    assert ours and all(name.startswith("ldm.sampling") for name in ours), "the core brought in another of our rooms"
