"""Pictures are read as a person sees them: upright, over white, in 8 bits of sRGB; tensors give them back."""

import numpy as np
import pytest
import torch
from _picture_files import far, png16, scene, without_adobes_mark
from PIL import Image, ImageCms

from ldm.image import to_pil
from ldm.picture_files import padded, read_picture, to_tensor

SCENE = scene()
PICTURE = Image.fromarray(SCENE)
FORMATS = {"a.png": {}, "a.tif": {}, "a.bmp": {}, "a.webp": {"lossless": True}, "a.ppm": {}, "a.tga": {}}


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_is_read_bit_for_bit(name, tmp_path):
    PICTURE.save(tmp_path / name, **FORMATS[name])
    read = read_picture(tmp_path / name)
    assert read.mode == "RGB" and far(read, SCENE) == 0


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_picture_stands_upright(orientation, kind, tmp_path):
    """What a camera stored is the scene, seen through the inverse of the turn that its EXIF asks for."""
    steps = {1: [], 2: ["x"], 3: ["x", "y"], 4: ["y"], 5: ["t"], 6: ["y", "t"], 7: ["x", "y", "t"], 8: ["x", "t"]}
    blocks = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    upright = np.stack([blocks] * 3, -1)
    stored = upright
    for step in reversed(steps[orientation]):  # each is its own inverse
        stored = {"x": stored[:, ::-1], "y": stored[::-1], "t": stored.swapaxes(0, 1)}[step]
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"tif": {"tiffinfo": {0x0112: orientation}}, "webp": {"exif": exif, "lossless": True}}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{kind}", **how.get(kind, {"exif": exif}))
    assert far(read_picture(tmp_path / f"a.{kind}"), upright) <= 2 * (kind == "jpg")


def test_damaged_exif_is_no_reason_to_refuse_a_picture(tmp_path):
    PICTURE.save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*nonsense")
    assert far(read_picture(tmp_path / "a.png"), SCENE) == 0


# ------------------------------------------------------------------------------------------------------- transparency


def test_what_is_transparent_shows_white_and_half_of_it_half(tmp_path):
    colour = np.zeros((1, 3, 4), np.uint8)
    colour[0, :, :] = [[200, 0, 40, 255], [200, 0, 40, 0], [200, 0, 40, 51]]
    Image.fromarray(colour).save(tmp_path / "a.png")
    share = 51 / 255
    half = [round(share * v + (1 - share) * 255) for v in (200, 0, 40)]
    assert far(read_picture(tmp_path / "a.png"), [[[200, 0, 40], [255, 255, 255], half]]) <= 1


def test_a_palette_with_a_transparent_colour_shows_white_there(tmp_path):
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 255])
    for x in range(3):
        picture.putpixel((x, 0), x)
    for name, clear in (("one.png", 1), ("each.png", bytes([255, 0, 255])), ("a.gif", 1)):
        picture.save(tmp_path / name, transparency=clear)
        assert np.asarray(read_picture(tmp_path / name)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]], name


def test_a_transparent_colour_of_rgb_and_of_grey_shows_white(tmp_path):
    Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist() == [[[255] * 3, [9] * 3]]
    Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "b.png", transparency=7)
    assert np.asarray(read_picture(tmp_path / "b.png")).tolist() == [[[255] * 3, [9] * 3]]


def test_grey_with_alpha_lies_over_white(tmp_path):
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA").save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist() == [[[10] * 3, [255] * 3]]


# ---------------------------------------------------------------------------------------------------------- more bits


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    grey = (np.linspace(0, 65535, 24 * 16).reshape(16, 24)).astype(np.uint16)
    wanted = np.stack([np.round(grey / 257)] * 3, -1)
    for name in ("a.png", "a.tif", "a.pgm"):  # Pillow's modes are I;16, and I for the last
        Image.fromarray(grey).save(tmp_path / name)
        assert far(read_picture(tmp_path / name), wanted) == 0, name


def test_the_transparent_grey_of_sixteen_bits_shows_white_and_its_neighbour_does_not(tmp_path):
    png16(tmp_path / "a.png", np.array([[[20000], [20001]]]), 0, (b"tRNS", (20000).to_bytes(2, "big")))
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist() == [[[255] * 3, [78] * 3]]


@pytest.mark.parametrize("colour, alpha", [(2, False), (6, True)])
def test_sixteen_bits_of_colour_are_scaled(colour, alpha, tmp_path):
    pixels = SCENE.astype(np.uint16) * 257
    pixels = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 65535)], -1) if alpha else pixels
    png16(tmp_path / "a.png", pixels, colour)
    assert far(read_picture(tmp_path / "a.png"), SCENE) <= 1


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist() == [[[255] * 3, [0] * 3]]


