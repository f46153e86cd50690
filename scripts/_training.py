"""A resumable optimisation loop: the state of a stage lives in one file, written to a temporary name and renamed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger("train")
SAVE_EVERY = 120  # seconds


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, flat, then a cosine down over the last half."""
    rest = min(1.0, 2 * (1 - step / steps))
    return peak * min(1.0, (step + 1) / warmup) * (0.5 - 0.5 * math.cos(math.pi * rest))


class Stage:
    """Trains `modules` for `steps` steps of AdamW and keeps an exponential average of their weights (`ema`)."""

    def __init__(self, path: Path, modules: nn.Module, steps: int, peak: float, ema: float):
        self.path, self.modules, self.steps, self.peak, self.ema = path, modules, steps, peak, ema
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
        self.step = 0
        self.average = {key: value.detach().clone() for key, value in modules.state_dict().items()}
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            for key, value in state["average"].items():
                self.average[key].copy_(value)

    def run(self, loss: Callable[[int], Tensor]) -> None:
        """Minimise `loss(step)` to the last step; afterwards the modules hold the averaged weights."""
        started, first, saved, recent = time.time(), self.step, time.time(), None
        while self.step < self.steps:
            torch.manual_seed(self.step)  # a resumed run draws what an undisturbed one would have drawn
            value = self._update(loss)
            recent = value if recent is None else 0.98 * recent + 0.02 * value
            if self.step % 50 == 0 or self.step == self.steps:
                speed = (time.time() - started) / (self.step - first)
                log.info("%s %d/%d loss %.5f %.3f s/step", self.path.stem, self.step, self.steps, recent, speed)
            if time.time() - saved > SAVE_EVERY or self.step == self.steps:
                self._save()
                saved = time.time()
        self.modules.load_state_dict(self.average)
        self.modules.eval()

    def _update(self, loss: Callable[[int], Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.peak)
        self.optimizer.zero_grad(set_to_none=True)
        value = loss(self.step)
        if not torch.isfinite(value):
            raise RuntimeError(f"{self.path.stem}: the loss is {value.item()} at step {self.step}; lower the rate")
        value.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, weight in self.modules.state_dict().items():
                self.average[key].lerp_(weight, 1 - decay)
        return value.item()

    def _save(self) -> None:
        state = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict()}
        temporary = self.path.with_suffix(".tmp")
        torch.save({**state, "step": self.step, "average": self.average}, temporary)
        temporary.replace(self.path)
