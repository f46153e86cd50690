"""CompVis' path to the sampler."""

from ldm.sampling.ddim import DDIMSampler

__all__ = ["DDIMSampler"]
