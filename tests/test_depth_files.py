"""Depth maps from files: every digit that they have, upright, and clear errors for what is none."""

import numpy as np
import pytest
from PIL import Image

from ldm.depth_files import read_depth

RAMP = np.arange(24).reshape(4, 6)


def saved(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize(
    "name, values",
    [
        ("a.png", (RAMP * 10).astype(np.uint8)),
        ("a.png", (RAMP * 2500 + 7).astype(np.uint16)),
        ("a.tif", RAMP.astype(np.int32) * 10_000_000),
        ("a.tif", RAMP.astype(np.float32) / 7 - 1),
    ],
)
def test_the_numbers_of_a_grey_picture_are_kept(name, values, tmp_path):
    depth = read_depth(saved(tmp_path / name, values))
    assert depth.dtype == np.float32 and np.array_equal(depth, values.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, ">f4", bool])
def test_so_are_those_of_an_array(dtype, tmp_path):
    values = (RAMP - 3).astype(dtype)
    np.save(tmp_path / "a.NPY.npy", values)
    depth = read_depth(tmp_path / "a.NPY.npy")
    assert depth.dtype == np.float32 and np.array_equal(depth, values.astype(np.float32))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_in_another_mode_is_grey(mode, tmp_path):
    grey = (RAMP * 10).astype(np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(read_depth(tmp_path / "a.png"), grey)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_map_is_turned_as_its_picture_would_be(dtype, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    values = RAMP.astype(dtype)
    assert np.array_equal(read_depth(saved(tmp_path / "a.png", values, exif=exif)), np.rot90(values, -1))


def test_the_size_is_that_of_the_picture(tmp_path):
    path = saved(tmp_path / "a.png", RAMP.astype(np.uint8))
    assert read_depth(path, (6, 4)).shape == (4, 6)
    with pytest.raises(ValueError, match="--depth '.*a.png' is 6x4 pixels, the room 4x6: give a depth map of the pict"):
        read_depth(path, (4, 6), flag="--depth", of="the room")


def test_a_flat_map_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="is 7 everywhere, so it says nothing of the scene"):
        assert (read_depth(saved(tmp_path / "a.png", np.full((4, 6), 7, np.uint8))) == 7).all()


def test_what_is_no_depth_map_is_named(tmp_path):
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[2, 3] = 10, 10, 11
    saved(tmp_path / "colours.png", colours)
    np.save(tmp_path / "rank.npy", RAMP[None])
    np.save(tmp_path / "complex.npy", RAMP + 0j)
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.where(RAMP == 3, np.nan, RAMP))
    np.save(tmp_path / "huge.npy", RAMP * 1e300)
    np.save(tmp_path / "none.npy", RAMP[:0])
    saved(tmp_path / "infinite.tif", np.where(RAMP == 3, np.inf, RAMP).astype(np.float32))
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:-8])
    (tmp_path / "text.png").write_text("1 2 3")
    (tmp_path / "folder.npy").mkdir()
    for name, said in {
        "colours.png": "has colours, of which nobody says what is near",
        "rank.npy": r"is int64 of shape \(1, 4, 6\); a depth map is numbers, \(H, W\)",
        "complex.npy": "is complex128 of shape",
        "objects.npy": "is no array that numpy saved",
        "nan.npy": "holds NaN or infinite values; give every pixel a depth",
        "huge.npy": "holds NaN or infinite values",
        "none.npy": r"is int64 of shape \(0, 6\); a depth map is numbers",
        "infinite.tif": "holds NaN or infinite values",
        "text.npy": "is no array that numpy saved",
        "empty.npy": "is no array that numpy saved",
        "cut.npy": "is no array that numpy saved",
        "text.png": "is no picture that can be read",
    }.items():
        with pytest.raises(ValueError, match=f"--depth '.*{name}' {said}"):
            read_depth(tmp_path / name, flag="--depth")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_depth(tmp_path / "folder.npy")
    for name in ("no.npy", "no.png"):
        with pytest.raises(FileNotFoundError, match=f"--depth '.*{name}' does not exist"):
            read_depth(tmp_path / name, flag="--depth")


def test_a_header_that_promises_too_much_costs_nothing(tmp_path):
    with open(tmp_path / "lie.npy", "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match="is no array that numpy saved"):
        read_depth(tmp_path / "lie.npy")
    wide = np.lib.format.open_memmap(tmp_path / "wide.npy", "w+", np.uint8, (20000, 20000))  # a file with holes
    del wide
    with pytest.raises(ValueError, match=r"is too large, \(20000, 20000\); make it smaller: at most 80 megapixels"):
        read_depth(tmp_path / "wide.npy")
