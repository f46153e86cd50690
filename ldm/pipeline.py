"""DDIMPipeline: a network and a DDIM scheduler that draw pictures, in diffusers' words."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from ldm.checkpoint.diffusers_options import Options, read_json
from ldm.checkpoint.diffusers_unet2d import load_unet2d, save_unet2d
from ldm.checkpoint.errors import CheckpointError, some
from ldm.image import to_pil
from ldm.sampling import DDIMScheduler
from ldm.sampling.noise import noise_source
from ldm.sampling.values import check_numbers

_INDEX = "model_index.json"
_PIPELINES = ("DDIMPipeline", "DDPMPipeline", "PNDMPipeline")  # of a network and a scheduler with betas
_OUTPUTS = ("pil", "np", "pt")
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # what `snapshot_download` takes
_NO_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "variant", *_HUB)  # on a folder
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # owner/name


@dataclass(frozen=True)
class ImagePipelineOutput:
    """images: a list of B pictures ("pil"), or (B, H, W, C) in numpy ("np"), or (B, C, H, W) in torch ("pt")."""

    images: list[Any] | np.ndarray | Tensor

    def __getitem__(self, key: str | int | slice) -> Any:
        """By name, or by position as of the tuple that `return_dict=False` gives."""
        return {"images": self.images}[key] if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any]:
        return (self.images,)


class DDIMPipeline:
    """Pictures from noise, by a network that was trained on pictures: no text, no latents.

    unet: `ldm.modules.diffusionmodules.model.Model`, or diffusers' UNet2DModel; other modules can be used that are
    called as Model is, and have its `in_channels` and `resolution`. scheduler: a DDIM scheduler, ours or diffusers';
    any other with betas (DDPM, PNDM, …) is replaced by ours with the same config.
    """

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        self.unet = unet
        if "use_clipped_model_output" not in inspect.signature(scheduler.step).parameters:  # not DDIM's
            scheduler = DDIMScheduler.from_config(_with_betas(scheduler.config, "the scheduler"))
        self.scheduler = scheduler
        self._progress_bar_config: dict[str, Any] = {}

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` pictures in `num_inference_steps` steps.

        generator: where noise comes from, the global generator (None), one, or a list with one for each picture.
        eta: 0 (deterministic) to 1 (as much noise as DDPM). use_clipped_model_output: True derives eps anew from x0
        where the scheduler clips that (None: as the scheduler's config says). output_type: "pil", "np" or "pt", see
        `ImagePipelineOutput`; values of the last two are in [0, 1]. return_dict=False returns the tuple (images,).

        x_t stays in float32 where the network computes in half precision. Random numbers are drawn in x_t's precision.
        """
        _check_request(batch_size, eta, output_type)
        source = noise_source(batch_size, generator)  # which also checks the number of generators
        dtype = torch.promote_types(self.dtype, torch.float32)
        x = source.normal((batch_size, *_picture_shape(self.unet)), self.device, dtype, drawn=dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        x = self._denoise(x, eta=eta, use_clipped_model_output=use_clipped_model_output, generator=generator)
        images = _images(x, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _denoise(self, x: Tensor, **options: Any) -> Tensor:
        """From noise to x0, along the scheduler's timesteps; `options` are those of its steps."""
        timesteps, computed = self.scheduler.timesteps, self.dtype
        on_device = timesteps.to(x.device)[:, None].expand(-1, len(x))  # at once: no step waits for a copy
        for t, batch_t in zip(self.progress_bar(timesteps), on_device, strict=True):
            out = self.unet(x.to(computed), batch_t)
            out = out if isinstance(out, Tensor) else out.sample
            x = self.scheduler.step(out.to(x.dtype), t, x, **options).prev_sample
        return x

    @property
    def device(self) -> torch.device:
        return _first_tensor(self.unet).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return _first_tensor(self.unet).dtype

    def to(self, *args: Any, **kwargs: Any) -> DDIMPipeline:
        """Move the network to a device, a dtype, or both, as `nn.Module.to`; returns the pipeline."""
        self.unet.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of tqdm for the bar, such as disable=True; they replace those of an earlier call."""
        self._progress_bar_config = options

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> tqdm:
        """tqdm over `iterable`, or up to `total`, as configured."""
        return tqdm(iterable, **{"total": total} | self._progress_bar_config)

    # ------------------------------------------------------------------------------------------------------- folders

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        unet: nn.Module | None = None,
        scheduler: Any = None,
        **options: Any,
    ) -> DDIMPipeline:
        """The pipeline that diffusers, or `save_pretrained`, wrote to the folder `path`; diffusers is not needed.

        path: a folder; or a repository on the Hugging Face hub (owner/name), where huggingface_hub is installed, which
        takes cache_dir, force_download, local_files_only, revision and token from `options`. torch_dtype: what the
        network computes in (None: float32). unet, scheduler: taken instead of the folder's.

        Loads a `UNet2DModel` of the kind that the DDPM paper's networks have (CIFAR-10, LSUN, CelebA-HQ), with any
        scheduler that has betas, and the first folders, without sub-folders. CheckpointError says what is missing or
        what cannot be loaded; FileNotFoundError, that there is no such folder.
        """
        if not str(path):
            raise FileNotFoundError("path is empty: give the folder of a pipeline")
        folder = Path(path)
        if unknown := [name for name in options if name not in _NO_EFFECT]:
            raise TypeError(f"from_pretrained has no argument {some(unknown)}; it takes {some(sorted(_NO_EFFECT), 9)}")
        if not folder.is_dir():
            folder = _download(path, {name: options.pop(name) for name in _HUB if name in options})
        if options:
            warnings.warn(f"{some(options)} has no effect here: the folder is read as it is", stacklevel=2)
        _check_class(folder)
        if unet is None:
            unet = load_unet2d(_part(folder, "unet", "config.json"), torch_dtype)
        if scheduler is None:
            file = _part(folder, "scheduler", "scheduler_config.json") / "scheduler_config.json"
            scheduler = DDIMScheduler.from_config(_with_betas(read_json(file), repr(str(file))))
        return cls(unet, scheduler)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline to a folder, for `from_pretrained` here or in diffusers; its files there are replaced."""
        folder = Path(folder)
        if hasattr(self.unet, "save_pretrained"):  # diffusers' own
            self.unet.save_pretrained(folder / "unet")
        else:
            save_unet2d(self.unet, folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "DDIMPipeline",
            "scheduler": ["diffusers", type(self.scheduler).__name__],
            "unet": ["diffusers", "UNet2DModel"],
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")  # last: all is there


def _check_request(batch_size: int, eta: float, output_type: str) -> None:
    if output_type not in _OUTPUTS:
        choices = ", ".join(map(repr, _OUTPUTS))
        raise ValueError(f"output_type={output_type!r} is not known; choose one of {choices}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give the number of pictures, a whole number of at least 1")
    check_numbers(eta=eta)


def _first_tensor(module: nn.Module) -> Tensor:
    return next(chain(module.parameters(), module.buffers()), torch.empty(0))


def _picture_shape(unet: nn.Module) -> tuple[int, int, int]:
    """(C, H, W), by CompVis' names or diffusers'."""
    if hasattr(unet, "resolution"):
        return unet.in_channels, unet.resolution, unet.resolution
    size = unet.config.sample_size
    return (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))


def _images(x: Tensor, output_type: str) -> Any:
    """x0, its values about [-1, 1], as pictures."""
    if output_type == "pil":
        return to_pil(x)
    x = (x / 2 + 0.5).clamp(0, 1)
    return x if output_type == "pt" else x.permute(0, 2, 3, 1).float().cpu().numpy()


def _with_betas(config: Any, whose: str) -> Any:
    if "beta_schedule" not in config:
        kind = config.get("_class_name", "one of another kind")
        raise CheckpointError(f"{whose} is {kind}, without betas; DDIM needs those of a DDIM, DDPM or PNDM scheduler")
    return config


def _check_class(folder: Path) -> None:
    index = Options(folder / _INDEX)
    if index.kind not in _PIPELINES:
        raise CheckpointError(
            f"{str(folder)!r} is a {index.kind}, which DDIMPipeline cannot load; it loads {', '.join(_PIPELINES)}."
            " For Stable Diffusion and other latent models, use ldm.checkpoint.load_model or scripts/txt2img.py"
        )


def _part(folder: Path, name: str, file: str) -> Path:
    """Where a part's files are: in its sub-folder, or, as at first, beside model_index.json."""
    old = not (folder / name).is_dir() and (folder / file).is_file()
    return folder if old else folder / name


def _download(name: str | Path, options: dict[str, Any]) -> Path:
    """The local copy of a repository on the hub; its weights only if it is a pipeline of this kind, .bin only where
    there are no others."""
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name) or Path(name).exists():
        raise FileNotFoundError(f"{str(name)!r} is no folder; give that of a pipeline, with a {_INDEX} in it")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no folder here; to load the repository of this name from the hub, install huggingface_hub"
        ) from error
    folder = Path(snapshot_download(name, allow_patterns=["*.json"], **options))
    _check_class(folder)
    for suffix in ("safetensors", "bin"):
        weights = f"diffusion_pytorch_model.{suffix}"
        folder = Path(snapshot_download(name, allow_patterns=["*.json", f"unet/{weights}", weights], **options))
        if any(folder.rglob(weights)):
            break
    return folder
