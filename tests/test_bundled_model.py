"""The model that ships: it is small, it loads, and it draws what captions say that it has never seen."""

import numpy as np
import pytest
import score_shapes
import torch
from _config import BUNDLED_CKPT, latent_shape, load_config

from ldm.checkpoint import load_model
from ldm.data.checker import score
from ldm.data.shapes import Shapes
from ldm.sampling import DDIMSampler

OPTIONS = {"S": 20, "unconditional_guidance_scale": 3.0}


@pytest.fixture(scope="module")
def model():
    return load_model(load_config(None), BUNDLED_CKPT)


def draw(model, descriptions, **options):
    shape = latent_shape(load_config(None), None, None, None, None)
    with torch.no_grad():
        return score_shapes.draw(model, DDIMSampler(model), descriptions, shape, OPTIONS | options, 25, 0)


def right(pictures, descriptions, *parts):
    scores = [score(picture, d) for picture, d in zip(pictures, descriptions, strict=True)]
    return sum(all(s[part] for part in parts) for s in scores) / len(scores)


def test_the_weights_are_at_most_40_megabytes():
    assert sum(f.stat().st_size for f in BUNDLED_CKPT.parent.iterdir()) <= 40e6


def test_the_autoencoder_keeps_what_a_scene_shows(model):
    scenes = [Shapes(seed=31, test=True)[i] for i in range(40)]
    x = torch.from_numpy(np.stack([p for p, _ in scenes])).permute(0, 3, 1, 2) / 127.5 - 1
    again = model.decode_first_stage(model.scale_factor * model.encode_first_stage(x).mode())
    seen = ((again.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert (again - x).abs().mean() < 0.03
    assert right(seen, [d for _, d in scenes], "count", "colour", "shape", "size", "place") > 0.9


def test_it_draws_unseen_captions(model):
    descriptions = score_shapes.unseen(24, count=1)
    assert right(draw(model, descriptions), descriptions, "colour", "shape") >= 0.85
    descriptions = score_shapes.unseen(24, count=2)
    assert right(draw(model, descriptions), descriptions, *score_shapes.PARTS) >= 0.6


def test_it_draws_the_caption_because_of_the_guidance(model):
    """The same seeds towards other captions' pictures are wrong: the score is not one that any picture gets."""
    descriptions = score_shapes.unseen(16, count=1)
    pictures = draw(model, descriptions)
    assert right(pictures[1:] + pictures[:1], descriptions, "colour", "shape") <= 0.25


def test_a_picture_is_the_same_alone_and_in_a_batch(model):
    descriptions = score_shapes.unseen(3)
    together = draw(model, descriptions, S=5)
    alone = draw(model, descriptions[:1], S=5)
    assert np.abs(together[0].astype(int) - alone[0].astype(int)).max() <= 1


def test_captions_to_score_are_as_many_as_asked_for_or_an_error():
    assert score_shapes.unseen(0) == []
    assert len({d.caption for d in score_shapes.unseen(40)}) == 40
    with pytest.raises(ValueError, match="3000 captions were asked for, but only 2"):
        score_shapes.unseen(3000, count=1, held_out=True)
