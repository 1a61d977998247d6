"""Damaged JPEG files, judged by what libjpeg says while OpenCV decodes them."""

import cv2
import numpy as np
import pytest

from fullres.pipeline.data.images import ImageError, read_image

JPEG_KINDS = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restart markers": [cv2.IMWRITE_JPEG_RST_INTERVAL, 4],
    "4:4:4": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
}


def jpeg(kind, grey=False):
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (9, 13, 3), np.uint8), (133, 97))
    pixels = pixels[..., 0] if grey else pixels
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92, *JPEG_KINDS[kind]])[1])


def complaints(data, capfd):
    """What libjpeg prints while OpenCV decodes: it goes on, with grey or shifted blocks."""
    capfd.readouterr()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return capfd.readouterr().err.strip() or ("undecoded" if image is None else "")


def refusal(path):
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_jpeg_is_refused_where_its_decoder_complains(kind, grey, tmp_path, capfd):
    """Bits turned over, bytes taken out and put in, ends cut off, at random places; behind the end anything
    may stand."""
    sound = jpeg(kind, grey)
    rng = np.random.default_rng(1)
    path, found = tmp_path / "x.jpg", {True: 0, False: 0}
    for number in range(120):
        at, data = int(rng.integers(2, len(sound))), bytearray(sound)
        if number % 4 == 0:
            data = data[:at]
        elif number % 4 == 1:
            del data[at : at + int(rng.integers(1, 30))]
        elif number % 4 == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 5)))
        else:
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        expected = bool(complaints(bytes(data), capfd))
        reason = refusal(path)
        assert (reason is not None) == expected, (number, at)
        assert reason is None or (reason.startswith(f"{path}: ") and "\n" not in reason)
        found[expected] += 1
    assert min(found.values()) > 10
    for data in (sound, sound + b"anything"):
        path.write_bytes(data)
        assert read_image(path).shape == (97, 133, 3)


def test_jpeg_damage_says_what_it_is(tmp_path):
    (tmp_path / "x.jpg").write_bytes(jpeg("baseline")[:-9])
    with pytest.raises(ImageError, match=r"JPEG file of \d+ bytes is cut short or damaged \("):
        read_image(tmp_path / "x.jpg")
