"""A diffusion sampler on torch, numpy and tqdm alone: `from ldm.sampling import DDIMSampler`, in any repository.

    DDIMSampler, PLMSSampler, DPMSolverSampler    samplers with CompVis' arguments; they take any DiffusionModel
    DDIMScheduler, DDIMInverseScheduler           diffusers' words for the same steps
    NoiseSchedule, make_beta_schedule, make_timesteps, rescale_zero_terminal_snr    noise levels, and which to take
    q_sample, slerp                               noise on data, and what lies between two latents

help(DDIMSampler.sample) has CompVis' arguments, help(ldm.sampling.arguments.Options) those beyond them, and
help(DiffusionModel) what is asked of a model. The mathematics is in transition.py, prediction.py and mask.py.
"""

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
