"""A training, step by step: for a loop of your own, or for a trainer that calls these by Lightning's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm.util import instantiate_from_config

Losses = dict[str, Tensor]


class Training:
    """What a diffusion model does in a training. A loop in plain PyTorch:

        model.learning_rate = 1e-4
        optimizer = model.configure_optimizers()
        for number, batch in enumerate(loader):
            model.on_train_batch_start(batch, number)
            model.training_step(batch, number).backward()
            optimizer.step()
            optimizer.zero_grad()
            model.on_train_batch_end()

    Under a Lightning trainer (`lightning.py`) the losses go to its loggers; here they are what `shared_step` returns.
    `ucg_training`: {key of the batch: {"p": probability, "val": what stands for nothing said}}, for classifier-free
    guidance. `scheduler_config`: {"target", "params"} of an object whose `schedule(step)` is what the learning rate is
    multiplied by. `monitor` and `log_every_t` are for trainers and callbacks that read them.
    """

    learning_rate: float | None = None
    scheduler_config: Mapping[str, Any] | None = None
    ucg_training: Mapping[str, Mapping[str, Any]] = {}

    def shared_step(self, batch: Mapping[str, Any], **kwargs: Any) -> tuple[Tensor, Losses]:
        """The loss of a batch, and what to log: "train/loss" and so on, or "val/…" in eval().

        `kwargs` go to `forward`, and from there to `p_losses`.
        """
        return self(self.get_input(batch, self.first_stage_key), **kwargs)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Tensor:
        """The loss to call `backward` on."""
        loss, losses = self.shared_step(self._with_some_unsaid(batch))
        self._report(losses, batch, prog_bar=True, on_step=True)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Losses:
        """The losses of a batch, and under names that end with "_ema" those of the averaged weights."""
        _, losses = self.shared_step(batch)
        with self.ema_scope():
            _, averaged = self.shared_step(batch)
        losses |= {f"{name}_ema": value for name, value in averaged.items()}
        self._report(losses, batch, prog_bar=False, on_step=False)
        return losses

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """To be called before each step."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """To be called after each step of the optimizer: takes the weights into their average."""
        if self.model_ema is not None and any(p.requires_grad for p in self.model.parameters()):
            self.model_ema(self.model)

    def configure_optimizers(self) -> Optimizer | tuple[list[Optimizer], list[dict[str, Any]]]:
        """AdamW at `learning_rate` on what is trained; with a `scheduler_config` in Lightning's form, [optimizer] and
        [{"scheduler": …, "interval": "step"}], whose `step()` is for after each step."""
        if self.learning_rate is None:
            raise ValueError("there is no learning rate: set model.learning_rate, to 1e-4 say, before the training")
        parameters = [p for part in self.trained_parts() for p in part.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(
                f"nothing of this {type(self).__name__} can be trained: all its parts are frozen (as by an"
                " embedding_manager); call requires_grad_(True) on the one to train, such as model.model"
            )
        optimizer = AdamW(parameters, lr=self.learning_rate)
        if self.scheduler_config is None:
            return optimizer
        scheduler = LambdaLR(optimizer, instantiate_from_config(self.scheduler_config).schedule)
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 1}]

    @property
    def use_scheduler(self) -> bool:
        return self.scheduler_config is not None

    def trained_parts(self) -> Iterator[nn.Module]:
        """The parts whose weights a training moves."""
        yield self.model

    def _with_some_unsaid(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch, some of whose entries are replaced by what `ucg_training` says; the caller's stays as it is."""
        unsaid = {key: _unsaid(self._of_batch(batch, key), **rule) for key, rule in self.ucg_training.items()}
        return {**batch, **unsaid} if unsaid else batch

    def _of_batch(self, batch: Mapping[str, Any], key: str) -> Any:
        if key not in batch:
            raise KeyError(f"ucg_training is to replace {key!r} in batches that have only {', '.join(batch)}")
        return batch[key]

    def _report(self, losses: Losses, batch: Mapping[str, Any], **how: bool) -> None:
        """To a trainer's loggers, where this is a LightningModule."""
        if hasattr(self, "log_dict"):
            size = len(batch[self.first_stage_key]) if self.first_stage_key in batch else None
            self.log_dict(losses, on_epoch=True, logger=True, batch_size=size, **how)


def check_ucg_training(rules: Mapping[str, Mapping[str, Any]]) -> None:
    """ValueError for rules that `training_step` could not follow."""
    for key, rule in rules.items():
        if not hasattr(rule, "keys") or set(rule) - {"p", "val"} or "p" not in rule or not 0 <= rule["p"] <= 1:
            raise ValueError(
                f"ucg_training has {rule!r} for {key!r}; give p, a probability from 0 to 1, and val, what an entry is"
                " replaced by (left out: the empty text)"
            )


def _unsaid(values: Sequence[Any] | Tensor, p: float, val: Any = None) -> Sequence[Any] | Tensor:
    """`values` with each replaced by `val` with probability `p`."""
    drop = torch.rand(len(values)) < p
    values = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if isinstance(values, Tensor):
        if val is None:
            raise ValueError("ucg_training has no val for an entry of numbers: say what stands for nothing said")
        replaced = values.clone()
        replaced[drop.to(values.device)] = torch.as_tensor(val, dtype=values.dtype, device=values.device)
        return replaced
    val = "" if val is None else val
    return [val if dropped else value for dropped, value in zip(drop.tolist(), values, strict=True)]
