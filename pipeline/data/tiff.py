"""TIFF files, read by GDAL: OpenCV decodes some layouts of them wrong without a word."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

_RGB = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
# Only the bytes that are given are looked at, and nothing is written beside them.
_SETTINGS = {"GDAL_PAM_ENABLED": "NO", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

_OPENING = threading.Lock()

CheckSize = Callable[[tuple[int, int]], None]  # raises where (H, W) is too large to be decoded


class TiffError(Exception):
    """A TIFF file that is not read; the message says why, and is empty for a damaged one."""


def tiff_image(data: bytes, check_size: CheckSize, bands: Sequence[int] | None = None) -> np.ndarray:
    """The first page as stored, H x W x 3 RGB, uint8 or uint16: grey (white-is-zero turned over), a palette's
    colours, or the first three bands of a file that says they are red, green and blue. Alpha and further
    bands are left out. `bands`: take these, whatever the file says they are (three for red, green and blue,
    one for grey, or as many as a network reads: H x W x bands); the first is 1.

    Raises TiffError: damaged, of bands that are not said to be grey or RGB, or not of 8 or 16 bits.
    """
    with _opened(data) as file:
        _check_depth(file)
        colours = list(file.colorinterp)
        check_size(file.shape)
        if bands is not None:
            if max(bands) > file.count:
                raise TiffError(f"band {max(bands)} is asked for; it has {file.count}")
            pixels = _pixels(file, list(bands))
            pixels = np.repeat(pixels, 3, 0) if len(bands) == 1 else pixels
            return np.ascontiguousarray(pixels.transpose(1, 2, 0))
        if colours[0] == ColorInterp.palette and file.count == 1:
            return _colours_of(file)[_pixels(file, [1])[0]]
        if colours[:3] == _RGB:
            pixels = _pixels(file, [1, 2, 3])
        elif colours in ([ColorInterp.gray], [ColorInterp.gray, ColorInterp.alpha]):
            pixels = np.repeat(_pixels(file, [1]), 3, 0)
        else:
            named = ", ".join(colour.name for colour in colours)
            raise TiffError(
                f"{file.count} bands ({named}): grey, palette and RGB are read, or bands chosen by number"
            )
        if file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
            pixels = np.iinfo(pixels.dtype).max - pixels
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def tiff_labels(data: bytes, check_size: CheckSize) -> np.ndarray:
    """The stored values of the first page, H x W or H x W x bands: palettes give indices. Of one bit, what is
    shown as black is 0 and as white 1.

    Raises TiffError: damaged, or not of 1, 8 or 16 bits.
    """
    with _opened(data) as file:
        _check_depth(file)
        check_size(file.shape)
        pixels = _pixels(file, list(range(1, file.count + 1)))
        if _bits(file) == 1 and file.colorinterp[0] == ColorInterp.palette:
            return (_colours_of(file)[pixels[0], 0] > 127).astype(np.uint8)
        return pixels[0] if file.count == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


@contextmanager
def _opened(data: bytes) -> Iterator[rasterio.DatasetReader]:
    try:
        with rasterio.Env(**_SETTINGS), rasterio.MemoryFile(data) as memory, _open(memory) as file:
            yield file
    except RasterioError as error:
        codec = next((line for line in str(error).splitlines() if "codec" in line), None)
        raise TiffError(f"its compression is not read ({codec})" if codec else "") from error


def _open(memory: rasterio.MemoryFile) -> rasterio.DatasetReader:
    """Filters of warnings are the process's, and images are read by several threads: one at a time."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return memory.open(driver="GTiff")


def _pixels(file: rasterio.DatasetReader, bands: list[int]) -> np.ndarray:
    """bands x H x W. What GDAL warns of while it decodes is damage: it goes on with what it has."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    thread = threading.get_ident()  # others may be reading other files
    handler.emit = lambda record: said.append(record) if record.thread == thread else None  # type: ignore[method-assign]
    log = logging.getLogger("rasterio._env")
    log.addHandler(handler)
    try:
        pixels = file.read(bands)
    finally:
        log.removeHandler(handler)
    if said:
        raise TiffError("")
    return pixels


def _bits(file: rasterio.DatasetReader) -> int:
    return int(file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", np.dtype(file.dtypes[0]).itemsize * 8))


def _check_depth(file: rasterio.DatasetReader) -> None:
    if set(file.dtypes) - {"uint8"} and set(file.dtypes) != {"uint16"}:
        raise TiffError(f"pixels are {file.dtypes[0]}; 8- and 16-bit unsigned integers are read")
    if _bits(file) not in (1, 8, 16):
        raise TiffError(f"pixels have {_bits(file)} bits; 1, 8 and 16 are read")


def _colours_of(file: rasterio.DatasetReader) -> np.ndarray:
    """The palette, 256 or 65536 x 3 uint8; indices beyond it are black."""
    table = np.zeros((1 << 8 * np.dtype(file.dtypes[0]).itemsize, 3), np.uint8)
    for index, colour in file.colormap(1).items():
        table[index] = colour[:3]
    return table
