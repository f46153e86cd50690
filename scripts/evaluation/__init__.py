"""What scripts/evaluate.py measures: `mixture`, whose denoiser is a formula, and `scenes`, the bundled model's."""

# DDIM's table 1 (Song et al. 2021): how much noise a step adds. σ̂ is DDPM's larger one, with DDPM's own σ otherwise.
NOISE = {"0": {"eta": 0.0}, "0.2": {"eta": 0.2}, "0.5": {"eta": 0.5}, "1": {"eta": 1.0},
         "σ̂": {"eta": 1.0, "sigma": "large"}}  # fmt: skip
SPACINGS = ("uniform", "quad", "trailing", "logsnr")  # `ddim_discretize`
