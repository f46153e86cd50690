"""The bundled model on captions that it never saw: its pictures against fresh scenes, and against their captions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import _config
import _machine
import numpy as np
import score_shapes

from evaluation import NOISE, SPACINGS
from evaluation.distances import frechet

FRESH = 2000  # scenes
REAL = 12  # times that real ones are drawn, to see how far chance goes
POOL = 4  # latents a side are taken together: 2 × 2 × 8 numbers describe a picture


class Scenes:
    """A model that draws captioned scenes, and what its pictures are held against."""

    def __init__(self, model, sampler, options: dict[str, Any], n: int, batch: int, seed: int = 0):
        self.model, self.sampler, self.options, self.batch, self.seed = model, sampler, options, batch, seed
        self.descriptions = score_shapes.unseen(n)
        self.shape = _config.latent_shape(_config.load_config(None), None, None, None, None)
        self.fresh = self.features(_fresh(FRESH))

    def draw(self, n: int | None = None, **options: Any) -> tuple[list[np.ndarray], float]:
        """(pictures of the first `n` captions, seconds of one); picture i has the seed `seed` + i."""
        began = time.perf_counter()
        asked, options = self.descriptions[:n], {**self.options, **options}
        pictures = score_shapes.draw(self.model, self.sampler, asked, self.shape, options, self.batch, self.seed)
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

    def real(self) -> list[float]:
        """Distances of as many scenes of the same captions, drawn some times by the program that the model learned
        from."""
        from ldm.data import shapes

        return [
            self.distance([shapes.draw(d, np.random.default_rng((j, k))) for k, d in enumerate(self.descriptions)])
            for j in range(REAL)
        ]


def _fresh(n: int) -> list[np.ndarray]:
    from ldm.data.shapes import Shapes

    scenes = Shapes(score_shapes.SEED + 1, test=True)
    return [scenes[k][0] for k in range(n)]


def by_steps(scenes: Scenes, steps: Sequence[int], scale: float) -> Iterator[tuple[dict, dict]]:
    """A row of distances and one of captions for each S, with a column for each noise."""
    for count in steps:
        distances: dict[str, Any] = {"S": count}
        captions: dict[str, Any] = {"S": count}
        for name, noise in NOISE.items():
            pictures, _ = scenes.draw(S=count, unconditional_guidance_scale=scale, **noise)
            distances[name], captions[name] = scenes.distance(pictures), scenes.right(pictures)
        yield distances, captions


def by_spacing(scenes: Scenes, steps: Sequence[int], scale: float) -> Iterator[dict]:
    """A row of distances for each S, with a column for each spacing and the least and the most noise of DDIM."""
    for count in steps:
        row: dict[str, Any] = {"S": count}
        for spacing, noise in itertools.product(SPACINGS, ("0", "1")):
            pictures, _ = scenes.draw(
                S=count, ddim_discretize=spacing, unconditional_guidance_scale=scale, **NOISE[noise]
            )
            row[f"{spacing}, {noise}"] = scenes.distance(pictures)
        yield row


def alike(scenes: Scenes, steps: Sequence[int]) -> list[dict]:
    """A row for each S, of one batch: the time, and how far its pictures are from those of most steps from the same
    noise."""
    drawn = {}
    for count in steps:
        pictures, seconds = scenes.draw(scenes.batch, S=count, eta=0.0)
        drawn[count] = np.stack(pictures).astype(float) / 255, seconds
    most = drawn[steps[-1]][0]
    apart = f"from the picture of S = {steps[-1]}"
    return [
        {"S": count, "seconds a picture": seconds, apart: float(np.abs(pictures - most).mean())}
        for count, (pictures, seconds) in drawn.items()
    ]


def by_scale(scenes: Scenes, scales: Sequence[float], steps: int) -> Iterator[dict]:
    """A row for each scale of guidance: captions and distance."""
    for scale in scales:
        pictures, _ = scenes.draw(S=steps, eta=0.0, unconditional_guidance_scale=scale)
        yield {"scale": scale, "every part right, %": scenes.right(pictures), "distance": scenes.distance(pictures)}
