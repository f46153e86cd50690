"""Classifier-free guidance (Ho & Salimans 2022): pair the conditionings, run the model, combine its two answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from .values import as_interval, as_number, to_device, version

# A tensor, or lists and dicts of tensors, numbers and None, nested. What else the model understands passes untouched.
Conditioning = Any


class Guide:
    """A model, asked again and again under the same conditionings, its answers combined: called with what one step is.

    uncond + scale (cond − uncond), in x's precision; with `image`, what the picture alone says, two scales:
    uncond + image_scale (image − uncond) + scale (cond − image), Brooks et al. 2023 (InstructPix2Pix), eq. 3.
    `rescale`: φ of `rescale_guidance`.

    The model is asked only for what does not cancel: at scale 1, or without uncond, for cond alone. One call for all,
    where they can be concatenated, else, or with `batched=False` (less memory), one after the other. Linear in eps, v
    and x0 alike: at one noise level each is an affine function of the other.
    """

    def __init__(
        self, model, cond: Conditioning, uncond: Conditioning = None, *, image: Conditioning = None,
        rescale: float = 0.0, batched: bool = True, timesteps: Sequence[int] = (),
    ):  # fmt: skip
        self.cond, self.uncond, self.image = cond, uncond, image
        self.rescale, self.batched, self.timesteps = rescale, batched, timesteps
        self._plans: dict[tuple, tuple] = {}  # by the scales: what to ask for
        self._times: dict[int, Sequence[Tensor]] = {}  # by how many: for each of `timesteps`
        self.ask(model)

    def ask(self, model) -> None:
        """From here on another model."""
        self.model = model
        self._share = getattr(model, "share_latents", None)
        own = getattr(model.apply_model, "__self__", None)
        if getattr(self._share, "__self__", own) is not own:  # of a model inside this one, which may do more
            self._share = None
        self._joined: dict[int, tuple] = {}  # by how many: all that is in them and was made of them, and the two joined

    def __call__(self, x: Tensor, t: Tensor | int, scale: float = 1.0, image_scale: float = 1.0) -> Tensor:
        """The guided output for latents `x` (B, …) at timesteps `t` (B,), or at the t-th of `timesteps`."""
        key = scale, image_scale
        if key not in self._plans:
            self._plans[key] = chain(self.cond, self.uncond, scale, self.image, image_scale)
        conds, scales = self._plans[key]
        if len(conds) == 1:
            shared = self._share and self.joined(conds)[1]
            return run_model(self.model, x, self.times(t, x.shape[0], x), conds[0] if shared is None else shared)
        outputs = self.outputs(x, t, conds)
        guided = torch.lerp(outputs[0], outputs[1], scales[0])
        for factor, below, above in zip(scales[1:], outputs[1:-1], outputs[2:], strict=True):
            guided += factor * (above - below)
        return rescale_guidance(guided, outputs[-1], self.rescale) if self.rescale else guided

    def outputs(self, x: Tensor, t: Tensor | int, conds: Sequence[Conditioning]) -> Sequence[Tensor]:
        """The model's output for each of the conditionings, by one call if they can be concatenated."""
        n, batch = len(conds), x.shape[0]
        joined, shared = self.joined(conds) if self.batched else (None, None)
        if shared is not None:
            return run_model(self.model, x, self.times(t, batch, x), shared, n).chunk(n)
        if joined is not None:
            return run_model(self.model, torch.cat([x] * n), self.times(t, n * batch, x), joined).chunk(n)
        return [run_model(self.model, x, self.times(t, batch, x), cond) for cond in conds]

    def times(self, t: Tensor | int, count: int, x: Tensor) -> Tensor:
        """The timesteps of `count` latents. Those of `timesteps` go to the device once, all together."""
        if isinstance(t, Tensor):
            return t if len(t) == count else t.repeat(count // len(t))
        if count not in self._times:
            rows = torch.tensor(self.timesteps).repeat_interleave(count).view(-1, count)
            self._times[count] = to_device(rows, x.device).unbind()
        return self._times[count][t]

    def joined(self, conds: Sequence[Conditioning]) -> tuple[Conditioning, Conditioning]:
        """The conditionings along the batch, and such as the model wants for latents that are not repeated, or None.

        Made once, so that a model can tell that they are the same as in the step before; again if they, or what was
        made of them, changed. (What is written into a tensor of inference mode is not seen: put another in its place.)
        """
        parts, state, made = self._joined.get(len(conds), ([], [], None))
        now = _contents((conds, made))
        if now[1] != state or len(now[0]) != len(parts) or not all(map(is_, now[0], parts)):
            shared = self._share(conds) if self._share else None
            made = (pair_conditionings(*conds) if shared is None else None), shared
            self._joined[len(conds)] = *_contents((conds, made)), made
        return made


def guided_output(
    model, x: Tensor, t: Tensor, cond: Conditioning, uncond: Conditioning = None, scale: float = 1.0, *,
    image: Conditioning = None, image_scale: float = 1.0, rescale: float = 0.0, batched: bool = True,
) -> Tensor:  # fmt: skip
    """`Guide`, asked once."""
    return Guide(model, cond, uncond, image=image, rescale=rescale, batched=batched)(x, t, scale, image_scale)


def chain(
    cond: Conditioning, uncond: Conditioning, scale: float, image: Conditioning = None, image_scale: float = 1.0
) -> tuple[list[Conditioning], list[float]]:
    """What to ask the model for, from what says least to `cond`, and the scale of each difference on the way."""
    two = image is not None and (uncond is None or image_scale != scale)  # at equal scales what `image` says cancels
    conds, scales = ([uncond, image, cond], [image_scale, scale]) if two else ([uncond, cond], [scale])
    while scales and (conds[0] is None or scales[0] == 1):
        del conds[0], scales[0]
    return conds, scales


def run_model(model, x: Tensor, t: Tensor, cond: Conditioning, n: int = 1) -> Tensor:
    """The network's output in the latents' precision, whatever it computes in. ValueError unless of x's shape.

    `n`: under `cond` that the model's `share_latents` gave, the answers to so many conditionings along the batch.
    """
    output = model.apply_model(x, t, cond)
    due = x.shape if n == 1 else torch.Size((n * len(x), *x.shape[1:]))
    if not isinstance(output, Tensor) or output.shape != due:
        answer = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model returned {answer} for latents of shape {tuple(x.shape)}: a tensor of shape {tuple(due)} is due "
            "(a network that also predicts its variance must drop those channels in apply_model)"
        )
    return output if output.dtype == x.dtype else output.to(x.dtype)


