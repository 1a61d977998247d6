"""TIFF in the layouts that scanners, cameras and remote sensing write, beside the array that was written."""

import io
from itertools import product

import numpy as np
import pytest
import rasterio
import tifffile

from fullres.pipeline.data.images import ImageError, image_size, read_image, read_labels, write_png

RNG = np.random.default_rng(0)
SIZE = (37, 53)
RGB = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
GREY, ALPHA, NIR = RGB[..., 0], RNG.integers(0, 256, SIZE, np.uint8), 255 - RGB[..., 1]
LABELS = RNG.integers(0, 20, SIZE, np.uint8)


@pytest.fixture
def save(tmp_path):
    def write(pixels, name="x.tif", **how):
        path = tmp_path / name
        tifffile.imwrite(path, pixels, **how)
        return path

    return write


def in_16(pixels):
    return pixels.astype(np.uint16) * 257


def layouts():
    for tile, planar, order, big in product((None, (16, 16)), ("contig", "separate"), "<>", (False, True)):
        how = {"planarconfig": planar, "byteorder": order, "bigtiff": big}
        yield how | ({"tile": tile} if tile else {"rowsperstrip": 5})


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("bands", [3, 4, 5])
def test_rgb_and_what_comes_behind_it(save, deep, bands):
    """Alpha is not multiplied in, near infrared is not a colour."""
    stored = np.dstack([RGB, ALPHA, NIR][: bands - 2])
    for how, extra in product(layouts(), ("unassalpha", "assocalpha", "unspecified")):
        if how["planarconfig"] == "separate":
            pixels = np.ascontiguousarray(stored.transpose(2, 0, 1))
        else:
            pixels = stored
        extras = {"extrasamples": [extra, "unspecified"][: bands - 3]} if bands > 3 else {}
        path = save(in_16(pixels) if deep else pixels, photometric="rgb", **extras, **how)
        np.testing.assert_array_equal(read_image(path), RGB, err_msg=str((how, extra)))
        assert image_size(path) == SIZE


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey(save, deep, photometric):
    values = 255 - GREY if photometric == "miniswhite" else GREY
    for how in layouts():
        how.pop("planarconfig")
        path = save(in_16(values) if deep else values, photometric=photometric, **how)
        np.testing.assert_array_equal(read_image(path), np.dstack([GREY] * 3), err_msg=str(how))


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_grey_with_alpha(save, tile):
    stored = np.dstack([GREY, ALPHA])
    how = {"planarconfig": "contig", "extrasamples": ["unassalpha"], "tile": tile}
    path = save(stored, photometric="minisblack", **how)
    np.testing.assert_array_equal(read_image(path), np.dstack([GREY] * 3))


@pytest.mark.parametrize("bands", [2, 3, 4, 8])
@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_bands_that_are_not_said_to_be_colours_are_refused(save, bands, deep):
    pixels = RNG.integers(0, 256, (*SIZE, bands), np.uint8)
    for tile in (None, (16, 16)):
        extras = ["unspecified"] * (bands - 1)
        how = {"planarconfig": "contig", "extrasamples": extras, "tile": tile}
        path = save(in_16(pixels) if deep else pixels, photometric="minisblack", **how)
        with pytest.raises(ImageError, match=rf"^{path}: {bands} bands \(gray, undefined.*chosen by number$"):
            read_image(path)


@pytest.mark.parametrize("compress", ["lzw", "deflate", "packbits", "zstd", None])
@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_what_gdal_writes(tmp_path, compress, predictor, interleave):
    for deep, tiled in product((False, True), repeat=2):
        pixels = in_16(RGB) if deep else RGB
        how = {"tiled": tiled, "blockxsize": 16, "blockysize": 16} if tiled else {}
        how |= {"compress": compress, "predictor": predictor} if compress else {}
        profile = {"height": SIZE[0], "width": SIZE[1], "count": 3, "dtype": pixels.dtype}
        path = tmp_path / "x.tif"
        with rasterio.open(
            path, "w", "GTiff", photometric="RGB", interleave=interleave, **profile, **how
        ) as file:
            file.write(pixels.transpose(2, 0, 1))
        np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint32, np.int8])
