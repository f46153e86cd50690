"""The captioned scenes and the checker that reads them back."""

import dataclasses

import numpy as np
import pytest
from omegaconf import OmegaConf

from ldm.data.checker import read_background, read_things, score
from ldm.data.shapes import BACKGROUNDS, COLOURS, HELD_OUT, SHAPES, Shapes, describe, draw, is_test_caption, vocabulary


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_checker_reads_what_was_drawn(count):
    scenes = Shapes(seed=5, count=count)
    for i in range(25):
        picture, description = scenes[i]
        assert all(score(picture, description).values()), (i, description, read_things(picture))


def test_every_colour_and_shape_is_told_apart_at_either_size():
    rng = np.random.default_rng(0)
    wanted = {(c, s, size) for c in COLOURS for s in SHAPES for size in ("small", "large")}
    scenes = Shapes(seed=6, count=1)
    k = 0
    while wanted and k < 4000:
        description = scenes.describe(k)
        k += 1
        thing = description.things[0]
        if (thing.colour, thing.shape, thing.size) in wanted:
            wanted.discard((thing.colour, thing.shape, thing.size))
            seen = read_things(draw(description, rng))
            assert [(s.colour, s.shape, s.size) for s in seen] == [(thing.colour, thing.shape, thing.size)]
    assert {(c, s) for c, s, _ in wanted} == HELD_OUT  # all but the pairs that no training scene has


def test_scene_i_is_the_same_in_any_order():
    forward = [Shapes(seed=1)[i] for i in range(5)]
    for i in reversed(range(5)):
        picture, description = Shapes(seed=1)[i]
        np.testing.assert_array_equal(picture, forward[i][0])
        assert description == forward[i][1] == Shapes(seed=1).describe(i)
    assert (forward[0][0] != Shapes(seed=2)[0][0]).any()


def test_training_and_test_captions_never_meet():
    training = {Shapes(seed=3).describe(i).caption for i in range(300)}
    test = {Shapes(seed=3, test=True).describe(i).caption for i in range(300)}
    assert not training & test
    assert all(map(is_test_caption, test)) and not any(map(is_test_caption, training))


def test_held_out_pairs_are_in_no_training_scene():
    pairs = {(t.colour, t.shape) for i in range(1500) for t in Shapes(seed=4).describe(i).things}
    assert not pairs & HELD_OUT
    assert len(pairs) == len(COLOURS) * len(SHAPES) - len(HELD_OUT)
    held_out = Shapes(seed=4, count=1, test=True, held_out=True)
    assert {(t.colour, t.shape) for i in range(60) for t in held_out.describe(i).things} == HELD_OUT


def test_the_bundled_models_vocabulary_holds_every_word():
    config = OmegaConf.load("configs/shapes.yaml")
    assert list(config.model.params.cond_stage_config.params.vocabulary) == vocabulary()
    words = {w for i in range(500) for w in Shapes(seed=8).describe(i).caption.replace(",", " ").split()}
    assert words <= set(vocabulary())


def two_things():
    """A scene of two things that differ in colour and shape."""
    scenes = Shapes(seed=9, count=2)
    for i in range(100):
        picture, description = scenes[i]
        first, second = description.things
        if first.colour != second.colour and first.shape != second.shape and description.layout == "row":
            return picture, description
    raise AssertionError("no such scene")


def test_the_checker_sees_a_wrong_colour_shape_order_count_and_place():
    picture, description = two_things()
    first, second = description.things

    def with_first(**changes):
        return dataclasses.replace(description, things=(dataclasses.replace(first, **changes), second))

    def wrong(description):
        return {part for part, right in score(picture, description).items() if not right}

    other_colour = next(c for c in COLOURS if c != first.colour)
    other_shape = next(s for s in SHAPES if s != first.shape)
    assert wrong(description) == set()
    assert wrong(with_first(colour=other_colour)) == {"colour"}
    assert wrong(with_first(shape=other_shape)) == {"shape"}
    assert wrong(dataclasses.replace(description, things=(second, first))) >= {"colour", "shape"}
    assert wrong(dataclasses.replace(description, things=(first,))) >= {"count"}
    assert "place" in wrong(dataclasses.replace(description, layout="column"))
    mirrored = {part for part, right in score(picture[:, ::-1], description).items() if not right}
    assert mirrored >= {"colour", "shape"}


def test_the_checker_is_not_fooled_by_a_blank_or_a_noisy_picture():
    _, description = two_things()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for picture in (np.full((64, 64, 3), 205, np.uint8), noise):
        assert not score(picture, description)["count"]


def test_backgrounds_are_told_apart_behind_things():
    seen = set()
    for i in range(80):
        picture, description = Shapes(seed=10)[i]
        if description.background:
            assert read_background(picture) == description.background
            seen.add(description.background)
    assert seen == set(BACKGROUNDS)


def test_things_keep_clear_of_each_other_and_of_the_edge():
    for i in range(60):
        picture, description = Shapes(seed=11)[i]
        for thing in read_things(picture):
            assert 1 < thing.x - thing.radius * 0.8 and thing.x + thing.radius * 0.8 < 63
        assert len(read_things(picture)) == len(description.things)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: describe(np.random.default_rng(0), count=4), "count=4"),
        (lambda: describe(np.random.default_rng(0), held_out=True), "test=True"),
        (lambda: read_things(np.zeros((3, 64, 64), np.uint8)), r"\(3, 64, 64\)"),
        (lambda: read_things(np.zeros((64, 64, 3))), "float64"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