def rescale_guidance(guided: Tensor, given: Tensor, phi: float) -> Tensor:
    """Give `guided` the standard deviation of `given`, to the part φ (Lin et al. 2023, eq. 15 and 16), per sample."""
    dims = tuple(range(1, guided.ndim))
    ratio = given.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return phi * ratio * guided + (1 - phi) * guided


def pair_conditionings(*conds: Conditioning) -> Conditioning | None:
    """[uncond; cond], or more, along the batch, leaf by leaf, in the form of the last; None where they do not match."""
    try:
        return _pair(conds)
    except _Mismatch:
        return None


class _Mismatch(Exception):
    pass


def _pair(conds: Sequence[Conditioning]) -> Conditioning:
    cond, others = conds[-1], conds[:-1]
    if isinstance(cond, Tensor) and cond.ndim > 0:
        if all(isinstance(other, Tensor) and other.shape == cond.shape for other in others):
            return torch.cat(list(conds))
    elif isinstance(cond, dict):
        if all(isinstance(other, dict) and other.keys() == cond.keys() for other in others):
            return {key: _pair([c[key] for c in conds]) for key in cond}
    elif isinstance(cond, list | tuple):
        if all(isinstance(other, list | tuple) and len(other) == len(cond) for other in others):
            pairs = [_pair(parts) for parts in zip(*conds, strict=True)]
            return tuple(pairs) if isinstance(cond, tuple) else pairs
    elif isinstance(cond, int | float | None) and all(not isinstance(o, Tensor) and o == cond for o in others):
        return cond  # anything else may hold one entry for each sample, which only the model could double
    raise _Mismatch


