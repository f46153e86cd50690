"""A diffusion sampler on torch, numpy and tqdm alone: `from ldm.sampling import DDIMSampler`, in any repository."""

from .ddim import DDIMSampler, Step
from .dpm_solver import DPMSolverSampler
from .interpolation import slerp
from .inverse_scheduler import DDIMInverseScheduler
from .model import DiffusionModel
from .plms import PLMSSampler
from .schedule import NoiseSchedule, make_beta_schedule, q_sample, rescale_zero_terminal_snr
from .scheduler import DDIMScheduler, DDIMSchedulerOutput
from .timesteps import make_timesteps

__all__ = [
    "DDIMInverseScheduler",
    "DDIMSampler",
    "DDIMScheduler",
    "DDIMSchedulerOutput",
    "DPMSolverSampler",
    "DiffusionModel",
    "NoiseSchedule",
    "PLMSSampler",
    "Step",
    "make_beta_schedule",
    "make_timesteps",
    "q_sample",
    "rescale_zero_terminal_snr",
    "slerp",
]