def test_other_types_are_refused(save, dtype):
    path = save(GREY.astype(dtype), photometric="minisblack")
    for read in (read_image, read_labels):
        with pytest.raises(ImageError, match=rf"pixels are {np.dtype(dtype).name}"):
            read(path)


def palette():
    table = RNG.integers(0, 256, (3, 256), np.uint16) * 257
    return table, np.uint8(table.T // 257)


def test_a_palette_is_colours_of_an_image_and_indices_of_labels(save):
    table, colours = palette()
    path = save(LABELS, photometric="palette", colormap=table)
    np.testing.assert_array_equal(read_image(path), colours[LABELS])
    np.testing.assert_array_equal(read_labels(path), LABELS)


@pytest.mark.parametrize("how", [{}, {"photometric": "miniswhite"}, {"tile": (16, 16)}, {"bigtiff": True}])
def test_labels_are_what_is_stored(save, how):
    np.testing.assert_array_equal(read_labels(save(LABELS, **{"photometric": "minisblack"} | how)), LABELS)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_masks_of_one_bit(save, photometric):
    """White is 1, however it is stored."""
    mask = LABELS > 9
    path = save(mask if photometric == "minisblack" else ~mask, photometric=photometric)
    np.testing.assert_array_equal(read_labels(path), mask)
    np.testing.assert_array_equal(read_image(path)[..., 1], mask * np.uint8(255))


def test_the_first_of_several_pages(save):
    path = save(np.stack([RGB, RGB[::-1]]), photometric="rgb")
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
def test_missing_strips_and_tiles_are_damage(save, tile, kept, capfd):
    path = save(RGB, photometric="rgb", tile=tile, rowsperstrip=None if tile else 4)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=r"TIFF file of \d+ bytes is cut short or damaged$"):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_damaged_deflate_is_damage(tmp_path):
    """A byte of the compressed pixels in turn: deflate has a checksum, which is asked."""
    path = tmp_path / "x.tif"
    profile = {"height": SIZE[0], "width": SIZE[1], "count": 3, "dtype": np.uint8}
    with rasterio.open(
        path, "w", "GTiff", photometric="RGB", compress="deflate", interleave="pixel", **profile
    ) as file:
        file.write(RGB.transpose(2, 0, 1))
    whole = path.read_bytes()
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        spans = [*zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True)]
    for start, count in spans:
        for at in range(start + 2, start + count, max(1, count // 7)):
            data = bytearray(whole)
            data[at] ^= 0x55
            path.write_bytes(data)
            with pytest.raises(ImageError, match="cut short or damaged"):
                read_image(path)


def test_a_file_that_claims_more_than_is_decoded(save, monkeypatch):
    monkeypatch.setattr("fullres.pipeline.data.images._MOST_PIXELS", 1000)
    for big in (False, True):
        path = save(RGB, photometric="rgb", bigtiff=big)
        for read in (read_image, read_labels, image_size):
            with pytest.raises(ImageError, match="53x37 pixels are more than"):
                read(path)


def test_nothing_is_written_beside_a_file(save):
    path = save(RGB, photometric="rgb")
    read_image(path)
    assert [p.name for p in path.parent.iterdir()] == ["x.tif"]


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_chosen_bands(save, planar, deep):
    pixels = RNG.integers(0, 256, (*SIZE, 5), np.uint8)
    stored = in_16(pixels) if deep else pixels
    stored = stored if planar == "contig" else np.ascontiguousarray(stored.transpose(2, 0, 1))
    path = save(stored, photometric="minisblack", planarconfig=planar, extrasamples=["unspecified"] * 4)
    for bands in ((4, 1, 2), (5, 5, 1), (1, 2, 3)):
        np.testing.assert_array_equal(read_image(path, bands), pixels[..., [b - 1 for b in bands]])
    np.testing.assert_array_equal(read_image(path, (3,)), np.dstack([pixels[..., 2]] * 3))
    with pytest.raises(ImageError, match="band 6 is asked for; it has 5"):
        read_image(path, (1, 6, 2))


def test_bands_of_another_format(tmp_path):
    path = tmp_path / "x.png"
    write_png(path, RGB)
    with pytest.raises(ImageError, match=r"bands \[4, 1, 2\] are asked for; of TIFF files alone"):
        read_image(path, (4, 1, 2))