def check_forms(uncond: Conditioning, cond: Conditioning, path: str = "unconditional_conditioning") -> None:
    """TypeError if one is a dict, list or tensor where the other is not, or their keys differ. None goes with all."""
    if uncond is None or cond is None:
        return
    forms = (Tensor, dict, list | tuple)
    for form in forms:
        if isinstance(uncond, form) != isinstance(cond, form):
            raise TypeError(
                f"{path} is a {type(uncond).__name__}, but the conditioning is a {type(cond).__name__}: "
                "give both in the same form"
            )
    if isinstance(cond, dict):
        if uncond.keys() != cond.keys():
            raise TypeError(f"{path} has the keys {sorted(uncond)}, but the conditioning has {sorted(cond)}")
        for key in cond:
            check_forms(uncond[key], cond[key], f"{path}[{key!r}]")


def check_batch(cond: Conditioning, batch_size: int, name: str) -> None:
    """ValueError if a tensor of the conditioning is for another batch size; the message says which."""
    for path, tensor in _tensors(cond, name):
        if tensor.ndim and len(tensor) != batch_size:
            raise ValueError(
                f"{path} has shape {tuple(tensor.shape)}, so it is for {len(tensor)} samples, but batch_size is "
                f"{batch_size}: repeat or slice it to one row for each sample"
            )


def _contents(cond: Conditioning) -> tuple[list[Any], list[int]]:
    """All that is in it, keys too; and what would tell of a change: how much there is, and the tensors' versions."""
    parts: list[Any] = []
    state: list[int] = []
    ahead = [cond]
    for part in ahead:  # which grows as it goes
        if isinstance(part, Tensor):
            parts.append(part)
            state.append(version(part))
        elif isinstance(part, dict | list | tuple):
            state.append(len(part))
            ahead += (*part, *part.values()) if isinstance(part, dict) else part
        else:
            parts.append(part)
    return parts, state


def _tensors(cond: Conditioning, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(cond, Tensor):
        yield path, cond
    elif isinstance(cond, dict):
        for key, value in cond.items():
            yield from _tensors(value, f"{path}[{key!r}]")
    elif isinstance(cond, list | tuple):
        for i, value in enumerate(cond):
            yield from _tensors(value, f"{path}[{i}]")


def guidance_scales(
    scale: float,
    timesteps: Sequence[int],
    schedule: Sequence[float] | None = None,
    interval: tuple[float, float] | None = None,
) -> list[float]:
    """The scale of each step, in the order of `timesteps`.

    `schedule`: one scale for each step, in that order, instead of `scale`; negative ones push away from `cond`.
    `interval` = (lo, hi), in timesteps: guidance acts where lo ≤ t ≤ hi, elsewhere the scale is 1 (Kynkäänniemi et al.
    2024). ValueError for a schedule of another length, a scale that is not finite, or lo > hi.
    """
    given = [scale] * len(timesteps) if schedule is None else list(schedule)
    scales = [as_number(s) for s in given]
    if len(scales) != len(timesteps):
        raise ValueError(
            f"ucg_schedule holds {len(scales)} scales ({_preview(given)}), but there are {len(timesteps)} steps: "
            "give one scale for each step, the noisiest first"
        )
    if not all(map(math.isfinite, scales)):
        name = "unconditional_guidance_scale" if schedule is None else "ucg_schedule"
        raise ValueError(f"{name} = {scale if schedule is None else _preview(given)}: give finite numbers")
    if interval is None:
        return scales
    lo, hi = as_interval(interval)
    return [s if lo <= t <= hi else 1.0 for s, t in zip(scales, timesteps, strict=True)]


def _preview(values: Sequence[float]) -> str:
    return ", ".join(f"{v}" for v in values[:4]) + (", …" if len(values) > 4 else "")
