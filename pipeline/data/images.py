"""Images and label maps between files and arrays.

Images are HxWx3 uint8 RGB, label maps HxW uint8. Writers go through `atomic`: a file is whole or absent.
"""

import glob
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from fullres.ops.errors import FullresError
from fullres.pipeline.data.files import files_below, write_bytes_atomically
from fullres.pipeline.data.image_headers import (
    image_format,
    oriented,
    oriented_size,
    png_chunks,
    png_from_chunks,
    png_is_sound,
    tiff_orientation,
)
from fullres.pipeline.data.jpeg import jpeg_damage
from fullres.pipeline.data.png_labels import decode_indices
from fullres.pipeline.data.tiff import TiffError, tiff_image, tiff_labels

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

# Whatever OpenCV would log of a bad file, ImageError says in one line.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# OpenCV's limit where the environment sets no other.
_LIMIT_VARIABLE, _MOST_PIXELS = "OPENCV_IO_MAX_IMAGE_PIXELS", 1 << 30


Content = TypeVar("Content", bytes, memoryview)


class ImageError(FullresError):
    """An image that can't be read or found; one line with its path and the reason."""


def naming(path: str | Path, reason: str) -> str:
    """`reason` with the path in front, unless it names it already: as it is or as the end of a longer path,
    not as a part of another name."""
    named = re.search(rf"(?<![^\s'\"(\[/]){re.escape(str(path))}(?![^\s'\")\],:;])", reason)
    return reason if named else f"{path}: {reason}"


def read_image(path: str | Path, bands: Sequence[int] | None = None) -> np.ndarray:
    """Read a PNG, JPEG, TIFF, BMP or WebP file as HxWx3 uint8 RGB.

    Grey becomes three equal channels, a palette its colours, alpha is dropped, 16 bits become 8 (rounded
    x/257), and EXIF orientation is applied. `bands`: those of a TIFF file, by their numbers from 1: three for
    red, green and blue, one for grey, or others, which become HxWxbands.

    Raises:
        ImageError: missing, empty, cut short, damaged or of another format; or pixels neither 8 nor 16 bits.
    """
    return decode_image(read_bytes(path), path, bands)


