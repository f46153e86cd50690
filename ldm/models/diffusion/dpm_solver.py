"""CompVis' path to the sampler."""

from ldm.sampling.dpm_solver import DPMSolverSampler

__all__ = ["DPMSolverSampler"]
