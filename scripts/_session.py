"""One run of a script: from its flags to a model that is ready, and from prompts and seeds to pictures.

    session = Session(opt)                        # all that can be known by now is checked, and nothing is loaded
    prompts = session.prompts(lines, PROMPT)
    with session.loaded(), gallery:
        for jobs in session.batches(prompts):     # [(prompt, seed), …], n_samples at a time
            gallery.add(session.sample(jobs, shape), session.settings(jobs))

Every picture has a seed of its own, so it is the same alone, in a batch, and in another batch size.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _approximate
import _config
import _low_mem
import _machine
import _model
import _trajectory

Jobs = Sequence[tuple[str, int]]  # of a batch: (prompt, seed) of each picture


class Session:
    """The model and the sampler that the flags ask for; `opt` has those of `_cli.add_model_flags` and, for all but
    `loaded`, those of `_cli.add_prompt_flags` and `add_sampling_flags`.

    Before `loaded`, `config` is checked, and these are known: `kind`, what the model is told ("text", "class" or
    "nothing"), `device`, `dtype`, and `options`, the arguments of the sampler's `sample`. Inside, there are `model` and
    `sampler`, too.
    """

    def __init__(
        self,
        opt: argparse.Namespace,
        *,
        shown: Collection[str] = (),
        only: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        """`shown`: the conditioning_keys, beside "crossattn", of models that the script shows a picture; `only`: the
        class of ldm.models.diffusion.ddpm that it is for; `defaults`: options of the sampler where neither a flag nor
        the config says them, if other than CompVis' txt2img.

        ValueError for a model that the script cannot serve, and for all else that is wrong with the flags.
        """
        self.opt = opt
        self.config, self._checkpoint, self._source = _model.open_model(opt)
        self.global_step = self._checkpoint.global_step
        if only:
            _model.check_class(self.config, only)
        self.kind = _model.told_by(self.config, shown)
        self.device = _machine.pick_device(opt.device)
        self.dtype = _machine.pick_dtype(opt.precision or self.config.precision, self.device)
        self._defaults, self._low_mem, self._texts = defaults, opt.low_mem, []
        self._trajectory: _trajectory.Trajectory | None = None
        self._choose_sampler()
        _approximate.check(opt)
        if self._embeddings:
            from ldm.checkpoint import load_embeddings

            for path in self._embeddings:  # they are small, and their errors come before a model is loaded
                load_embeddings(path)

    def _choose_sampler(self) -> None:
        self._class = _config.sampler_class(self.config, self.opt)
        self._built, self.options = _config.sampler_options(self.config, self._class, self.opt, self._defaults)
        if self._low_mem:
            self.options |= _low_mem.options(self._class, {**self._built, **self.options})
        self._check_sampler(getattr(self.opt, "ddim_eta", None))

    def variant(self, opt: argparse.Namespace) -> Session:
        """The same model, which is loaded, with what other flags say of the sampler and of guidance."""
        other = copy.copy(self)
        other.opt = opt
        other._choose_sampler()
        other.sampler = other._class(self.model, **other._built)
        return other

    def _check_sampler(self, eta: float | None) -> None:
        """S, and an eta that was said; a default of eta is for samplers that know noise."""
        from ldm.sampling.timesteps import check_count

        if (total := _config.timesteps(self.config)) is not None:
            given = getattr(self.opt, "ddim_steps", None) is not None
            check_count(self.options["S"], total, "--ddim_steps" if given else "sampler.params.S =")
        said = eta is not None or "eta" in (self.config.sampler.get("params") or {})
        if getattr(self._class, "DETERMINISTIC", False) and not said:
            self.options["eta"] = 0.0
        if check_eta := getattr(self._class, "check_eta", None):  # a sampler of one's own need not have it
            check_eta(self.options["eta"])

    @property
    def guided(self) -> bool:
        return guided(self.options)

    @property
    def _embeddings(self) -> Sequence[str]:
        """The files of --embedding_path, which not every script has."""
        return getattr(self.opt, "embedding_path", ())

    def prompts(self, lines: Sequence[str] | None, default: str) -> list[str]:
        """What is drawn in each iteration: `lines`, else --prompt or `default` n_samples times.

        ValueError for what the model cannot be told, a warning for what has no effect. A model that is told nothing is
        not guided from here on.
        """
        opt = self.opt
        prompts = list(lines or [default if opt.prompt is None else opt.prompt] * opt.n_samples)
        if self.kind == "nothing":
            self.options, prompts = _model.unguided(self.options, opt), [""] * opt.n_samples
        if self.kind == "class":
            _model.check_classes(self.config, lines or [opt.prompt], opt.negative_prompt, self.guided)
        if opt.negative_prompt and not self.guided:
            warnings.warn("--negative_prompt has no effect with --scale 1, which is no guidance", stacklevel=2)
        if self.kind == "text":
            self._texts = [*prompts, *([opt.negative_prompt] if self.guided else [])]
        return prompts

    def model_sha256(self) -> str:
        """Of what the model is beside its name: the config, the weights and the learned words. Before `loaded`."""
        from omegaconf import OmegaConf

        from ldm.checkpoint import weights_sha256

        config = json.dumps(OmegaConf.to_container(self.config.model), sort_keys=True)
        parts = [config.encode(), weights_sha256(self._checkpoint.weights).encode()]
        parts += [Path(path).read_bytes() for path in self._embeddings]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    @contextlib.contextmanager
    def loaded(self):
        """Inside, `model` (which it gives) and `sampler` are there; averaged weights are in use, and no gradients."""
        import torch

        from ldm.checkpoint import load_model

        opened, self._checkpoint = self._checkpoint, None
        device = "cpu" if self._low_mem else self.device
        self.model = load_model(self.config, opened, device=device, dtype=self.dtype, ema=self.opt.ema)
        if self._embeddings:
            from ldm.modules.embedding_manager import add_embeddings

            words = ", ".join(map(repr, add_embeddings(self.model, self._embeddings)))
            print(f"learned words, for prompts to use: {words}", file=sys.stderr)
        del opened  # where the model has copies of its weights, the file need not stay in memory
        with torch.no_grad():
            if self._low_mem:
                parks = not {**self._built, **self.options}.get("quantize_x0")  # else it is asked at each step
                _low_mem.settle(self.model, self.device, self._texts, parks=parks)
            _machine.prepare(self.model, compile=self.opt.compile)
            self.sampler = self._class(self.model, **self._built)
            with _approximate.applied(self.model, self.opt):
                yield self.model

    def share(self, other: Session) -> None:
        """Take the model that `other` has loaded, whose sampler this one's may differ from."""
        self.model, self.sampler = other.model, self._class(other.model, **self._built)

    def batches(self, prompts: Sequence[str]) -> Iterable[list[tuple[str, int]]]:
        """`prompts` once in each iteration, each with its seed, n_samples at a time; a bar if there are several."""
        from tqdm import tqdm

        opt = self.opt
        count = -(-opt.n_iter * len(prompts) // opt.n_samples)
        jobs = plan(prompts, opt)
        return tqdm(batches(jobs, opt.n_samples), desc="batches", total=count, disable=count == 1)

    def sample(
        self,
        jobs: Jobs,
        shape: tuple,
        *,
        shown: Mapping[str, Any] | None = None,
        progress: bool = True,
        **arguments: Any,
    ):
        """The pictures of a batch, (B, 3, H, W) in about [-1, 1]; `shape` is that of one's latents.

        `shown`: what the model is shown beside the prompts, such as {"c_concat": [(B, C, h, w)]}; `arguments`: more for
        the sampler's `sample`.
        """
        prompts, negative = [prompt for prompt, _ in jobs], self.opt.negative_prompt
        cond, uncond = _model.conditionings(self.model, self.kind, prompts, negative, self.guided, shown)
        if getattr(self.opt, "save_steps", None):
            arguments["img_callback"] = self._trajectory = _trajectory.Trajectory()
        return sample(self.model, self.sampler, jobs, shape, cond, uncond, {**self.options, **arguments}, progress)

    def steps(self, shown: Callable[[Any], Any] = lambda images: images) -> _trajectory.Frames:
        """What --save_steps asks for of the last batch, each as `shown` makes it of pictures; else nothing."""
        if self._trajectory is None:
            return []
        return self._trajectory.frames(self.opt.save_steps, lambda x0: shown(_machine.decode(self.model, x0)))

    def settings(self, jobs: Jobs, **more: Any) -> list[dict[str, Any]]:
        """What each picture's file tells: with it the picture can be made again."""
        names = {"S": "steps", "unconditional_guidance_scale": "scale"}
        made = {
            "negative_prompt": self.opt.negative_prompt,
            "sampler": self._class.__name__.removesuffix("Sampler"),
            **self._source,
            "precision": str(self.dtype).removeprefix("torch."),
            **{names.get(key, key): value for key, value in {**self._built, **self.options}.items()},
            **_approximate.settings(self.opt),
            **({"embeddings": [Path(path).name for path in words]} if (words := self._embeddings) else {}),
            **more,
        }
        return [{"prompt": prompt, "seed": seed, **made} for prompt, seed in jobs]


def measured(config, checkpoint, opt: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """(model, sampler, options of its `sample`) of a script that measures, and has the flags of the model alone."""
    from ldm.checkpoint import load_model

    device = _machine.pick_device(opt.device)
    dtype = _machine.pick_dtype(opt.precision or config.precision, device)
    sampler_class = _config.sampler_class(config)
    built, options = _config.sampler_options(config, sampler_class, opt)
    model = load_model(config, checkpoint, device=device, dtype=dtype, ema=opt.ema)
    return model, sampler_class(model, **built), options


def plan(prompts: Sequence[str], opt: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(prompt, seed) of every picture in its order: `prompts` once in each iteration."""
    for iteration in range(opt.n_iter):
        for k, prompt in enumerate(prompts):
            offset = k % opt.n_samples if opt.fixed_code else iteration * len(prompts) + k
            yield prompt, opt.seed + offset


def batches(jobs: Iterator[tuple[str, int]], size: int) -> Iterator[list[tuple[str, int]]]:
    """`size` jobs at a time, and at last those that are left."""
    while batch := list(itertools.islice(jobs, size)):
        yield batch


def guided(options: Mapping[str, Any]) -> bool:
    return options["unconditional_guidance_scale"] != 1 or options.get("ucg_schedule") is not None


def sample(model, sampler, jobs: Jobs, shape: tuple, cond, uncond, options: Mapping[str, Any], progress=True):
    """The pictures of a batch of (prompt, seed), (B, 3, H, W) in about [-1, 1]; `options` are `sampler.sample`'s."""
    with finite(model):
        latents, _ = sampler.sample(
            batch_size=len(jobs),
            shape=shape,
            conditioning=cond,
            unconditional_conditioning=uncond,
            seeds=[seed for _, seed in jobs],
            progress=progress,
            **options,
        )
    return _machine.decode(model, latents)


@contextlib.contextmanager
def finite(model):
    """Inside, an overflow of the network is a ValueError with the flag that helps."""
    try:
        yield
    except FloatingPointError as error:  # its remedy is the library's; here there is a flag
        raise ValueError(_machine.overflow(model, str(error).partition(",")[0])) from error
