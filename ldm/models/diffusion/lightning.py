"""The bridge to Lightning, for those who train with its Trainer. Nothing else here imports it (extra: `train`).

class ControlLDM(LatentDiffusion, LightningMixin):
    …

Trainer(max_steps=1000).fit(model, dataloader)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ldm.models.diffusion.base import DDPM


def _lightning_module() -> type:
    """LightningModule of the package that is in use already, `lightning` or `pytorch_lightning`, else of either.

    The two are copies of each other, and the Trainer of one refuses the modules of the other.
    """
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        from pytorch_lightning import LightningModule

        return LightningModule
    try:
        from lightning.pytorch import LightningModule
    except ImportError:
        try:
            from pytorch_lightning import LightningModule
        except ImportError as error:
            raise ImportError(
                "LightningMixin needs Lightning: pip install 'latent-diffusion-sampler[train]' or 'lightning'"
            ) from error
    return LightningModule


class LightningMixin(_lightning_module()):
    """Put behind a model of `ldm.models.diffusion.ddpm` among a class's bases, it makes a LightningModule of it.

    The steps, hooks and optimizers are the model's own (`training.py`), and so is the state dict: a checkpoint of a
    Trainer has the keys that the model has without Lightning, and `ldm.checkpoint.load_model` reads it. The Trainer
    must be of the package that this module took, `lightning.pytorch` or `pytorch_lightning`: import that one first.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """TypeError before the model: there LightningModule's methods, which do nothing, would hide the model's."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if DDPM in order and order.index(LightningMixin) < order.index(DDPM):
            given = ", ".join(base.__name__ for base in cls.__bases__)
            right = ", ".join(base.__name__ for base in sorted(cls.__bases__, key=_is_lightning))
            raise TypeError(
                f"class {cls.__name__}({given}): LightningMixin goes behind the model, as in "
                f"class {cls.__name__}({right})"
            )

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Lightning's; without a Trainer, where a loop of one's own takes the steps, there is nowhere to log to."""
        if self._trainer is not None or self._fabric is not None:
            super().log_dict(dictionary, *args, **kwargs)


def _is_lightning(base: type) -> bool:
    return issubclass(base, LightningMixin)
