"""Label maps in PNG without OpenCV, beside OpenCV."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fullres.pipeline.data.image_headers import png_chunks, png_from_chunks
from fullres.pipeline.data.png_labels import decode_indices

# few values, so that neighbours are equal and not equal
FILTERED = arrays.arrays(
    np.uint8,
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    elements=st.sampled_from([0, 0, 1, 2, 200, 255]),
)


def png(filters, rows, colour_type=0, depth=8, interlace=0, data=None, more=()):
    """A PNG file from the filter of each row and what is stored of it."""
    stored = b"".join(bytes([kind]) + row.tobytes() for kind, row in zip(filters, rows, strict=True))
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, colour_type, 0, 0, interlace)
    data = zlib.compress(stored) if data is None else data
    half = len(data) // 2
    parts = [(b"IDAT", data[:half]), (b"IDAT", data[half:])]
    return png_from_chunks([(b"IHDR", header), *more, *parts, (b"IEND", b"")])


@settings(max_examples=200, deadline=None)
@given(FILTERED, st.randoms(use_true_random=False))
def test_every_filter_as_opencv_undoes_it(rows, random):
    file = png([random.randrange(5) for _ in rows], rows)
    expected = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decode_indices(file), expected)


@pytest.mark.parametrize("strategy", [cv2.IMWRITE_PNG_STRATEGY_DEFAULT, cv2.IMWRITE_PNG_STRATEGY_RLE])
def test_what_opencv_writes(strategy):
    labels = cv2.resize(
        np.random.default_rng(0).integers(0, 20, (11, 17), np.uint8),
        (401, 300),
        interpolation=cv2.INTER_NEAREST,
    )
    file = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_STRATEGY, strategy])[1].tobytes()
    np.testing.assert_array_equal(decode_indices(file), labels)


def test_indices_of_a_palette():
    rows = np.uint8([[0, 2, 1], [1, 1, 2]])
    file = png([0, 0], rows, colour_type=3, more=[(b"PLTE", bytes(range(9))), (b"tRNS", b"\0")])
    np.testing.assert_array_equal(decode_indices(file), rows)


ROWS = np.uint8([[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "file",
    [
        png([0, 0], ROWS, colour_type=4),
        png([0, 0], ROWS, depth=4),
        png([0, 0], ROWS, interlace=1),
        png([0, 5], ROWS),
        png([0, 0], ROWS, data=zlib.compress(b"\0\1\2\0\3")),
        png([0, 0], ROWS, data=zlib.compress(b"\0\1\2\0\3\4\0")),
        png([0, 0], ROWS, data=zlib.compress(b"\0\1\2\0\3\4")[:-1]),
        png([0, 0], ROWS, data=zlib.compress(b"\0\1\2\0\3\4")[:-1] + b"\0"),
        png([0, 0], ROWS)[:-12],
        png([], np.empty((0, 2), np.uint8)),
        png([0], np.empty((1, 0), np.uint8)),
        png_from_chunks(list(png_chunks(png([0, 0], ROWS)))[1:]),
    ],
    ids=[
        "alpha", "4 bits", "interlaced", "unknown filter", "too few pixels", "too many", "cut short",
        "damaged", "no end", "no rows", "no columns", "no header",
    ],
)  # fmt: skip
def test_the_rest_is_left_to_opencv(file):
    assert decode_indices(file) is None