def decode_image(data: bytes, path: str | Path, bands: Sequence[int] | None = None) -> np.ndarray:
    """As `read_image`, of a file's bytes; `path` names it in errors."""
    if image_format(data) == "TIFF":
        image = _decode_tiff(path, data, partial(tiff_image, bands=bands))
        return oriented(image if image.dtype == np.uint8 else _in_8_bits(image), tiff_orientation(data))
    if bands is not None and image_format(data) is not None:
        raise ImageError(f"{path}: bands {list(bands)} are asked for; of TIFF files alone they can be chosen")
    # IMREAD_UNCHANGED would leave the orientation out; these flags apply it and keep 16 bits.
    image = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image.dtype == np.uint16:
        image = _in_8_bits(image)
    if image.dtype != np.uint8:
        raise ImageError(f"{path}: pixels are {image.dtype}; 8- and 16-bit unsigned integers are read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_channels(path: str | Path, channels: int, bands: Sequence[int] | None = None) -> np.ndarray:
    """As `read_image`, for a network that reads this many channels: HxWxchannels uint8.

    Raises ImageError, also for a colour image where one channel is read, and for another number of bands.
    """
    image = read_image(path, bands)
    if channels == 1 and image.shape[2] == 3:
        if not (image == image[..., :1]).all():
            raise ImageError(f"{path}: a colour image, and the network reads one channel")
        return np.ascontiguousarray(image[..., :1])
    if image.shape[2] != channels:
        raise ImageError(
            f"{path}: {image.shape[2]} channels, and the network reads {channels}: choose as many bands of a "
            "TIFF file"
        )
    return image


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map as HxW uint8: the values of an 8-bit channel, or a palette PNG's indices, as stored.

    Three equal channels are taken as one. Formats that may alter values (JPEG, WebP) are refused.

    Raises:
        ImageError: unreadable as in `read_image`, not PNG or TIFF, or not one 8-bit value a pixel.
    """
    return decode_labels(read_bytes(path), path)


def decode_labels(data: bytes, path: str | Path) -> np.ndarray:
    """As `read_labels`, of a file's bytes; `path` names it in errors."""
    if not data:
        raise ImageError(f"{path}: empty file")
    kind = image_format(data)
    if kind in ("JPEG", "BMP", "WebP"):
        raise ImageError(f"{path}: a {kind} file; label maps are read from PNG and TIFF")
    depth = 8
    check_header(path, data)
    if kind == "PNG":
        if (indices := decode_indices(data)) is not None:
            return indices
        data, depth = _palette_as_grey(data)
    labels = (
        _decode_tiff(path, data, tiff_labels) if kind == "TIFF" else _decode(path, data, cv2.IMREAD_UNCHANGED)
    )
    if labels.dtype != np.uint8:
        raise ImageError(f"{path}: label values are {labels.dtype}; uint8 is read")
    if labels.ndim == 3:
        first, *others = cv2.split(labels)
        if len(others) != 2 or not all(np.array_equal(first, other) for other in others):
            raise ImageError(
                f"{path}: {labels.shape[2]} channels that differ: a colour picture, not class ids"
            )
        labels = first
    # Depths of 1, 2 and 4 bits come out stretched to 0..255.
    return labels if depth == 8 else labels // (255 // (2**depth - 1))


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) in pixels as `read_image` would give; from the header alone unless only decoding tells.

    Raises:
        ImageError: missing, empty, not an image, of no pixels or of more than OpenCV decodes. A file cut
            short behind its header goes unnoticed.
    """
    size = oriented_size(_content(path, _mapped))
    if size is None:
        return read_image(path).shape[:2]
    _check_size(path, size)
    return size


def _mapped(path: Path) -> memoryview:
    """A file's content; only those pages are read that are looked at."""
    return memoryview(np.memmap(path, np.uint8, "r") if path.stat().st_size else b"")  # type: ignore[arg-type]


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write an HxW uint8 label map or an HxWx3 uint8 RGB image as PNG, whole or not at all."""
    write_bytes_atomically(path, encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """The file that `write_png` writes."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # Run lengths alone: class ids compress best so, and nothing is faster on photographs.
    strategy = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    return cv2.imencode(".png", image, strategy)[1].tobytes()


def list_images(inputs: Sequence[str | Path]) -> list[tuple[Path, Path]]:
    """List (image file, relative output path without suffix) of files, folders and glob patterns.

    Folders are searched recursively as `files_below` says, `**` in a pattern likewise. The output path is
    relative to the folder given, or to the pattern's part before its first wildcard; of a file given it is
    the bare name. Sorted within each input; a path given twice is listed once. Two names of one file are two
    images, and a link that leads nowhere is an image that can't be read.

    Raises:
        ImageError: an input without any image, or two files with the same output path.
    """
    listed: dict[str, tuple[Path, Path]] = {}  # by absolute path
    taken: dict[Path, Path] = {}
    for given in inputs:
        for path, stem in _images_of(given):
            if os.path.abspath(path) in listed:
                continue
            if stem in taken:
                raise ImageError(f"{taken[stem]} and {path} have the same output name {stem}")
            taken[stem] = path
            listed[os.path.abspath(path)] = (path, stem)
    return list(listed.values())


def _images_of(given: str | Path) -> list[tuple[Path, Path]]:
    path = Path(given)
    if path.is_file():
        return [(path, Path(path.stem))]
    if path.is_dir():
        root, images = path, files_below(path, SUFFIXES)
    elif glob.has_magic(str(given)):
        wild = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        root = Path(*path.parts[:wild])
        found = [Path(name) for name in glob.glob(str(given), recursive=True)]
        images = sorted(file for file in found if file.suffix.lower() in SUFFIXES and not file.is_dir())
    else:
        raise ImageError(f"{given}: no such file or folder")
    if not images:
        where = "no image in this folder" if path.is_dir() else "no image matches"
        raise ImageError(f"{given}: {where}; images end in {' '.join(SUFFIXES)}")
    return [(file, file.relative_to(root).with_suffix("")) for file in images]


