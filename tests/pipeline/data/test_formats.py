"""Every format in every layout that Pillow writes, beside what Pillow reads."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from fullres.pipeline.data.images import image_size, read_image, read_labels

RNG = np.random.default_rng(0)
SIZE = (37, 53)
COLOURS = Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8))
ALPHA = Image.fromarray(RNG.integers(0, 256, SIZE, np.uint8))


def transparent_palette():
    image = COLOURS.quantize(100)
    image.info["transparency"] = 3
    return image


MODES = {
    "one bit": COLOURS.convert("1"),
    "grey": COLOURS.convert("L"),
    "grey with alpha": Image.merge("LA", (COLOURS.convert("L"), ALPHA)),
    **{f"palette of {n}": COLOURS.quantize(n) for n in (2, 4, 16, 200)},
    "palette with transparency": transparent_palette(),
    "RGB": COLOURS,
    "RGBA": Image.merge("RGBA", (*COLOURS.split(), ALPHA)),
    "CMYK": COLOURS.convert("CMYK"),
    "16 bits": Image.fromarray(RNG.integers(0, 65536, SIZE, np.uint16)),
}
HOW = {
    "PNG": [{}, {"bits": 8}],
    "BMP": [{}],
    "WEBP": [{"lossless": True, "exact": True}, {"quality": 80}],
    "JPEG": [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "packbits"}],
}


def written():
    for (kind, ways), (mode, image) in product(HOW.items(), MODES.items()):
        for number, how in enumerate(ways):
            data = io.BytesIO()
            try:
                image.save(data, kind, **how)
            except (OSError, KeyError):  # the format has no such mode
                continue
            yield pytest.param(kind, data.getvalue(), id=f"{kind} {mode} {number}")


FILES = list(written())


def colours_in(data):
    """As Pillow decodes them, alpha left out."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I"):
        grey = np.round(np.array(image).astype(np.float64) / 257)
        return np.repeat(grey[..., None], 3, 2)
    if image.mode == "LA":
        image = image.getchannel(0)
    return np.array(image.convert("RGBA" if image.mode in ("P", "RGBA") else "RGB"))[..., :3]


def test_there_are_files_of_every_format():
    kinds = [parameters.values[0] for parameters in FILES]
    assert all(kinds.count(kind) >= 8 for kind in HOW)


@pytest.mark.parametrize(("kind", "data"), FILES)
def test_images(tmp_path, kind, data):
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(data)
    found, expected = read_image(path), colours_in(data)
    assert found.shape == (*SIZE, 3)
    assert image_size(path) == SIZE
    inks = Image.open(path).mode == "CMYK"  # rounded in two ways
    assert np.abs(found.astype(int) - expected).max() <= (1 if inks else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["grey", "palette of 2", "palette of 4", "palette of 16", "palette of 200"])
def test_labels_are_the_stored_values(tmp_path, kind, mode):
    path, ids = tmp_path / f"x.{kind.lower()}", MODES[mode]
    ids.save(path)
    np.testing.assert_array_equal(read_labels(path), np.array(ids))
