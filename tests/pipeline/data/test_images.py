import struct
import zlib

import cv2
import numpy as np
import pytest

from fullres.pipeline.data.image_headers import oriented_size
from fullres.pipeline.data.images import ImageError, image_size, naming, read_image, read_labels
from tests.shared import DATA

RNG = np.random.default_rng(0)
RGB = cv2.resize(RNG.integers(0, 256, (9, 13, 3), np.uint8), (60, 40), interpolation=cv2.INTER_CUBIC)
LOSSLESS = {".png": [], ".tif": [], ".bmp": [], ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101]}
FORMATS = {**LOSSLESS, ".jpg": []}

# EXIF orientation: how the stored pixels become the picture.
ORIENT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encode(suffix, rgb, flags=()):
    return cv2.imencode(suffix, rgb[..., ::-1] if rgb.ndim == 3 else rgb, [*FORMATS[suffix], *flags])[
        1
    ].tobytes()


def exif(orientation, order="<"):
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    tags = [(271, 2, 4, 0), (274, 3, 1, orientation)]  # a maker's name before it
    entries = b"".join(struct.pack(order + "HHIHH", *tag, 0) for tag in tags)
    return magic + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4)


def jpeg_with(jpeg, *payloads):
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in payloads)
    return jpeg[:2] + segments + jpeg[2:]


def chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(values, colour_type, depth, *extra):
    """A PNG file written by hand: HxW or HxWxC values of 1 to 16 bits, chunks of `extra` before the data."""
    height, width = values.shape[:2]
    bits = (values[..., None].astype(int) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())  # filter 0 before each row
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(extra)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def save(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats(save, suffix):
    path = save(f"x{suffix}", encode(suffix, RGB))
    np.testing.assert_array_equal(read_image(path), RGB)
    assert image_size(path) == (40, 60)


def test_jpeg_keeps_channel_order(save):
    rgb = np.full((16, 16, 3), (200, 100, 30), np.uint8)
    path = save("x.jpg", encode(".jpg", rgb))
    assert abs(read_image(path).astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("orientation", ORIENT)
@pytest.mark.parametrize("order", "<>")
def test_exif_orientation(save, orientation, order):
    tag = exif(orientation, order)
    other = exif(1 if orientation > 4 else 6)  # of two, the first counts
    upright = encode(".jpg", RGB)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"  # shares the marker, must not be taken for EXIF
    jpeg = save("x.jpg", jpeg_with(upright, xmp, b"Exif\0\0" + tag, b"Exif\0\0" + other))
    expected = ORIENT[orientation](read_image(save("upright.jpg", upright)))
    np.testing.assert_array_equal(read_image(jpeg), expected)
    assert image_size(jpeg) == expected.shape[:2]

    whole = encode(".png", RGB)
    for data in (
        whole[:33] + chunk(b"eXIf", tag) + whole[33:],
        whole[:-12] + chunk(b"eXIf", tag) + whole[-12:],
    ):
        path = save("x.png", data)
        np.testing.assert_array_equal(read_image(path), ORIENT[orientation](RGB))
        assert image_size(path) == ORIENT[orientation](RGB).shape[:2]


@pytest.mark.parametrize("orientation", ORIENT)
@pytest.mark.parametrize("scale", [1, 257], ids=["8 bits", "16 bits"])
def test_tiff_orientation(save, orientation, scale):
    data = encode(".tif", RGB.astype(np.uint8 if scale == 1 else np.uint16) * scale)
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    entries = [data[start + 2 + 12 * i :][:12] for i in range(count)]
    entries.append(struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    directory = struct.pack("<H", count + 1) + b"".join(entries) + bytes(4)
    path = save("x.tif", data[:4] + struct.pack("<I", len(data)) + data[8:] + directory)
    np.testing.assert_array_equal(read_image(path), ORIENT[orientation](RGB))
    assert image_size(path) == ORIENT[orientation](RGB).shape[:2]


@pytest.mark.parametrize("quality", [80, 101], ids=["lossy", "lossless"])
@pytest.mark.parametrize("flag", [8, 0], ids=["EXIF", "EXIF to be passed over"])
def test_webp_orientation(save, quality, flag):
    """The EXIF chunk lies behind the pixels; it counts where the header announces it."""
    picture = encode(".webp", RGB, [cv2.IMWRITE_WEBP_QUALITY, quality])[12:]
    extended = struct.pack("<4sIBxxxHBHB", b"VP8X", 10, flag, 59, 0, 39, 0)
    content = b"WEBP" + extended + picture + struct.pack("<4sI", b"EXIF", len(exif(6))) + exif(6)
    data = b"RIFF" + struct.pack("<I", len(content)) + content
    path = save("x.webp", data)
    assert image_size(path) == read_image(path).shape[:2] == ((60, 40) if flag else (40, 60))
    assert oriented_size(data[:100]) == (None if flag else (40, 60))


@pytest.mark.parametrize("flags", [[80], [101], None], ids=["lossy", "lossless", "extended"])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 2)])
def test_webp_sizes(flags, size):
    picture = np.zeros((*size, 3 if flags else 4), np.uint8)
    picture[:1] = 9
    quality = [cv2.IMWRITE_WEBP_QUALITY, *(flags or [80])]
    data = cv2.imencode(".webp", picture, quality)[1].tobytes()
    assert oriented_size(data) == oriented_size(data[:30]) == size
    assert oriented_size(data[:20]) is None