def read_bytes(path: str | Path) -> bytes:
    """A file's content. Raises ImageError: missing, unreadable or empty."""
    return _content(path, Path.read_bytes)


def _content(path: str | Path, read: Callable[[Path], Content]) -> Content:
    try:
        data = read(Path(path))
    except OSError as error:
        raise ImageError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if not len(data):
        raise ImageError(f"{path}: empty file")
    return data


def _check_size(path: str | Path, size: tuple[int, int]) -> None:
    height, width = size
    if min(size) < 1:
        raise ImageError(f"{path}: {width}x{height} pixels; its header is damaged")
    if height * width > _MOST_PIXELS and _LIMIT_VARIABLE not in os.environ:
        raise ImageError(_too_large(path, size, f"at most {_MOST_PIXELS}"))


def decode_png_16(data: bytes, path: str | Path, axes: int) -> np.ndarray:
    """The values of a PNG file of 16 bits as they are, uint16: H x W with two `axes`; H x W x C with three,
    where OpenCV puts red last, and makes three equal channels of grey with alpha.

    Raises ImageError: another kind of file, or damaged.
    """
    values = None
    if image_format(data) == "PNG":
        check_header(path, data)
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ImageError(f"{path}: not a PNG file, or damaged")
    if values.dtype != np.uint16 or values.ndim != axes:
        wanted = "one channel of 16 bits is" if axes == 2 else "16 bits and several channels are"
        raise ImageError(f"{path}: {values.dtype} of shape {values.shape}; {wanted} read")
    return values


def check_header(path: str | Path, data: bytes) -> None:
    """Raise ImageError for what a file says of itself, before anything is decoded: its size, and a PNG file's
    checksums."""
    if image_format(data) == "PNG" and not png_is_sound(data):
        raise ImageError(f"{path}: PNG file of {len(data)} bytes is cut short or damaged")
    if (size := oriented_size(data)) is not None:
        _check_size(path, size)


def _in_8_bits(image: np.ndarray) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=1 / 257)


def _decode_tiff(
    path: str | Path, data: bytes, decode: Callable[[bytes, Callable[[tuple[int, int]], None]], np.ndarray]
) -> np.ndarray:
    try:
        return decode(data, partial(_check_size, path))
    except TiffError as error:
        damaged = f"TIFF file of {len(data)} bytes is cut short or damaged"
        raise ImageError(f"{path}: {str(error) or damaged}") from error


def _decode(path: str | Path, data: bytes, flags: int) -> np.ndarray:
    kind = image_format(data)
    if kind is None:
        raise ImageError(f"{path}: not an image; PNG, JPEG, TIFF, BMP and WebP are read")
    check_header(path, data)
    if kind == "JPEG" and (damage := jpeg_damage(data)) is not None:
        raise ImageError(f"{path}: JPEG file of {len(data)} bytes is cut short or damaged ({damage})")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # the one assertion a well-formed header can meet is OpenCV's size limit
        raise ImageError(_too_large(path, oriented_size(data) or ("?", "?"), error.err)) from error
    if image is None:
        raise ImageError(f"{path}: {kind} file of {len(data)} bytes is cut short or damaged")
    return image


def _too_large(path: str | Path, size: tuple[object, object], limit: str) -> str:
    return (
        f"{path}: {size[1]}x{size[0]} pixels are more than OpenCV decodes"
        f" ({limit}; set {_LIMIT_VARIABLE} before starting to raise it)"
    )


def _palette_as_grey(data: bytes) -> tuple[bytes, int]:
    """A PNG file whose palette indices decode as grey values, and its bits per value.

    OpenCV expands palettes into colours. The pixels of a palette PNG and of a grey one are stored alike, so
    only the colour type in the header changes, and the palette goes. Other PNG files come back as they are.
    """
    chunks = list(png_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return data, 8  # damaged: decoding says so
    header = bytes(chunks[0][1])
    depth, colour_type = header[8], header[9]
    if colour_type == 3:
        grey = header[:9] + b"\0" + header[10:]
        kept = [(kind, content) for kind, content in chunks if kind in (b"IDAT", b"IEND")]
        data = png_from_chunks([(b"IHDR", grey), *kept])
    return data, min(depth, 8)
