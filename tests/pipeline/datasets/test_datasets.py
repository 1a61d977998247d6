import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest

from fullres.pipeline.data.image_headers import png_from_chunks
from fullres.pipeline.data.images import ImageError, read_labels
from fullres.pipeline.datasets import DATASETS, dataset
from fullres.pipeline.datasets.check import check_frames
from fullres.pipeline.datasets.colours import voc_colours
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.datasets.layout import find_frames
from tests.shared import DATA

# Published palettes in which two classes share a colour.
SHARED_COLOURS = {"ade20k": ("road", "skyscraper"), "synthia": ("wall", "lane marking")}


@pytest.mark.parametrize("known", [*DATASETS.values(), folder(5)], ids=[*DATASETS, "folder"])
def test_tables_are_consistent(known):
    count = len(known.classes)
    assert len(set(known.classes)) == len(known.palette) == count
    assert all(len(rgb) == 3 and set(rgb) <= set(range(256)) for rgb in known.palette)
    colours = dict(zip(known.classes, known.palette, strict=True))
    colours.pop(SHARED_COLOURS.get(known.name, [None])[0], None)
    assert len(set(colours.values())) == len(colours)
    assert set(known.small_thin) | set(known.target_classes) <= set(known.classes)
    assert pickle.loads(pickle.dumps(known)) == known  # it travels to workers
    for encoding in known.encodings.values():
        train_ids = {i for i in encoding.values() if i is not None}
        assert train_ids == set(range(count))


def test_every_data_set_is_known_by_its_name():
    assert all(dataset(name) is known and known.name == name for name, known in DATASETS.items())


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match="no data set 'kitti'; there are cityscapes, camvid, gta5, scenes"):
        dataset("kitti")


def test_cityscapes_file_name_tells_label_ids_from_train_ids():
    stored = np.uint8([[7, 33, 0]])
    cityscapes = dataset("cityscapes")
    assert cityscapes.to_train_ids(stored, "a/x_gtFine_labelIds.png").tolist() == [[0, 18, 255]]
    stored = np.uint8([[7, 18, 255]])
    assert cityscapes.to_train_ids(stored, "x_gtFine_labelTrainIds.png").tolist() == [[7, 18, 255]]
    with pytest.raises(
        ValueError, match=r"x_gtFine_color\.png: label files of cityscapes are named \*_gtFine"
    ):
        cityscapes.to_train_ids(stored, "x_gtFine_color.png")


def test_gta5_ignores_what_has_no_train_id():
    assert dataset("gta5").to_train_ids(np.uint8([[23, 34, 6]]), "00001.png").tolist() == [[10, 255, 255]]


def test_ids_that_do_not_belong_are_named():
    with pytest.raises(ValueError, match=r"x\.png: label ids \[12, 40\] don't belong to camvid \(0\.\.11\)"):
        dataset("camvid").to_train_ids(np.uint8([[0, 40, 12]]), "x.png")
    with pytest.raises(ValueError, match=r"\(0\.\.18, 255\)"):
        dataset("scenes").to_train_ids(np.uint8([[19]]), "x.png")


def test_small_and_thin_classes_of_the_paper():
    assert dataset("cityscapes").small_thin_ids == (5, 6, 7, 11, 12, 17, 18)
    assert dataset("camvid").small_thin_ids == (2, 6, 9, 10)
    assert dataset("ade20k").small_thin_ids == ()
    assert dataset("cwfid").small_thin_ids == (1, 2)


def test_targets_of_the_paper_and_all_where_it_names_none():
    assert dataset("apolloscape").target_ids == (1, 2, 3, 4, 5, 6, 7, 8)
    assert dataset("supervisely-person").target_ids == (0, 1)


@pytest.mark.parametrize(
    ("name", "stored", "classes"),
    [
        ("apolloscape", [17, 33, 161, 40, 168], ["sky", "car", "car", "tricycle", "tricycle"]),
        ("apolloscape", [65, 82, 97, 113], ["traffic cone", "pole", "building", "vegetation"]),
        ("apolloscape", [0, 1, 98, 99, 100, 255], [None] * 6),
        ("mapillary", [0, 13, 64, 65], ["Bird", "Road", "Ego Vehicle", None]),
        ("synthia", [0, 1, 3, 10, 22], [None, "sky", "road", "pedestrian", "lane marking"]),
        ("synthia16", [0, 1, 3, 10, 12, 21], [None, "sky", "road", "person", "motorcycle", "wall"]),
        ("synthia16", [13, 14, 16, 18, 20, 22], [None] * 6),
        ("ade20k", [0, 1, 2, 13, 150], [None, "wall", "building", "person", "flag"]),
        ("voc2012", [0, 1, 15, 20, 255], ["background", "aeroplane", "person", "tvmonitor", None]),
        ("context59", [0, 1, 2, 59], [None, "aeroplane", "bag", "wood"]),
        ("context60", [0, 1, 2, 59], ["background", "aeroplane", "bag", "wood"]),
        ("person-part", [0, 1, 6, 255], ["background", "head", "lower legs", None]),
        ("nyu-depth-v2", [0, 1, 2, 40], [None, "wall", "floor", "otherprop"]),
        ("supervisely-person", [0, 1, 2, 3], ["background", "person", "person", None]),
        ("cwfid", [0, 1, 2], ["soil", "crop", "weed"]),
    ],
)
def test_what_stored_values_mean(name, stored, classes):
    known = dataset(name)
    ending = next(iter(known.encodings))
    train_ids = known.to_train_ids(np.uint8([stored]), f"x{ending}.png")[0]
    assert [None if i == 255 else known.classes[i] for i in train_ids] == classes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("apolloscape", 2),
        ("apolloscape", 145),
        ("mapillary", 66),
        ("synthia", 23),
        ("ade20k", 151),
        ("voc2012", 21),
        ("context59", 60),
        ("context60", 60),
        ("person-part", 7),
        ("nyu-depth-v2", 41),
        ("supervisely-person", 4),
        ("cwfid", 3),
    ],
)
def test_values_that_mean_nothing(name, value):
    known = dataset(name)
    with pytest.raises(ValueError, match=rf"label ids \[{value}\] don't belong to {name} "):
        known.to_train_ids(np.uint8([[value]]), f"x{next(iter(known.encodings))}.png")


