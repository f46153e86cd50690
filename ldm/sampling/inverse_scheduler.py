"""DDIMInverseScheduler: from data to noise, each step the exact inverse of one of DDIMScheduler's."""

from __future__ import annotations

from torch import Tensor

from .prediction import predict
from .scheduler import DDIMSchedulerOutput, as_computed
from .scheduler_base import SchedulerBase
from .scheduler_config import KINDS
from .transition import ddim_inverse_step


class DDIMInverseScheduler(SchedulerBase):
    """The mirror of a DDIMScheduler with the same config: its timesteps upwards, its steps with eta = 0 undone.

    A step at `timestep` leads from the level where the forward step from there ends, to the level of `timestep`. Given
    the outputs of the forward run it undoes it to rounding, whatever the prediction type; what DDIM inversion (Song et
    al. 2021, section 4.3) loses is that the model is asked before the step instead of after it.

    Limits on x0 cannot be undone: clip_sample, thresholding and use_clipped_model_output have no effect, nor has eta.
    """

    _ascending = True
    _idle = ("clip_sample", "thresholding", "use_clipped_model_output", "eta")

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step up, to `timestep`; `sample`: (B, …) at the level below. In its dtype, as DDIMScheduler's step."""
        alpha_bar, alpha_bar_prev = self._levels(timestep)
        x_prev, output, dtype = as_computed(sample, model_output)
        kind = KINDS[self.config.prediction_type]
        if kind == "x0" and alpha_bar_prev == 1 > alpha_bar:
            raise ValueError("the step to ᾱ = 1 leaves nothing but x0, and cannot be undone: set_alpha_to_one=False")
        x_t = ddim_inverse_step(x_prev, output, alpha_bar, alpha_bar_prev, kind)
        x0, _ = predict(output, x_t, alpha_bar, kind)
        found = DDIMSchedulerOutput(x_t.to(dtype), x0.to(dtype))
        return found if return_dict else found.to_tuple()
