"""Tensors become the right pixels, grids say what they show, and a PNG tells how it was made."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ldm import image as im

SETTINGS = {
    "prompt": "a red circle, left of a “blue” square",
    "negative_prompt": "grey: none",
    "seed": 43,
    "steps": 20,
    "sampler": "DDIM",
    "scale": 5.0,
    "eta": 0.5,
    "model": "shapes",
    "width": 64,
    "height": 32,
    "guidance_interval": [0.1, 0.9],
}


def test_minus_one_is_black_one_is_white_and_the_nearest_level_is_taken_between():
    levels = torch.tensor([-1.0, 1.0, 0.0, -7.0, 7.0, -1 + 2 * 100.4 / 255, -1 + 2 * 100.6 / 255])
    (picture,) = im.to_pil(levels.view(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert np.asarray(picture)[0, :, 1].tolist() == [0, 255, 128, 0, 255, 100, 101]


def test_channels_stay_red_green_blue_and_rows_stay_rows():
    images = torch.full((2, 3, 4, 6), -1.0)
    images[1, 0, 3, 5] = 1
    first, second = im.to_pil(images)
    assert second.size == (6, 4) and second.getpixel((5, 3)) == (255, 0, 0)
    assert not np.asarray(first).any()


def test_one_channel_becomes_a_grey_picture():
    assert im.to_pil(torch.zeros(1, 1, 2, 2))[0].mode == "L"


def test_half_precision_and_gradients_are_no_obstacle():
    im.to_pil(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_an_error_that_names_the_picture(value):
    images = torch.zeros(3, 3, 2, 2)
    images[1, 2, 0, 0] = value
    with pytest.raises(ValueError, match="1 of 3 pictures.*number 1.*full precision"):
        im.to_pil(images)


def test_another_shape_is_an_error_that_says_which_would_do():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\).*\(B, 3, H, W\)"):
        im.to_pil(torch.zeros(3, 8, 8))


def colours(n):
    return [Image.new("RGB", (20, 10), (k + 1, 0, 0)) for k in range(n)]


def test_a_grid_places_pictures_row_by_row():
    sheet = im.grid(colours(5), columns=3)
    assert sheet.size == (3 * 20 + 4 * im.GAP, 2 * 10 + 3 * im.GAP)
    at = [sheet.getpixel((im.GAP + k % 3 * (20 + im.GAP), im.GAP + k // 3 * (10 + im.GAP)))[0] for k in range(5)]
    assert at == [1, 2, 3, 4, 5]


def test_a_grid_is_no_wider_than_its_pictures():
    assert im.grid(colours(2), columns=9).width == 2 * 20 + 3 * im.GAP


def ink(caption):
    """Where a caption is drawn in a grid of two, relative to the first picture: (rows, columns), and its (H, W)."""
    plain, captioned = (im.grid(colours(2), 2, [first, ""]) for first in ("", caption))
    changed = np.argwhere((np.asarray(captioned)[: plain.height] != np.asarray(plain)[: captioned.height]).any(-1))
    below = np.argwhere((np.asarray(captioned)[plain.height :] != 255).any(-1)) + [plain.height, 0]
    zoom = round(im.CAPTIONED_WIDTH / 20)
    return (np.concatenate([changed, below]) - im.CAPTIONED_GAP).T, (10 * zoom, 20 * zoom)


def test_a_caption_is_drawn_below_its_picture_and_centred():
    (rows, columns), (height, width) = ink("a red circle")
    assert len(rows) > 20
    assert height <= rows.min() < height + im.CAPTIONED_GAP, "on the picture, or nearer to the next"
    assert abs((columns.min() + columns.max()) / 2 - width / 2) <= 2


def test_the_words_of_neighbours_stay_apart():
    (_, columns), (_, width) = ink("there is a red star on the right in front of a plain background and a big one")
    assert columns.min() >= -1 and columns.max() <= width + 1 and im.CAPTIONED_GAP >= 12


def test_each_row_of_a_grid_is_as_high_as_its_own_captions():
    long = "a red circle to the left of a small red square in front of a dotted background"
    one, other, both = (im.grid(colours(2), 1, captions) for captions in (["a", "b"], ["a", long], [long, long]))
    assert other.height - one.height == both.height - other.height > 20


def test_a_long_caption_is_wrapped_and_ends_after_a_few_lines_with_a_whole_word():
    font = im._font()
    lines = im._wrap("wordy " * 60 + "end", 100, font)
    assert len(lines) == im.CAPTION_LINES and lines[-1].endswith("wordy…")
    assert all(font.getlength(line) <= 100 for line in lines)
    assert font.getlength(im._wrap("x" * 200, 100, font)[0]) <= 100
    assert im._wrap("one two", 1000, font) == ["one two"]
    assert im._wrap("", 100, font) == [""]


def test_no_word_is_left_alone_on_the_last_line():
    lines = im._wrap("from left to right a little red ring, a little purple circle and a pink star", 192, im._font())
    assert len(lines) == 3 and all(len(line.split()) > 2 for line in lines)


def test_a_grid_of_nothing_or_with_too_few_captions_is_an_error():
    with pytest.raises(ValueError, match="0 pictures"):
        im.grid([], 2)
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        im.grid(colours(2), 2, ["one"])


def test_settings_come_back_exactly_from_the_file(tmp_path):
    im.save_png(colours(1)[0], tmp_path / "a.png", SETTINGS)
    assert im.read_settings(tmp_path / "a.png") == SETTINGS


def test_the_parameters_text_is_what_other_tools_read(tmp_path):
    im.save_png(colours(1)[0], tmp_path / "a.png", SETTINGS)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text["parameters"] == (
            "a red circle, left of a “blue” square\nNegative prompt: grey: none\n"
            "Steps: 20, Sampler: DDIM, CFG scale: 5.0, Seed: 43, Size: 64x32, Model: shapes, Eta: 0.5, "
            'guidance_interval: "[0.1, 0.9]"'
        )


@pytest.mark.parametrize(
    "changes",
    [{}, {"negative_prompt": ""}, {"prompt": ""}, {"prompt": "two\nlines, Steps: 3"}, {"model": 'a, "b": c'}],
)
def test_the_parameters_text_can_be_read_back(changes):
    settings = {k: v for k, v in {**SETTINGS, **changes}.items() if k != "guidance_interval"}
    assert im.parse_parameters(im.parameters_text(settings)) == settings


def test_another_tools_picture_is_understood(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Size: 512x768")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    found = im.read_settings(tmp_path / "a.png")
    assert found == {"prompt": "a cat", "negative_prompt": "dog", "steps": 20, "sampler": "Euler a", "scale": 7,
                     "width": 512, "height": 768}  # fmt: skip


def test_a_picture_without_settings_has_none(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg")
    assert im.read_settings(tmp_path / "a.png") == {} == im.read_settings(tmp_path / "a.jpg")


def test_a_file_that_is_there_is_never_written_over(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        im.save_png(colours(1)[0], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"mine"


def test_settings_are_json_that_anyone_can_read(tmp_path):
    im.save_png(colours(1)[0], tmp_path / "a.png", SETTINGS)
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.text["ldm-settings"])["seed"] == 43
