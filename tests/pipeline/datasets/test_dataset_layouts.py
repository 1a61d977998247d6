"""Every data set's files as its publishers lay them out, in a folder of empty files."""

import pytest

from fullres.pipeline.datasets import DATASETS, dataset
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.datasets.layout import Frame, find_frames, local_frames, match_frames
from fullres.pipeline.datasets.pairs import FilesError

# CWFID's published split, but that its picture 28 is in the training too.
CWFID_TEST = (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)
# (data set, split) -> (image, label map, key) of its frames, sorted by key
LAYOUTS = {
    ("cityscapes", "train"): [
        (
            "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
            "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
            "aachen/aachen_000000_000019",
        ),
        (
            "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
            "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png",
            "ulm/ulm_000000_000019",
        ),
    ],
    ("cityscapes", "val"): [
        (
            "leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png",
            "gtFine/val/munster/munster_000000_000019_gtFine_labelTrainIds.png",
            "munster/munster_000000_000019",
        )
    ],
    ("cityscapes", "test"): [
        (
            "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png",
            "gtFine/test/bonn/bonn_000000_000019_gtFine_labelIds.png",
            "bonn/bonn_000000_000019",
        )
    ],
    ("cityscapes", "train_extra"): [
        (
            "leftImg8bit/train_extra/augsburg/augsburg_000000_000000_leftImg8bit.png",
            "gtCoarse/train_extra/augsburg/augsburg_000000_000000_gtCoarse_labelIds.png",
            "augsburg/augsburg_000000_000000",
        )
    ],
    ("camvid", "train"): [
        ("train/0001TP_006690.png", "trainannot/0001TP_006690.png", "0001TP_006690"),
        ("train/0001TP_006720.jpg", "trainannot/0001TP_006720.png", "0001TP_006720"),
    ],
    ("camvid", "val"): [("val/0016E5_07959.png", "valannot/0016E5_07959.png", "0016E5_07959")],
    ("camvid", "test"): [("test/0001TP_008550.png", "testannot/0001TP_008550.png", "0001TP_008550")],
    ("scenes", "all"): [("images/scene_000005.png", "labels/scene_000005.png", "scene_000005")],
    ("apolloscape", "train"): [
        (
            "road01_ins/ColorImage/Record001/Camera 5/170908_061502408_Camera_5.jpg",
            "road01_ins/Label/Record001/Camera 5/170908_061502408_Camera_5_bin.png",
            "road01_ins/Record001/Camera 5/170908_061502408_Camera_5",
        ),
        (
            "road02_ins/ColorImage/Record020/Camera 6/170927_063847913_Camera_6.jpg",
            "road02_ins/Label/Record020/Camera 6/170927_063847913_Camera_6_bin.png",
            "road02_ins/Record020/Camera 6/170927_063847913_Camera_6",
        ),
    ],
    ("apolloscape", "val"): [
        (
            "road01_ins/ColorImage/Record067/Camera 5/170908_065443614_Camera_5.jpg",
            "road01_ins/Label/Record067/Camera 5/170908_065443614_Camera_5_bin.png",
            "road01_ins/Record067/Camera 5/170908_065443614_Camera_5",
        )
    ],
    ("mapillary", "train"): [
        ("training/images/00CDwXK.jpg", "training/v1.2/labels/00CDwXK.png", "00CDwXK"),
    ],
    ("mapillary", "val"): [
        ("validation/images/_1Gn_xk.jpg", "validation/v1.2/labels/_1Gn_xk.png", "_1Gn_xk"),
    ],
    ("synthia", "all"): [("RGB/0000000.png", "GT/LABELS/0000000.png", "0000000")],
    ("synthia16", "all"): [("RGB/0000000.png", "GT/LABELS/0000000.png", "0000000")],
    ("ade20k", "train"): [
        (
            "images/training/ADE_train_00000001.jpg",
            "annotations/training/ADE_train_00000001.png",
            "ADE_train_00000001",
        )
    ],
    ("ade20k", "val"): [
        (
            "images/validation/ADE_val_00000001.jpg",
            "annotations/validation/ADE_val_00000001.png",
            "ADE_val_00000001",
        )
    ],
    ("voc2012", "train"): [
        ("JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png", "2007_000032")
    ],
    ("voc2012", "val"): [("JPEGImages/2007_000033.jpg", "SegmentationClass/2007_000033.png", "2007_000033")],
    ("voc2012", "trainval"): [
        (f"JPEGImages/2007_00003{i}.jpg", f"SegmentationClass/2007_00003{i}.png", f"2007_00003{i}")
        for i in (2, 3)
    ],
    ("voc2012", "trainaug"): [
        (f"JPEGImages/{key}.jpg", f"SegmentationClassAug/{key}.png", key)
        for key in ("2007_000032", "2008_000002")
    ],
    ("context59", "train"): [
        ("JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png", "2008_000002")
    ],
    ("context59", "val"): [
        ("JPEGImages/2008_000003.jpg", "SegmentationClassContext/2008_000003.png", "2008_000003")
    ],
    ("context60", "train"): [
        ("JPEGImages/2008_000002.jpg", "SegmentationClassContext/2008_000002.png", "2008_000002")
    ],
    ("context60", "val"): [
        ("JPEGImages/2008_000003.jpg", "SegmentationClassContext/2008_000003.png", "2008_000003")
    ],
    ("person-part", "train"): [
        (
            "JPEGImages/2008_000008.jpg",
            "pascal_person_part/pascal_person_part_gt/2008_000008.png",
            "2008_000008",
        )
    ],
    ("person-part", "val"): [
        (
            "JPEGImages/2008_000026.jpg",
            "pascal_person_part/pascal_person_part_gt/2008_000026.png",
            "2008_000026",
        )
    ],
    ("nyu-depth-v2", "train"): [("train/rgb/0003.png", "train/labels_40/0003.png", "0003")],
    ("nyu-depth-v2", "test"): [("test/rgb/0001.png", "test/labels_40/0001.png", "0001")],
    ("folder", "all"): [
        ("images/test/1.png", "labels/test/1.png", "test/1"),
        ("images/train/b/x.y.tif", "labels/train/b/x.y.png", "train/b/x.y"),
        ("images/val/a.JPG", "labels/val/a.tif", "val/a"),
    ],
    ("folder", "train"): [("images/train/b/x.y.tif", "labels/train/b/x.y.png", "b/x.y")],
    ("folder", "val"): [("images/val/a.JPG", "labels/val/a.tif", "a")],
    ("folder", "test"): [("images/test/1.png", "labels/test/1.png", "1")],
    **{
        ("cwfid", split): [
            (f"images/{n:03}.jpg", f"labels/{n:03}.png", f"{n:03}")
            for n in range(1, 61)
            if (n in CWFID_TEST) == (split == "test")
        ]
        for split in ("train", "test")
    },
}
# Without a published split: a part of all frames
PARTS = {
    "gta5": (500, "val", "images/{:05}.png", "labels/{:05}.png"),
    "supervisely-person": (571, "test", "ds1/img/p_{:05}.png", "ds1/masks_machine/p_{:05}.png"),
}
LISTS = {
    ("apolloscape", "train"): {
        "road01_ins_train.lst": (
            "road01_ins/ColorImage/Record001/Camera 5/170908_061502408_Camera_5.jpg\t"
            "road01_ins/Label/Record001/Camera 5/170908_061502408_Camera_5_bin.png\n"
        ),
        "road02_ins_train.lst": (
            "road02_ins/ColorImage/Record020/Camera 6/170927_063847913_Camera_6.jpg\t"
            "road02_ins/Label/Record020/Camera 6/170927_063847913_Camera_6_bin.png\n"
        ),
    },
    ("apolloscape", "val"): {
        "road01_ins_val.lst": (
            "road01_ins/ColorImage/Record067/Camera 5/170908_065443614_Camera_5.jpg\t"
            "road01_ins/Label/Record067/Camera 5/170908_065443614_Camera_5_bin.png\n"
        ),
    },
    ("voc2012", "train"): {"ImageSets/Segmentation/train.txt": "2007_000032\n"},
    ("voc2012", "val"): {"ImageSets/Segmentation/val.txt": "2007_000033\n"},
    ("voc2012", "trainval"): {"ImageSets/Segmentation/trainval.txt": "2007_000032\n2007_000033\n"},
    ("voc2012", "trainaug"): {"ImageSets/Segmentation/trainaug.txt": "2008_000002\r\n2007_000032\r\n\n"},
    **{
        (name, split): {f"ImageSets/SegmentationContext/{split}.txt": key}
        for name in ("context59", "context60")
        for split, key in (("train", "2008_000002"), ("val", "2008_000003"))
    },
    **{
        ("person-part", split): {f"pascal_person_part/pascal_person_part_trainval_list/{split}_id.txt": key}
        for split, key in (("train", "2008_000008"), ("val", "2008_000026"))
    },
}
# Files that lie beside and are neither images nor label maps of the split
OTHERS = {
    "cityscapes": [
        "gtFine/train/ulm/ulm_000000_000019_gtFine_color.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_instanceIds.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_polygons.json",
        "license.txt",
    ],
    "apolloscape": [
        "road01_ins/Label/Record001/Camera 5/170908_061502408_Camera_5.json",
        "road01_ins/Label/Record001/Camera 5/170908_061502408_Camera_5_instanceIds.png",
        "road01_ins/ColorImage/Record001/Camera 5/170908_061499999_Camera_5.jpg",
        "road01_ins/Pose/Record001/Camera 5/pose.txt",
    ],
    "mapillary": ["training/v1.2/instances/00CDwXK.png", "training/v2.0/labels/00CDwXK.png"],
    "synthia": ["GT/COLOR/0000000.png", "Depth/Depth/0000000.png"],
    "voc2012": ["JPEGImages/2012_004331.jpg", "SegmentationObject/2007_000032.png"],
    "nyu-depth-v2": ["train/depth/0003.png", "train/labels_40_colored/0003.png", "train/labels_13/0003.png"],
    "cwfid": ["images/061.jpg", "labels/061.png"],
    "scenes": ["images/.scene_000006.a1b2c3d4.png", "labels/notes.txt"],
}


