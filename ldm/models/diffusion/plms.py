"""CompVis' path to the sampler."""

from ldm.sampling.plms import PLMSSampler

__all__ = ["PLMSSampler"]
