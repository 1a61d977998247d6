"""Label maps in PNG, read faster than OpenCV does: zlib inflates them, and the rows' filters are undone here.

A row is stored as differences from what is left of it and above it (PNG specification, "Filtering"), which in
label maps are nearly all zero. libpng's loops are made for photographs; these go the short way where
neighbours are equal.
"""

import struct
import zlib

import numpy as np

from fullres.ops.jit import jit
from fullres.pipeline.data.image_headers import png_chunks

_GREY, _PALETTE = 0, 3
_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)


def decode_indices(data: bytes) -> np.ndarray | None:
    """H x W uint8, the stored values of a PNG file of 8-bit grey or palette pixels, whose chunks are sound
    (`png_is_sound`). None for a PNG file of another kind, an interlaced one, or one whose pixels are damaged.

    No more is inflated than its header says there is."""
    chunks = list(png_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or chunks[-1][0] != b"IEND":
        return None
    width, height, depth, colour_type, *methods = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth != 8 or colour_type not in (_GREY, _PALETTE) or methods != [0, 0, 0] or 0 in (width, height):
        return None
    size = height * (1 + width)
    stream = zlib.decompressobj()
    try:
        filtered = stream.decompress(b"".join(part for kind, part in chunks if kind == b"IDAT"), size)
        rest = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)  # the checksum behind them
    except zlib.error:
        return None
    if len(filtered) != size or rest or not stream.eof:
        return None
    labels = np.empty((height, width), np.uint8)
    known = _unfilter(np.frombuffer(filtered, np.uint8).reshape(height, 1 + width), labels)
    return labels if known else None


@jit(nogil=True)
def _unfilter(filtered, pixels):
    """Undo the filter of each row, which its first byte names. False where there is no such filter."""
    height, width = pixels.shape
    nothing = np.zeros(width, np.uint8)
    for y in range(height):
        kind, row, here = filtered[y, 0], filtered[y, 1:], pixels[y]
        above = pixels[y - 1] if y > 0 else nothing
        left, corner = np.int64(0), np.int64(0)  # the corner is what lies above the left one
        if kind == _NONE:
            here[:] = row
        elif kind == _SUB:
            for x in range(width):
                left = (left + row[x]) & 255
                here[x] = left
        elif kind == _UP:
            for x in range(width):
                here[x] = row[x] + above[x]
        elif kind == _AVERAGE:
            for x in range(width):
                left = (row[x] + ((left + above[x]) >> 1)) & 255
                here[x] = left
        elif kind == _PAETH:
            for x in range(width):
                up = np.int64(above[x])
                left = (row[x] + _paeth(left, up, corner)) & 255
                here[x] = left
                corner = up
        else:
            return False
    return True


@jit(nogil=True, inline="always")
def _paeth(left, up, corner):
    """Which of the three is nearest to left + up - corner; of equals the first."""
    if left == corner:
        return up
    if up == corner:
        return left
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner
