"""A smooth network on a small schedule, and one call of the sampler on it."""

import torch
from torch import nn

from ldm.sampling import DDIMSampler, NoiseSchedule, make_beta_schedule, rescale_zero_terminal_snr

SHAPE = (2, 4)
X_T = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
C, U = torch.linspace(-1, 1, 3), torch.full((3,), 0.25)


class Model(nn.Module):
    """A smooth network on a small schedule; `calls` holds the batch and the timestep of each call."""

    def __init__(self, parameterization="eps", timesteps=100, zero_snr=False):
        super().__init__()
        betas = make_beta_schedule("linear", timesteps, 0.01, 0.12)
        schedule = NoiseSchedule.from_betas(rescale_zero_terminal_snr(betas) if zero_snr else betas)
        for name, values in schedule.buffers().items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.num_timesteps, self.parameterization, self.calls = timesteps, parameterization, []

    def apply_model(self, x, t, c):
        self.calls.append((len(x), int(t[0])))
        shift = 0.0 if c is None else c.reshape(-1, *[1] * (x.ndim - 1))
        return torch.sin(x) * 0.5 + 0.2 * torch.cos(t / 30.0).reshape(-1, *[1] * (x.ndim - 1)) + shift


def run(s=5, sampler=None, **options):
    sampler = sampler or DDIMSampler(Model())
    return sampler.sample(s, 3, SHAPE, **{"x_T": X_T, "progress": False} | options)[0]


def guided(**options):
    return {"conditioning": C, "unconditional_conditioning": U, "unconditional_guidance_scale": 3.0} | options
