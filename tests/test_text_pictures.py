"""Texts as pictures for a log."""

import pytest
import torch

from ldm.util import log_txt_as_img

pytest.importorskip("PIL")


def ink(picture):
    """(rows, columns) that are not white throughout."""
    drawn = picture.min(0).values < 0.9
    return drawn.any(1).nonzero().flatten().tolist(), drawn.any(0).nonzero().flatten().tolist()


def test_texts_become_black_on_white_one_picture_each():
    out = log_txt_as_img((96, 32), ["a cat", "", "two dogs"])
    assert out.shape == (3, 3, 32, 96) and out.dtype == torch.float32
    assert out.max() == 1 and -1 <= out.min() < -0.5
    assert (out[1] == 1).all() and not out[0].equal(out[2])
    assert out[:, 0].equal(out[:, 1]) and out[:, 0].equal(out[:, 2])


def test_a_line_breaks_between_words_where_it_would_leave_the_picture():
    wide = log_txt_as_img((200, 64), ["green apples"])
    _, columns = ink(wide[0])
    narrow = (columns[-1] - 4, 64)
    broken = log_txt_as_img(narrow, ["green apples", "green\napples"])
    assert broken[0].equal(broken[1])
    assert ink(broken[0])[0][-1] > ink(wide[0])[0][-1]


def test_a_word_that_is_too_wide_breaks_within():
    whole, broken = log_txt_as_img((600, 40), ["mm" * 20]), log_txt_as_img((90, 200), ["mm" * 20])
    rows, columns = ink(broken[0])
    assert rows[-1] > 2 * ink(whole[0])[0][-1] and columns[-1] < 90
    black = [(picture < 0).sum().item() for picture in (whole, broken)]
    assert black[1] == pytest.approx(black[0], rel=0.05), "some letters were lost"


def test_letters_grow_with_their_size_and_are_never_smaller_than_a_pixel():
    small, large = (ink(log_txt_as_img((200, 64), ["Word"], size=size)[0]) for size in (10, 30))
    assert large[0][-1] > 2 * small[0][-1]
    assert log_txt_as_img((16, 16), ["Word"], size=16 // 25).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    "text",
    ["\ud800", "\x00\x1b[0m", "é漢字🙂", "مرحبا", "a\u2028b\r\nc\td", " " * 300, "\n\n", 7, ["a", "list"], None],
    ids=ascii,
)
def test_no_text_is_too_odd(text):
    assert log_txt_as_img((32, 32), [text]).shape == (1, 3, 32, 32)
    assert log_txt_as_img((1, 1), [text]).shape == (1, 3, 1, 1)