def test_bmp_sizes(save):
    """Rows from the bottom as OpenCV writes them, from the top, and with OS/2's header."""
    data = encode(".bmp", RGB)
    for whole in (
        data,
        data[:22] + struct.pack("<i", -40) + data[26:],
        b"BM" + struct.pack("<IIIIHHHH", 7226, 0, 26, 12, 60, 40, 1, 24) + bytes(7200),
    ):
        assert image_size(path := save("x.bmp", whole)) == read_image(path).shape[:2] == (40, 60)
    assert oriented_size(data[:26]) == (40, 60)
    assert oriented_size(data[:25]) is None


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_rounded(save, suffix):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(every / 257)
    rgb = np.stack([every, every.T, every[::-1]], axis=2)
    np.testing.assert_array_equal(read_image(save("grey" + suffix, encode(suffix, every)))[..., 2], expected)
    read = read_image(save("rgb" + suffix, encode(suffix, rgb)))
    np.testing.assert_array_equal(read, np.stack([expected, expected.T, expected[::-1]], axis=2))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_grey_and_alpha(save, depth, colour_type, channels):
    values = RNG.integers(0, 2**depth, (5, 7, channels))
    colours = values[..., :3] if channels > 2 else values[..., :1].repeat(3, axis=2)
    read = read_image(save("x.png", png(values, colour_type, depth)))
    np.testing.assert_array_equal(read, np.round(colours / (257 if depth == 16 else 1)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_gives_colours_or_indices(save, depth):
    indices = RNG.integers(0, 2**depth, (5, 7), np.uint8)
    palette = RNG.integers(0, 256, (2**depth, 3), np.uint8)
    extra = [chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", b"\0\x80")]
    path = save("x.png", png(indices, 3, depth, *extra))
    np.testing.assert_array_equal(read_image(path), palette[indices])
    np.testing.assert_array_equal(read_labels(path), indices)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_labels_as_stored(save, depth):
    values = RNG.integers(0, 2**depth, (5, 7), np.uint8)
    np.testing.assert_array_equal(read_labels(save("x.png", png(values, 0, depth))), values)


def test_labels_of_three_equal_channels(save):
    labels = RNG.integers(0, 256, (5, 7), np.uint8)
    for suffix in (".png", ".tif"):
        np.testing.assert_array_equal(read_labels(save("grey" + suffix, encode(suffix, labels))), labels)
        path = save("rgb" + suffix, encode(suffix, np.dstack([labels] * 3)))
        np.testing.assert_array_equal(read_labels(path), labels)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "x.png",
            encode(".png", RGB[..., [0, 0, 1]]),
            "3 channels that differ: a colour picture, not class ids",
        ),
        (
            "x.png",
            encode(".png", RGB[..., [1, 0, 0]]),
            "3 channels that differ: a colour picture, not class ids",
        ),
        ("x.png", encode(".png", RGB), "3 channels that differ: a colour picture, not class ids"),
        ("x.png", encode(".png", np.zeros((4, 4), np.uint16)), "label values are uint16; uint8 is read"),
        ("x.jpg", encode(".jpg", RGB), "a JPEG file; label maps are read from PNG and TIFF"),
        ("x.png", encode(".png", RGB)[:20], "PNG file of 20 bytes is cut short or damaged"),
    ],
)
def test_what_is_no_label_map(save, name, data, reason):
    with pytest.raises(ImageError) as caught:
        read_labels(path := save(name, data))
    assert str(caught.value) == f"{path}: {reason}"


