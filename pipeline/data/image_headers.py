"""What an image file says of itself before its pixels are decoded: format, size, orientation, PNG chunks.

Orientation is EXIF's: 1 to 8, of which 5 to 8 swap height and width. JPEG carries it in an APP1 segment,
PNG in an eXIf chunk, WebP in an EXIF chunk, and EXIF data is itself a TIFF directory, so one parser serves
all four.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274  # TIFF tags
_HAS_EXIF = 8  # flag of an extended WebP file


Data = bytes | memoryview


def image_format(data: Data) -> str | None:
    """ "PNG", "JPEG", "TIFF", "BMP" or "WebP" by the file's first bytes; None for anything else."""
    data = bytes(data[:12])
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    return None


def oriented_size(data: Data) -> tuple[int, int] | None:
    """(H, W) in pixels after orientation, from the file's first bytes; None where the header goes on behind
    them, or where only decoding tells."""
    parsers = {
        "PNG": _png_header, "JPEG": _jpeg_header, "TIFF": _tiff_header, "BMP": _bmp_header,
        "WebP": _webp_header,
    }  # fmt: skip
    kind = image_format(data)
    try:
        header = parsers[kind](data) if kind else None
    except (struct.error, IndexError):  # the file ends inside its header
        return None
    if header is None:
        return None
    height, width, orientation = header
    return (width, height) if 5 <= orientation <= 8 else (height, width)


def png_chunks(data: Data) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of each chunk of a PNG file, in order, up to IEND or the end of `data`."""
    view, at = memoryview(data), len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, view[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        at += length + 12


def png_is_sound(data: bytes) -> bool:
    """Whether the lengths and checksums of a PNG file's chunks fit. Decoders read on over some that don't, of
    a palette say. Bytes behind the last chunk are no fault."""
    at, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            return False
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if at == len(PNG_SIGNATURE) and (kind, length) != (b"IHDR", 13):
            return False
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        at = end + 4
    return True


def png_from_chunks(chunks: Iterable[tuple[bytes, bytes | memoryview]]) -> bytes:
    """The PNG file of these (type, content) chunks; the reverse of `png_chunks`."""
    parts: list[bytes | memoryview] = [PNG_SIGNATURE]
    for kind, content in chunks:
        crc = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", crc)]
    return b"".join(parts)


def _png_header(data: Data) -> tuple[int, int, int] | None:
    width, height = struct.unpack_from(">II", data, 16)
    chunks = dict(png_chunks(data))  # EXIF data may come behind the pixels
    if b"IDAT" not in chunks:
        return None
    return height, width, _exif_orientation(chunks.get(b"eXIf"))


def _jpeg_header(data: Data) -> tuple[int, int, int] | None:
    size = exif = None
    for marker, content in _jpeg_segments(data):
        if marker == 0xE1 and content[:6] == b"Exif\0\0" and exif is None:
            exif = content[6:]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame, of any coding
            size = struct.unpack_from(">HH", content, 1)
    return (*size, _exif_orientation(exif)) if size else None


def _jpeg_segments(data: Data) -> Iterator[tuple[int, memoryview]]:
    """(marker, content) of the segments before the first scan."""
    view, at = memoryview(data), 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield data[at + 1], view[at + 4 : at + 2 + length]
        at += 2 + length


def _tiff_header(data: Data) -> tuple[int, int, int] | None:
    tags = _tiff_tags(memoryview(data))
    if _WIDTH not in tags or _HEIGHT not in tags:
        return None
    return tags[_HEIGHT], tags[_WIDTH], tags.get(_ORIENTATION, 1)


def _bmp_header(data: Data) -> tuple[int, int, int] | None:
    (length,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if length == 12 else "<ii", data, 18)
    return abs(height), width, 1  # negative where the rows are stored from the top


def _webp_header(data: Data) -> tuple[int, int, int] | None:
    """A lossy (VP8) or lossless (VP8L) picture, or an extended file; its EXIF data come behind the pixels."""
    chunks = dict(_riff_chunks(data))
    if b"VP8X" in chunks:
        flags, width, width_high, height, height_high = struct.unpack_from("<B3xHBHB", chunks[b"VP8X"])
        (length,) = struct.unpack_from("<I", data, 4)
        if flags & _HAS_EXIF and len(data) < 8 + length:
            return None
        orientation = _exif_orientation(chunks.get(b"EXIF") if flags & _HAS_EXIF else None)
        return 1 + height + (height_high << 16), 1 + width + (width_high << 16), orientation
    if b"VP8L" in chunks:
        (bits,) = struct.unpack_from("<I", chunks[b"VP8L"], 1)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF), 1
    width, height = struct.unpack_from("<HH", chunks.get(b"VP8 ", b""), 6)
    return height & 0x3FFF, width & 0x3FFF, 1  # the upper two bits ask for scaling, which nobody does


def _riff_chunks(data: Data) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, view[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _exif_orientation(exif: memoryview | None) -> int:
    try:
        return _tiff_tags(exif).get(_ORIENTATION, 1) if exif is not None else 1
    except struct.error:  # damaged EXIF data: the image itself may be sound
        return 1


def tiff_orientation(data: bytes) -> int:
    return _tiff_tags(memoryview(data)).get(_ORIENTATION, 1)


def oriented(image: np.ndarray, orientation: int) -> np.ndarray:
    """H x W x 3 stored pixels as EXIF's orientation has them seen; other values change nothing."""
    if 5 <= orientation <= 8:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _tiff_tags(data: memoryview) -> dict[int, int]:
    """The single 16- and 32-bit values in the first directory of a TIFF or BigTIFF file."""
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    # where the offset of the directory lies; its count, and an entry: tag, type, length and then the value
    at, offset, number, entry = (8, "Q", "Q", "HHQ") if version == 43 else (4, "I", "H", "HHI")
    (start,) = struct.unpack_from(order + offset, data, at)
    (count,) = struct.unpack_from(order + number, data, start)
    first, value = start + struct.calcsize(order + number), struct.calcsize(order + entry)
    size = value + struct.calcsize(order + offset)
    tags = {}
    for at in range(first, first + size * count, size):
        tag, kind, length = struct.unpack_from(order + entry, data, at)
        if length == 1 and kind in (3, 4):
            (tags[tag],) = struct.unpack_from(order + "HI"[kind - 3], data, at + value)
    return tags
