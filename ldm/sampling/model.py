"""What a sampler asks of a model."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

REQUIRED = ("num_timesteps", "betas", "alphas_cumprod", "alphas_cumprod_prev", "apply_model")
PARAMETERIZATIONS = ("eps", "v", "x0")


class DiffusionModel(Protocol):
    """The contract: any object with these five works, CompVis' `LatentDiffusion` among them.

      num_timesteps          T, an int
      betas                  (T,), a tensor
      alphas_cumprod         (T,): ᾱ, float32 or float64
      alphas_cumprod_prev    (T,): ᾱ of the timestep before; 1 before the first
      apply_model(x, t, c)   the network's output, of x's shape, for latents x (B, …) at timesteps t (B,) int64, given
                             the conditioning c that `sample` was called with

    Read where the model has them: `device` (else the device of `betas`) and `parameterization` ("eps", "v" or "x0";
    else "eps"). Asked for only where they are used: `q_sample(x0, t)` by masks (without it the sampler's own does the
    same), `first_stage_model.quantize(x0)` by `quantize_x0=True` (a tensor, or a tuple that starts with it).

    `share_latents(conds)`, if there is one, may return one conditioning that stands for a list of them in the calls of
    a run: under it, `apply_model(x, t, …)` of (B, …) returns (n·B, …), the outputs for the first of them first.
    """

    num_timesteps: int
    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor

    def apply_model(self, x: Tensor, t: Tensor, c: Any) -> Tensor:
        """(B, …) like x."""
        ...


def check_model(model: object) -> None:
    """Raise a TypeError that names what the contract asks for and the model lacks."""
    missing = [name for name in REQUIRED if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"{type(model).__name__} cannot be sampled from: it has no {', '.join(missing)}; "
            "ldm.sampling.DiffusionModel says what each is"
        )


def parameterization_of(model: object) -> str:
    """What the network predicts: "eps" (the default), "v" or "x0"."""
    kind = getattr(model, "parameterization", "eps")
    if kind not in PARAMETERIZATIONS:
        raise ValueError(f"model.parameterization is {kind!r}; choose one of {', '.join(PARAMETERIZATIONS)}")
    return kind


def quantize(model: Any, x0: Tensor) -> Tensor:
    """x0 on the codebook of the model's first stage, which returns it alone or, as CompVis' does, with more behind."""
    answer = model.first_stage_model.quantize(x0)
    return answer if isinstance(answer, Tensor) else answer[0]