def test_floats_from_0_to_1_are_scaled_and_others_an_error(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(read_picture(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255]
    for values in ([0, 255], [-1, 1], [0, np.nan]):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(ValueError, match="b.tif' holds floats from .*none is known to be white; save it with 8"):
            read_picture(tmp_path / "b.tif")


def test_integers_of_32_bits_are_an_error(tmp_path):
    Image.fromarray(np.array([[0, 100_000]], np.int32), "I").save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="integers of more than 16 bits from 0 to 100000"):
        read_picture(tmp_path / "a.tif")


# ------------------------------------------------------------------------------------------------------------ colours


def inks():
    """CMYK values (H, W, 4), smooth so that JPEG keeps them."""
    return large([[[0, 0, 0, 0], [255, 0, 0, 0]], [[0, 255, 255, 0], [0, 0, 0, 255]]])


def large(pixels):
    return np.repeat(np.repeat(np.array(pixels, np.uint8), 16, 0), 16, 1)


def test_cmyk_is_ink_whether_stored_inverted_or_not(tmp_path):
    wanted = large([[[255] * 3, [0, 255, 255]], [[255, 0, 0], [0] * 3]])
    Image.fromarray(inks(), "CMYK").save(tmp_path / "a.tif")
    assert far(read_picture(tmp_path / "a.tif"), wanted) == 0
    Image.fromarray(inks(), "CMYK").save(tmp_path / "adobe.jpg", quality=100)  # stored inverted, with Adobe's mark
    assert far(read_picture(tmp_path / "adobe.jpg"), wanted) <= 3
    inverted = Image.fromarray(255 - inks(), "CMYK")  # which Pillow inverts again
    inverted.save(tmp_path / "b.jpg", quality=100)
    (tmp_path / "plain.jpg").write_bytes(without_adobes_mark((tmp_path / "b.jpg").read_bytes()))
    assert far(read_picture(tmp_path / "plain.jpg"), wanted) <= 3


def swapped_profile():
    """An RGB profile that is no sRGB: its primaries are another space's, so that colours move."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[k : k + 4]): k for k in range(132, 132 + 12 * count, 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12], profile[red + 4 : red + 12],
    )  # fmt: skip
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


def test_a_colour_profile_is_followed(tmp_path):
    """In this one red means green: the primaries are exchanged."""
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert far(read_picture(tmp_path / "a.png"), np.full((4, 4, 3), (0, 255, 0))) <= 2
    Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(tmp_path / "b.png", icc_profile=swapped_profile())
    assert far(read_picture(tmp_path / "b.png"), np.full((4, 4, 3), (0, 255, 0))) <= 2


def test_srgbs_own_profile_changes_no_bit_and_no_profile_stays_behind(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    PICTURE.save(tmp_path / "a.png", icc_profile=profile)
    read = read_picture(tmp_path / "a.png")
    assert far(read, SCENE) == 0 and not read.info


@pytest.mark.parametrize("profile", [b"nonsense" * 40, None])
def test_a_profile_that_is_damaged_or_of_another_space_is_left_out(profile, tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    PICTURE.save(tmp_path / "a.png", icc_profile=profile or lab)
    assert far(read_picture(tmp_path / "a.png"), SCENE) == 0


def test_without_colour_management_the_numbers_are_taken(tmp_path, monkeypatch):
    PICTURE.save(tmp_path / "a.png", icc_profile=swapped_profile())

    def missing(*_):
        raise ImportError("The _imagingcms C module is not installed")

    monkeypatch.setattr(ImageCms, "ImageCmsProfile", missing)
    assert far(read_picture(tmp_path / "a.png"), SCENE) == 0


def test_lab_becomes_rgb(tmp_path):
    Image.merge("LAB", [Image.new("L", (2, 2), v) for v in (255, 128, 128)]).save(tmp_path / "a.tif")
    assert far(read_picture(tmp_path / "a.tif"), np.full((2, 2, 3), 255)) <= 2


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(kind, tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    how = {"lossless": True} if kind == "webp" else {}
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second], duration=100, **how)
    assert far(read_picture(tmp_path / f"a.{kind}"), np.asarray(first)) == 0


# ------------------------------------------------------------------------------------------------------------ tensors


def test_a_tensor_gives_every_grey_level_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels.T, 255 - levels], -1))
    x = to_tensor(picture)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    assert far(to_pil(x)[0], picture) == 0


def test_channels_rows_and_columns_keep_their_order():
    x = to_tensor(PICTURE)
    assert x.shape == (1, 3, 16, 24)
    assert x[0, 1, 3, 5].item() == pytest.approx(SCENE[3, 5, 1] / 127.5 - 1)


@pytest.mark.parametrize("height, width", [(16, 24), (1, 1), (9, 8), (8, 17)])
def test_padding_repeats_the_last_row_and_column_and_is_cut_back(height, width):
    x = torch.randn(2, 3, height, width)
    wide = padded(x, 8)
    assert wide.shape[2] % 8 == wide.shape[3] % 8 == 0 and max(wide.shape[2] - height, wide.shape[3] - width) < 8
    assert torch.equal(wide[..., :height, :width], x)
    assert torch.equal(wide[..., height:, :width], x[..., -1:, :].expand_as(wide[..., height:, :width]))
    assert torch.equal(wide[..., width:], wide[..., width - 1 : width].expand_as(wide[..., width:]))
