"""The bundled model on captions that it never saw: its pictures against fresh scenes, and against their captions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import _config
import _machine
import numpy as np
import score_shapes

from evaluation import NOISE
from evaluation.distances import frechet

FRESH = 2000  # scenes
POOL = 4  # latents a side are taken together: 2 × 2 × 8 numbers describe a picture


class Scenes:
    """A model that draws captioned scenes, and what its pictures are held against."""

    def __init__(self, model, sampler, options: dict[str, Any], n: int, batch: int):
        self.model, self.sampler, self.options, self.batch = model, sampler, options, batch
        self.descriptions = score_shapes.unseen(n)
        self.shape = _config.latent_shape(_config.load_config(None), None, None, None, None)
        self.fresh = self.features(_fresh(FRESH))

    def draw(self, **options: Any) -> tuple[list[np.ndarray], float]:
        """(pictures, seconds of one); picture i has the seed i."""
        began = time.perf_counter()
        pictures = score_shapes.draw(
            self.model, self.sampler, self.descriptions, self.shape, {**self.options, **options}, self.batch, 0
        )
        return pictures, (time.perf_counter() - began) / len(pictures)

    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 32): the autoencoder's latents, averaged over quarters of the picture."""
        import torch
        import torch.nn.functional as F

        found = []
        for k in range(0, len(pictures), 100):
            x = torch.from_numpy(np.stack(pictures[k : k + 100])).permute(0, 3, 1, 2).float() / 127.5 - 1
            found.append(F.avg_pool2d(_machine.encode(self.model, x), POOL).flatten(1).cpu().double())
        return torch.cat(found).numpy()

    def right(self, pictures: Sequence[np.ndarray]) -> float:
        """Per cent of the pictures that have every part of their captions."""
        from ldm.data.checker import score

        return 100 * np.mean([all(score(p, d).values()) for p, d in zip(pictures, self.descriptions, strict=True)])

    def distance(self, pictures: Sequence[np.ndarray]) -> float:
        """Fréchet distance of the features from those of fresh scenes, ×1000."""
        return 1000 * frechet(self.features(pictures), self.fresh)


def _fresh(n: int) -> list[np.ndarray]:
    from ldm.data.shapes import Shapes

    scenes = Shapes(score_shapes.SEED + 1, test=True)
    return [scenes[k][0] for k in range(n)]


def by_steps(scenes: Scenes, steps: Sequence[int]) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows for each S: the distance and the captions for each noise; and of η = 0, time, and likeness to the most."""
    distances, captions, alike, drawn = [], [], [], {}
    for count in steps:
        distance: dict[str, Any] = {"S": count}
        caption: dict[str, Any] = {"S": count}
        for name, options in NOISE.items():
            pictures, seconds = scenes.draw(S=count, **options)
            distance[name], caption[name] = scenes.distance(pictures), scenes.right(pictures)
            if name == "0":
                drawn[count] = np.stack(pictures).astype(float) / 255, seconds
        distances.append(distance)
        captions.append(caption)
    most = drawn[steps[-1]][0]
    for count, (pictures, seconds) in drawn.items():
        apart = float(np.abs(pictures - most).mean())
        alike.append({"S": count, "seconds a picture": seconds, f"from the picture of S = {steps[-1]}": apart})
    return distances, captions, alike


def by_scale(scenes: Scenes, scales: Sequence[float], steps: int) -> list[dict[str, Any]]:
    """A row for each scale of guidance: captions and distance."""
    rows = []
    for scale in scales:
        pictures, _ = scenes.draw(S=steps, eta=0.0, unconditional_guidance_scale=scale)
        rows.append(
            {"scale": scale, "every part right, %": scenes.right(pictures), "distance": scenes.distance(pictures)}
        )
    return rows