def test_vocs_colours():
    colours = voc_colours(256)
    assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colours[15] == (192, 128, 128)  # person
    assert colours[20] == (0, 64, 128)  # tvmonitor
    assert colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256


def png(depth, colour_type, rows, *chunks):
    """A PNG file from its unfiltered rows of bytes."""
    width = len(rows[0]) * 8 // (depth * {2: 3, 3: 1, 4: 2}[colour_type])
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return png_from_chunks([(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")])


def test_vocs_palette_files():
    palette = (b"PLTE", bytes(value for rgb in voc_colours(256) for value in rgb))
    data = png(8, 3, [[0, 15, 255], [20, 0, 255]], palette)
    assert dataset("voc2012").decode(data, "x.png").tolist() == [[0, 15, 255], [20, 0, 255]]


@pytest.mark.parametrize("colour_type", [2, 4])
def test_synthias_16_bit_files(colour_type):
    """The class in the first channel and the instance in the second, of RGB or of grey with alpha."""
    pixels = [[1, 700], [22, 0], [0, 3]]
    rows = [[*pixel, 0] if colour_type == 2 else pixel for pixel in pixels]
    data = png(16, colour_type, [struct.pack(f">{len(row)}H", *row) for row in rows])
    assert dataset("synthia").decode(data, "x.png").tolist() == [[0], [21], [255]]


def test_other_files_are_no_labels_of_synthia():
    synthia = dataset("synthia")
    encode = lambda array: cv2.imencode(".png", array)[1].tobytes()  # noqa: E731
    with pytest.raises(ImageError, match=r"x\.png: uint8 of shape \(2, 2, 3\)"):
        synthia.decode(encode(np.zeros((2, 2, 3), np.uint8)), "x.png")
    with pytest.raises(ImageError, match=r"x\.png: uint16 of shape \(2, 2\)"):
        synthia.decode(encode(np.zeros((2, 2), np.uint16)), "x.png")
    for damaged in (b"", encode(np.zeros((90, 90, 3), np.uint16))[:60]):
        with pytest.raises(ImageError, match=r"x\.png: .* damaged"):
            synthia.decode(damaged, "x.png")
    with pytest.raises(ValueError, match=r"label ids \[255\] don't belong to synthia"):
        synthia.decode(encode(np.full((2, 2, 3), 300, np.uint16)), "x.png")


def test_the_most_classes_of_a_folder():
    every = np.arange(256, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"label ids \[254\] don't belong to folder"):
        folder(254).to_train_ids(every[None], "x.png")
    for count in (0, 255):
        with pytest.raises(ValueError, match=f"a folder of {count} classes: 1 to 254"):
            folder(count)


def test_a_folders_classes():
    known = folder(3)
    assert known.classes == ("class 0", "class 1", "class 2")
    assert known.to_train_ids(np.uint8([[0, 2, 255]]), "x.png").tolist() == [[0, 2, 255]]
    with pytest.raises(ValueError, match=r"label ids \[3\] don't belong to folder \(0\.\.2, 255\)"):
        known.to_train_ids(np.uint8([[3]]), "x.png")


@pytest.fixture
def camvid_root():
    root = DATA / "camvid"
    if not root.is_dir():
        pytest.skip(f"no CamVid at {root}; see tests/shared.py")
    return root


def test_camvid_annotations(camvid_root):
    files = sorted((camvid_root / "valannot").glob("*.png"))
    camvid = dataset("camvid")
    maps = np.stack([camvid.to_train_ids(read_labels(path), path) for path in files])
    assert set(np.unique(maps)) == {*range(11), 255}
    rows = [np.nonzero(maps == camvid.classes.index(name))[1].mean() for name in ("sky", "building", "road")]
    assert rows == sorted(rows)  # sky above buildings above the road: the class order is right


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_all_of_camvid_is_valid(camvid_root, split, count):
    camvid = dataset("camvid")
    checked = check_frames(camvid, find_frames(camvid, camvid_root, split), lambda: None)
    assert checked.problems == []
    assert checked.frames == count
    assert checked.sizes == {(360, 480): count}
    assert checked.pixels.sum() + checked.ignored == count * 360 * 480


@pytest.mark.parametrize(("split", "count"), [("train", 39), ("test", 21)])
def test_all_of_cwfid_is_valid(split, count):
    if not (DATA / "cwfid").is_dir():
        pytest.skip(f"no CWFID at {DATA / 'cwfid'}; see tests/shared.py")
    cwfid = dataset("cwfid")
    checked = check_frames(cwfid, find_frames(cwfid, DATA / "cwfid", split), lambda: None)
    assert checked.problems == []
    assert checked.frames == count
    assert checked.sizes == {(966, 1296): count}
    soil, crop, weed = checked.shares
    assert 0.85 < soil < 0.97
    assert crop < weed < 0.1


def test_a_flipped_bit_of_a_16_bit_file_never_gives_other_labels():
    data = cv2.imencode(".png", np.full((3, 4, 3), 5, np.uint16))[1].tobytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError, match=r"^x\.png: .* damaged"):
            dataset("synthia").decode(bytes(flipped), "x.png")
