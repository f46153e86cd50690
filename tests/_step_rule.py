"""Two rules for where a step ends, on data whose exact answer is known. As a script it prints docs/options.md's table.

"next": at the noise level of the timestep that comes next. "stride": at that of T // S timesteps below, whatever comes
next, as in diffusers. The two part where S does not divide T, and with linspace.

    PYTHONPATH=. python tests/_step_rule.py
"""

import numpy as np
import torch
from _mixture import MixtureModel, gaussian_flow, one_mode, randn, rms, two_modes

from ldm.sampling import make_timesteps
from ldm.sampling.prediction import predict
from ldm.sampling.transition import ddim_step

T = 1000
DATA = {"mixture": two_modes, "Gaussian": one_mode}
SPACINGS = ("trailing", "linspace")
STEPS = (7, 10, 13, 30, 50, 70, 150, 300, 400, 600)


def errors(data, spacing, s):
    """The rms distance from where the exact flow ends, from the first timestep to no noise, by rule."""
    model = MixtureModel(DATA[data]())
    mix, a, x_T = model.mixture, model.alpha_bar, randn(16, 1, 2, 2, seed=1)
    steps = make_timesteps(spacing, s, T)[::-1]
    below = {"next": np.append(steps[1:], -1), "stride": steps - T // s}
    if data == "Gaussian":
        exact = gaussian_flow(x_T, mix.means[0], mix.stds[0], a[steps[0]], 1.0)
    else:
        exact = mix.flow(x_T, a[steps[0]], 1.0, steps=200)
    return {rule: rms(walk(model, x_T, steps, ends) - exact) for rule, ends in below.items()}


def walk(model, x, steps, ends):
    for t, end in zip(steps, ends):
        output = model.apply_model(x, torch.full((len(x),), int(t)), None)
        x = ddim_step(*predict(output, x, model.alpha_bar[t], "eps"), model.alpha_bar[end] if end >= 0 else 1.0)
    return x


def row(s):
    cells = (f"{error:.4f}" for data in DATA for spacing in SPACINGS for error in errors(data, spacing, s).values())
    return f"| {s} | {' | '.join(cells)} |"


def table():
    heads = [f"{data}, {spacing}: {rule}" for data in DATA for spacing in SPACINGS for rule in ("next", "stride")]
    return [f"| S | {' | '.join(heads)} |", "|" + "---|" * (1 + len(heads)), *map(row, STEPS)]


if __name__ == "__main__":
    print(*table(), sep="\n")
