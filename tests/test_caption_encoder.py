"""The bundled model's caption encoder."""

import pytest
import torch

from ldm.modules.encoders.caption import CaptionEncoder

WORDS = ["a", "blue", "red", "star"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return CaptionEncoder(WORDS, width=16, layers=1, heads=2, max_length=5).eval()


def test_words_become_their_numbers_whatever_the_case_and_the_commas(encoder):
    assert encoder.tokenize(["A red, red STAR!"]).tolist() == [[2, 4, 4, 5, 0]]
    assert encoder.tokenize([""]).tolist() == [[0] * 5]


def test_the_order_of_words_matters(encoder):
    one, other = encoder(["a red star"]), encoder(["red a star"])
    assert (one - other).abs().max() > 1e-3


def test_a_caption_is_encoded_alike_alone_and_in_a_batch(encoder):
    alone = encoder(["a blue star"])
    torch.testing.assert_close(encoder(["", "a red star", "a blue star"])[2:], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.encode(encoder.tokenize(["a blue star"])), alone)


def test_unknown_words_are_named_in_a_warning(encoder):
    with pytest.warns(UserWarning, match="does not know mauve, dodecahedron"):
        assert encoder.tokenize(["a mauve dodecahedron"]).tolist() == [[2, 1, 1, 0, 0]]


def test_what_is_cut_of_a_long_caption_is_shown(encoder):
    with pytest.warns(UserWarning, match="'blue star' was cut"):
        assert encoder.tokenize(["a red star a red blue star"]).tolist() == [[2, 4, 5, 2, 4]]


def test_a_word_listed_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        CaptionEncoder(["a", "a"])
