"""Label maps in PNG without OpenCV, beside OpenCV."""

import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fullres.pipeline.data.image_headers import png_chunks, png_from_chunks
from fullres.pipeline.data.images import ImageError, decode_labels
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


@pytest.mark.parametrize(("colour_type", "depth"), [(3, 8), (0, 8), (3, 4), (0, 2)])
def test_a_flipped_bit_never_gives_other_labels(colour_type, depth):
    """Each bit of a file in turn. What lies in no pixel may be another and nothing changes."""
    rows = np.uint8([[0, 27, 228], [1, 1, 2]])
    more = [(b"PLTE", bytes(range(48)))] if colour_type == 3 else []
    width = 3 * 8 // depth
    file = bytearray(png([0, 2], rows, colour_type, depth, more=more))
    file[16:20] = struct.pack(">I", width)
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    expected = decode_labels(bytes(file), "x.png")
    assert expected.shape == (2, width)
    for bit in range(8 * len(file)):
        flipped = bytearray(file)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError, match=r"^x\.png: "):
            decode_labels(bytes(flipped), "x.png")


def test_no_more_is_inflated_than_the_header_needs():
    """A small file of 16 x 16 pixels by its header and 64 MB by its data."""
    bomb = zlib.compress(bytes(64 << 20), 9)
    file = png([0], np.zeros((1, 16), np.uint8), data=bomb)
    tracemalloc.start()
    assert decode_indices(file) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("size", [(1 << 31, 1 << 31), (1 << 16, 1 << 16), (1, (1 << 31) - 1)])
def test_a_huge_claim_is_refused_before_decoding(size):
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    file = png_from_chunks([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")])
    with pytest.raises(ImageError, match=r"^x\.png: .* pixels are more than OpenCV decodes"):
        decode_labels(file, "x.png")