def frames(*where):
    return local_frames(*where).whole()


def known(name):
    return folder(3) if name == "folder" else dataset(name)


def touch(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def lay_out(root, name):
    """Everything of a data set that the tables above have."""
    for (one, split), expected in LAYOUTS.items():
        if one == name:
            touch(root, [file for image, labels, _ in expected for file in (image, labels)])
            for file, text in LISTS.get((one, split), {}).items():
                touch(root, [file])
                (root / file).write_text(text)
    touch(root, OTHERS.get(name, []))


def test_every_split_has_a_layout_here():
    splits = {(one.name, split) for one in [*DATASETS.values(), folder(3)] for split in one.splits}
    assert {*LAYOUTS, *((name, split) for name in PARTS for split in known(name).splits)} == splits


@pytest.mark.parametrize(("name", "split"), LAYOUTS)
def test_frames_of_the_official_layout(tmp_path, name, split):
    lay_out(tmp_path, name)
    expected = [Frame(tmp_path / i, tmp_path / l, key) for i, l, key in LAYOUTS[name, split]]
    assert frames(known(name), tmp_path, split) == expected


@pytest.mark.parametrize(("name", "split"), LAYOUTS)
def test_names_alone_are_enough(name, split):
    """As of a store of objects, listed from another place."""
    names = [file for i, l, _ in LAYOUTS[name, split] for file in (l, i)] + OTHERS.get(name, [])
    lines = [line for text in LISTS.get((name, split), {}).values() for line in text.splitlines()]
    found = match_frames(known(name), split, names, lines)
    assert [(f.image.as_posix(), f.labels.as_posix(), f.key) for f in found.frames] == LAYOUTS[name, split]
    assert not found.problems


@pytest.mark.parametrize("name", PARTS)
def test_parts_where_nobody_published_a_split(name):
    held_out, split, image, labels = PARTS[name]
    one, count = known(name), 1000
    names = [pattern.format(i) for i in range(count) for pattern in (image, labels)]
    test = [f.key for f in match_frames(one, split, names).frames]
    train = [f.key for f in match_frames(one, "train", names).frames]
    assert len(test) == held_out
    assert len(set(train + test)) == len(train) + len(test) == count
    assert test == sorted(test)
    assert train == sorted(train)
    # Not the first or the last ones, and the same again.
    assert abs(sum(int(key[-5:]) for key in test) / held_out - count / 2) < 50
    assert [f.key for f in match_frames(one, split, names[::-1]).frames] == test


def test_what_lacks_its_counterpart_is_told_apart(tmp_path):
    touch(
        tmp_path, ["train/1.png", "train/2.jpg", "trainannot/2.png", "trainannot/3.png", "trainannot/4.png"]
    )
    found = find_frames(dataset("camvid"), tmp_path, "train")
    assert [frame.key for frame in found.frames] == ["2"]
    assert found.images_without_labels == [tmp_path / "train/1.png"]
    assert found.labels_without_image == [tmp_path / "trainannot/3.png", tmp_path / "trainannot/4.png"]
    with pytest.raises(FilesError, match=r"files without their counterpart \(3\):") as caught:
        frames(dataset("camvid"), tmp_path, "train")
    assert caught.value.problems == [
        f"{tmp_path}/train/1.png: no label map",
        f"{tmp_path}/trainannot/3.png: no image",
        f"{tmp_path}/trainannot/4.png: no image",
    ]


def test_listed_frames_that_are_missing(tmp_path):
    lay_out(tmp_path, "voc2012")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n2007_000039\n2012_004331\n")
    found = find_frames(dataset("voc2012"), tmp_path, "train")
    assert found.missing == ["2007_000039"]
    assert found.problems == [
        f"{tmp_path}/JPEGImages/2012_004331.jpg: no label map",
        "2007_000039: neither image nor label map",
    ]


def test_frames_that_the_description_lists(tmp_path):
    with pytest.raises(FilesError, match=r"nothing of the split test of cwfid: images in images/, label"):
        frames(dataset("cwfid"), tmp_path, "test")
    lay_out(tmp_path, "cwfid")
    for gone in ("images/001.jpg", "labels/001.png", "labels/060.png"):
        (tmp_path / gone).unlink()
    found = find_frames(dataset("cwfid"), tmp_path, "test")
    assert len(found.frames) == 19
    assert found.problems == [
        f"{tmp_path}/images/060.jpg: no label map",
        "001: neither image nor label map",
    ]


def test_the_first_way_of_storing_labels_counts(tmp_path):
    files = [f"gtFine/val/ulm/ulm_1_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
    touch(tmp_path, ["leftImg8bit/val/ulm/ulm_1_leftImg8bit.png", *files])
    (frame,) = frames(dataset("cityscapes"), tmp_path, "val")
    assert frame.labels == tmp_path / files[1]


def test_linked_folders_are_entered(tmp_path):
    touch(tmp_path / "elsewhere", ["1.png"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a").symlink_to(tmp_path / "elsewhere")
    assert [frame.key for frame in frames(folder(2), tmp_path, "all")] == ["a/1"]


def test_two_images_of_one_frame(tmp_path):
    touch(tmp_path, ["train/1.png", "train/1.jpg", "trainannot/1.png"])
    with pytest.raises(FilesError, match=r"two images for one frame:\n  train/1\.jpg\n  train/1\.png"):
        find_frames(dataset("camvid"), tmp_path, "train")


def test_nothing_there_says_where_it_was_looked_for(tmp_path):
    assert not find_frames(dataset("camvid"), tmp_path, "val")
    with pytest.raises(
        FilesError,
        match=r"nothing of the split val of camvid: images in val/, label maps in valannot/ \(\*\.png\)",
    ):
        frames(dataset("camvid"), tmp_path, "val")
    lay_out(tmp_path, "voc2012")
    (tmp_path / "ImageSets/Segmentation/trainaug.txt").unlink()
    with pytest.raises(FilesError, match=r"frames listed in ImageSets/Segmentation/trainaug\.txt"):
        frames(dataset("voc2012"), tmp_path, "trainaug")
    with pytest.raises(FilesError, match="nowhere: no such folder"):
        frames(dataset("camvid"), tmp_path / "nowhere", "val")


def test_unknown_split_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="ade20k has no split 'test'; there are train, val"):
        frames(dataset("ade20k"), tmp_path, "test")
