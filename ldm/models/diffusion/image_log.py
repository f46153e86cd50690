"""What a latent-diffusion model draws of a batch during a training, as the original's `log_images`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.models.autoencoder import VQModelInterface
from ldm.sampling import DDIMSampler
from ldm.util import isimage

_GAP = 2  # pixels between the pictures of a grid


class ImageLog:
    """Sampling under CompVis' names, and dicts of pictures for a logger."""

    @torch.no_grad()
    def sample_log(
        self, cond: Any, batch_size: int, ddim: bool, ddim_steps: int | None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """(samples, intermediates) as `DDIMSampler.sample` gives them, in `ddim_steps` steps of DDIM, or without `ddim`
        in all T steps of DDPM (η = 1, to ᾱ = 1; Song et al. 2021, section 4.1).

        `kwargs` go to `sample`: eta, unconditional_guidance_scale, seeds … `shape`, (C, h, w), is the model's own.
        """
        sampler, shape = DDIMSampler(self), kwargs.pop("shape", None) or self._latent_shape()
        if not ddim:
            if kwargs.pop("eta", 1.0) != 1:
                warnings.warn("eta has no effect without ddim: DDPM's steps are those of eta=1", stacklevel=2)
            ddim_steps, kwargs = self.num_timesteps, {"final_alpha": "one", **kwargs, "eta": 1.0}
        return sampler.sample(ddim_steps, batch_size, shape, cond, **{"verbose": False, **kwargs})

    @torch.no_grad()
    def sample(
        self,
        cond: Any,
        batch_size: int = 16,
        return_intermediates: bool = False,
        x_T: Tensor | None = None,
        verbose: bool = True,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Samples by all T steps of DDPM, as the original's method of that name; `kwargs` go to `DDIMSampler.sample`.

        `shape`: (C, h, w), the model's own unless given, or that of the batch. With `return_intermediates` also the
        latents on the way. ValueError for `timesteps`, fewer of the T: that is `sample_log` with x_T and strength.
        """
        if timesteps is not None:
            raise ValueError(f"timesteps={timesteps}: DDPM takes all steps here; for fewer use sample_log(ddim=True)")
        shape = None if shape is None else tuple(shape)[-3:]
        samples, on_the_way = self.sample_log(
            cond, batch_size, False, None, x_T=x_T, verbose=verbose, quantize_x0=quantize_denoised, mask=mask, x0=x0,
            shape=shape, **kwargs,
        )  # fmt: skip
        return (samples, on_the_way["x_inter"]) if return_intermediates else samples

    def _latent_shape(self) -> tuple[int, int, int]:
        size = self.image_size
        return (self.channels, *((size, size) if isinstance(size, int) else size))

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        N: int = 8,
        n_row: int = 4,
        sample: bool = True,
        ddim_steps: int | None = 200,
        ddim_eta: float = 1.0,
        return_keys: Sequence[str] | None = None,
        quantize_denoised: bool = True,
        inpaint: bool = True,
        plot_denoise_rows: bool = False,
        plot_progressive_rows: bool = True,
        plot_diffusion_rows: bool = True,
        unconditional_guidance_scale: float = 1.0,
        unconditional_guidance_label: Any = None,
        use_ema_scope: bool = True,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Pictures of the first `N` of a batch, (N, 3, H, W) about in [−1, 1], and grids of `n_row` rows, (3, H, W).

        "inputs", "reconstruction", and where it can be shown "conditioning"; "diffusion_row": inputs as noise is added.
        With `sample`, by `ddim_steps` of DDIM (None: all of DDPM's): "samples", "denoise_row" (from noise to sample)
        and "progressive_row" (x0 as it is predicted on that way), "samples_x0_quantized" (for a VQ first stage). With
        a guidance scale above 1 "samples_cfg_scale_7.50"; with `inpaint` "mask", "samples_inpainting" (the middle
        drawn anew) and "samples_outpainting". `return_keys`: these alone, if any is there. `split` is Lightning's
        callbacks' and without effect; other `kwargs` get a warning.
        """
        if idle := sorted(set(kwargs) - {"split"}):
            warnings.warn(f"log_images knows nothing of {', '.join(idle)}: without effect", stacklevel=3)
        z, c, x, reconstruction, said = self._input_to_log(batch, N)
        N, n_row = min(len(x), N), min(len(x), n_row)
        log = {"inputs": x, "reconstruction": reconstruction, **self._said_as_pictures(said, c, batch, x)}
        if plot_diffusion_rows:
            log["diffusion_row"] = self._get_denoise_row_from_list(self._noised(z[:n_row]))
        settings = {"batch_size": N, "ddim": ddim_steps is not None, "ddim_steps": ddim_steps}
        if ddim_steps is not None:
            settings["eta"] = ddim_eta
        if z.shape[1:] != self._latent_shape():
            settings["shape"] = tuple(z.shape[1:])
        with self.ema_scope("Plotting") if use_ema_scope else nullcontext():
            if sample:
                log |= self._samples(c, settings, n_row, quantize_denoised, plot_denoise_rows, plot_progressive_rows)
            if unconditional_guidance_scale > 1:
                guided = self._guided(c, settings, unconditional_guidance_scale, unconditional_guidance_label)
                log[f"samples_cfg_scale_{unconditional_guidance_scale:.2f}"] = guided
            if sample and inpaint:
                log |= self._filled(z, c, settings)
        wanted = [key for key in return_keys or () if key in log]
        return {key: log[key] for key in wanted} if wanted else log

    def _input_to_log(self, batch: Mapping[str, Any], n: int) -> Sequence[Any]:
        """Latents, conditioning, pictures, their reconstruction, and what the conditioning was made of."""
        return self.get_input(
            batch,
            self.first_stage_key,
            return_first_stage_outputs=True,
            force_c_encode=True,
            return_original_cond=True,
            bs=n,
        )

    def _said_as_pictures(self, said: Any, c: Any, batch: Mapping[str, Any], x: Tensor) -> dict[str, Tensor]:
        """{"conditioning": (B, 3, H, W)} of text, labels with "human_label" in the batch, and pictures; else {}."""
        if isinstance(said, Mapping):  # labels
            said = batch.get("human_label")
        if isinstance(said, (list, tuple)) and said and all(isinstance(text, str) for text in said):
            from ldm.util import log_txt_as_img

            height, width = x.shape[2:]
            return {"conditioning": log_txt_as_img((width, height), said[: len(x)], size=max(height // 25, 1))}
        if self.cond_stage_model is not None and hasattr(self.cond_stage_model, "decode") and isinstance(c, Tensor):
            return {"conditioning": self.cond_stage_model.decode(c)}
        return {"conditioning": said} if isimage(said) else {}

    def _noised(self, z: Tensor) -> list[Tensor]:
        """z at every `log_every_t`-th timestep, and at the last."""
        steps = sorted({*range(0, self.num_timesteps, self.log_every_t), self.num_timesteps - 1})
        return [self.q_sample(z, torch.full((len(z),), t, device=z.device)) for t in steps]

    def _samples(
        self, c: Any, settings: dict[str, Any], n_row: int, quantize: bool, denoise_row: bool, progressive_row: bool
    ) -> dict[str, Tensor]:
        steps = settings["ddim_steps"] or self.num_timesteps
        every = max(1, steps * self.log_every_t // self.num_timesteps)
        samples, intermediates = self.sample_log(cond=c, **settings, log_every_t=every)
        log = {"samples": self.decode_first_stage(samples)}
        for name, wanted, latents in (
            ("denoise_row", denoise_row, intermediates["x_inter"]),
            ("progressive_row", progressive_row, intermediates["pred_x0"][1:]),  # the first is the noise itself
        ):
            if wanted:
                log[name] = self._get_denoise_row_from_list([z[:n_row] for z in latents])
        if quantize and isinstance(self.first_stage_model, VQModelInterface):
            quantized, _ = self.sample_log(cond=c, **settings, quantize_x0=True)
            log["samples_x0_quantized"] = self.decode_first_stage(quantized)
        return log

    def _guided(self, c: Any, settings: dict[str, Any], scale: float, label: Any) -> Tensor:
        nothing = self.get_unconditional_conditioning(settings["batch_size"], label)
        if isinstance(c, Mapping):  # guidance away from the text; a picture beside it, and a level, stay
            nothing = {**c, "c_crossattn": nothing if isinstance(nothing, list) else [nothing]}
        samples, _ = self.sample_log(
            cond=c, **settings, unconditional_guidance_scale=scale, unconditional_conditioning=nothing
        )
        return self.decode_first_stage(samples)

    def _filled(self, z: Tensor, c: Any, settings: dict[str, Any]) -> dict[str, Tensor]:
        """The middle of the latents drawn anew, and all but the middle. A mask's 1 keeps."""
        h, w = z.shape[2:]
        mask = z.new_ones(len(z), 1, h, w)
        mask[:, :, h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = 0
        log = {"mask": mask}
        for name, kept in (("samples_inpainting", mask), ("samples_outpainting", 1 - mask)):
            samples, _ = self.sample_log(cond=c, **settings, x0=z, mask=kept)
            log[name] = self.decode_first_stage(samples)
        return log

    @torch.no_grad()
    def _get_denoise_row_from_list(
        self,
        samples: Sequence[Tensor] | Mapping[str, Sequence[Tensor]],
        desc: str = "",
        force_no_decoder_quantization: bool = False,
    ) -> Tensor:
        """Latents (B, C, h, w) in their order, or a sampler's intermediates → one grid (3, H, W): a row for each of the
        B, decoded. `desc` names a progress bar."""
        if isinstance(samples, Mapping):
            samples = samples["x_inter"]
        steps = tqdm(samples, desc=desc, disable=not desc)
        decoded = [self.decode_first_stage(z, force_not_quantize=force_no_decoder_quantization) for z in steps]
        return _grid(torch.stack(decoded, dim=1))


def _grid(pictures: Tensor) -> Tensor:
    """(rows, columns, C, H, W) → (C, height, width) with a gap of grey (0) between and round the pictures."""
    apart = F.pad(pictures, (0, _GAP, 0, _GAP))
    rows, columns, channels, height, width = apart.shape
    whole = apart.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    return F.pad(whole, (_GAP, 0, _GAP, 0))
