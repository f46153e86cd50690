"""What cannot be read as a picture or a mask is an error that names the file and what to do; masks."""

import gc
import re
import warnings

import numpy as np
import pytest
from _picture_files import png_header, scene
from PIL import Image

from ldm import picture_files
from ldm.picture_files import read_mask, read_picture

PICTURE = Image.fromarray(scene())
NOISE = Image.effect_noise((200, 200), 90)


def cut(path):
    NOISE.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


WRONG = {
    "missing.png": (lambda path: None, FileNotFoundError, "does not exist; give the file of a picture"),
    "folder": (lambda path: path.mkdir(), IsADirectoryError, "is a folder; give the file of one picture"),
    "empty.png": (lambda path: path.write_bytes(b""), ValueError, "is empty, 0 bytes; copy or download it again"),
    "text.png": (lambda path: path.write_text("hello"), ValueError, "is no picture that can be read; save it as .*PNG"),
    "page.jpg": (lambda path: path.write_text("<html>404"), ValueError, "is no picture that can be read"),
    "cut.png": (cut, ValueError, "is damaged .*; copy or download it again"),
    "cut.jpg": (cut, ValueError, "is damaged .*truncated .*; copy or download it again"),
    "cut.bmp": (cut, ValueError, "is damaged"),
    "large.png": (lambda path: png_header(path, 20_000, 20_000), ValueError, "is too large .400 meg.*at most 80 are"),
    "wide.png": (lambda path: png_header(path, 81_000, 1000), ValueError, "is too large .81000x1000 are 81 megapixels"),
    "huge.png": (lambda path: png_header(path, 10_000, 10_000), ValueError, "is too large .100 meg.*make it smaller"),
    "a.eps": (lambda path: PICTURE.save(path), ValueError, "is no picture that can be read"),  # but a program
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_picture_is_named_with_what_to_do(name, tmp_path):
    make, kind, said = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(kind, match=f"^--init-img '{re.escape(str(tmp_path / name))}' {said}"):
        read_picture(tmp_path / name, flag="--init-img")
    with pytest.raises(kind, match=said):
        read_mask(tmp_path / name, (24, 16))


def test_a_size_is_refused_before_a_pixel_is_decoded(tmp_path, monkeypatch):
    png_header(tmp_path / "a.png", 20_000, 20_000)
    monkeypatch.setattr(picture_files, "loaded", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="megapixels"):
        read_picture(tmp_path / "a.png")


def test_a_refused_pictures_file_is_closed(tmp_path, recwarn):
    """A folder of many would run out of them."""
    warnings.simplefilter("always", ResourceWarning)
    png_header(tmp_path / "large.png", 20_000, 20_000)
    with pytest.raises(ValueError, match="too large"):
        read_picture(tmp_path / "large.png")
    gc.collect()
    assert not [str(warning.message) for warning in recwarn if warning.category is ResourceWarning]


def test_the_limit_itself_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MEGAPIXELS", 24 * 16 / 1e6)
    PICTURE.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").size == (24, 16)
    PICTURE.resize((25, 16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="25x16"):
        read_picture(tmp_path / "b.png")


# -------------------------------------------------------------------------------------------------------------- masks


def mask(tmp_path, picture, size=None, **how):
    picture.save(tmp_path / "m.png", **how)
    return read_mask(tmp_path / "m.png", size or picture.size).tolist()


def test_half_white_and_more_is_true(tmp_path):
    assert mask(tmp_path, Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))) == [[False, False, True, True]]


@pytest.mark.parametrize("mode", ["RGB", "1", "L", "P", "RGBA", "LA"])
def test_black_and_white_are_the_same_in_every_kind_of_file(mode, tmp_path):
    drawn = Image.fromarray(np.array([[0, 255], [255, 255], [0, 0]], np.uint8)).convert(mode)
    assert mask(tmp_path, drawn) == [[False, True], [True, True], [False, False]]


def test_sixteen_bits_are_halved_where_they_are_half(tmp_path):
    grey = np.array([[32000, 33000]], np.uint16)
    assert mask(tmp_path, Image.fromarray(grey)) == [[False, True]]


def test_a_mask_is_turned_as_its_picture_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.array([[255, 0, 0]], np.uint8))
    assert mask(tmp_path, stored, (1, 3), exif=exif) == [[True], [False], [False]]


def test_a_mask_of_another_size_names_both(tmp_path):
    PICTURE.save(tmp_path / "m.png")
    said = "--mask '.*m.png' is 24x16 pixels, the picture 'a.png' 16x24: give a mask of the picture's size"
    with pytest.raises(ValueError, match=said):
        read_mask(tmp_path / "m.png", (16, 24), flag="--mask", of="the picture 'a.png'")


def layer(*colours):
    return Image.fromarray(np.array([colours], np.uint8))


CLEAR = (255, 255, 255, 0)


def test_what_was_cut_out_of_a_picture_is_white(tmp_path):
    with pytest.warns(UserWarning, match="transparent counts as white, all else as black"):
        assert mask(tmp_path, layer((250, 250, 250, 255), (9, 90, 9, 255), CLEAR)) == [[False, False, True]]


def test_a_white_stroke_on_a_transparent_layer_is_white(tmp_path):
    with pytest.warns(UserWarning, match="transparent counts as black"):
        assert mask(tmp_path, layer((255, 255, 255, 255), (255, 255, 255, 200), (0, 0, 0, 0))) == [[True, True, False]]


def test_a_black_stroke_on_a_transparent_layer_is_black(tmp_path):
    with pytest.warns(UserWarning, match="transparent counts as white"):
        assert mask(tmp_path, layer((0, 0, 0, 255), (0, 0, 0, 0))) == [[False, True]]


def test_an_alpha_channel_that_hides_nothing_is_no_matter(tmp_path, recwarn):
    assert mask(tmp_path, layer((255, 255, 255, 255), (0, 0, 0, 255))) == [[True, False]] and not recwarn


def test_a_mask_in_lab_is_as_bright_as_it_looks(tmp_path):
    Image.merge("LAB", [Image.fromarray(np.uint8([[255, 0]])), *[Image.fromarray(np.uint8([[128, 128]]))] * 2]).save(
        tmp_path / "mask.tif"
    )
    assert read_mask(tmp_path / "mask.tif", (2, 1)).tolist() == [[True, False]]