CUT = {
    "JPEG": encode(".jpg", RGB),
    "progressive JPEG": encode(".jpg", RGB, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "PNG": encode(".png", RGB),
    "BMP": encode(".bmp", RGB),
    "TIFF": encode(".tif", RGB),
    "raw TIFF": encode(".tif", RGB, [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
    "WebP": encode(".webp", RGB),
}


@pytest.mark.parametrize("kind", CUT)
def test_files_cut_short(save, kind):
    whole = CUT[kind]
    assert read_image(save("x", whole)).shape == RGB.shape
    last = range(len(whole) - len(whole) // 20, len(whole))
    for length in {*range(16, len(whole), len(whole) // 50), *last}:
        path = save("x", whole[:length])
        with pytest.raises(ImageError) as caught:
            read_image(path)
        said = f"{path}: {kind.split()[-1]} file of {length} bytes is cut short or damaged"
        assert str(caught.value).partition(" (")[0] == said


def test_a_damaged_png(save):
    data = bytearray(CUT["PNG"])
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="cut short or damaged"):
        read_image(save("x.png", data))


def test_other_files(save, tmp_path, capfd):
    for path, reason in (
        (save("empty.png", b""), "empty file"),
        (
            save("text.png", b"hello, this is no picture"),
            "not an image; PNG, JPEG, TIFF, BMP and WebP are read",
        ),
        (tmp_path / "missing.png", "no such file or directory"),
        (tmp_path, "is a directory"),
        (save("cut.tif", CUT["TIFF"][:200]), "TIFF file of 200 bytes is cut short or damaged"),
        (save("float.tif", encode(".tif", RGB.astype(np.float32))), "pixels are float32; 8- and 16-bit"),
    ):
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: {reason}")
    assert capfd.readouterr().err == ""


def png_saying(height, width):
    """A PNG file of one pixel whose header says otherwise."""
    data = png(np.zeros((1, 1)), 0, 8)
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:8] + chunk(b"IHDR", header) + data[33:]


def test_more_pixels_than_opencv_decodes(save, monkeypatch):
    path = save("x.png", png_saying(50_000, 40_000))
    for read in (read_image, image_size):
        with pytest.raises(
            ImageError, match=r"40000x50000 pixels are more than .* OPENCV_IO_MAX_IMAGE_PIXELS"
        ):
            read(path)
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**40))
    assert image_size(path) == (50_000, 40_000)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0)])
def test_an_image_of_no_pixels(save, height, width):
    path = save("x.png", png_saying(height, width))
    with pytest.raises(ImageError, match=rf"x\.png: {width}x{height} pixels; its header is damaged"):
        image_size(path)


def test_size_needs_no_pixels(save):
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        assert image_size(save("x" + suffix, encode(suffix, RGB)[:-200])) == (40, 60)
    with pytest.raises(ImageError, match="TIFF file of 200 bytes"):
        image_size(save("x.tif", CUT["TIFF"][:200]))


def test_real_photos():
    photo, frames = DATA / "street/nyc.jpg", sorted((DATA / "camvid/val").glob("*.jpg"))
    if not photo.is_file() or not frames:
        pytest.skip(f"no street and camvid in {DATA}; see tests/shared.py")
    assert read_image(photo).shape == (1080, 1920, 3)
    for path in (photo, *frames[::20]):
        assert image_size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize("path", ["1.png", "a/1.png", "x [1].png", "ü\n.png"])
def test_a_reason_names_its_path_once(path):
    for reason in (f"{path}: empty", f"can't read '{path}'", f"/root/{path}: empty", f"no labels for {path}"):
        assert naming(path, reason) == reason
    for reason in ("empty", f"No such file: '/root/.4c0{path}'", f"{path}.part is in the way", f"-{path}"):
        assert naming(path, reason) == f"{path}: {reason}"


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_a_size_is_known_without_the_rest_of_the_file(save, ending, monkeypatch):
    """Of a file of some megabytes nothing is read as a whole."""
    large = np.repeat(np.repeat(RGB, 20, 0), 20, 1)
    path = save(f"x{ending}", encode(ending, large))
    monkeypatch.setattr(
        "fullres.pipeline.data.images.read_bytes", lambda path: pytest.fail("the file is read")
    )
    assert image_size(path) == large.shape[:2]
