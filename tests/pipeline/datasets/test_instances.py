from pathlib import Path

import cv2
import numpy as np
import pytest

from fullres.pipeline.data.images import ImageError
from fullres.pipeline.datasets import dataset
from fullres.pipeline.datasets.instances import instance_maps, read_objects


@pytest.mark.parametrize(
    "name",
    [
        "ulm_gtFine_labelIds",
        "ulm_gtFine_labelTrainIds",
        "ulm_gtCoarse_labelIds",
        "ulm_gtCoarse_labelTrainIds",
    ],
)
def test_an_instance_map_lies_beside_its_label_map(tmp_path, name):
    labels = [tmp_path / f"{name}.png"]
    assert instance_maps(labels, dataset("cityscapes")) is None
    instances = tmp_path / f"ulm_{name.split('_')[1]}_instanceIds.png"
    instances.touch()
    assert instance_maps(labels, dataset("cityscapes")) == [instances]


def test_data_sets_without_instance_maps(tmp_path):
    (tmp_path / "1_instanceIds.png").touch()
    assert instance_maps([tmp_path / "1.png"], dataset("scenes")) is None
    assert instance_maps([Path("x_other.png")], dataset("cityscapes")) is None


def test_objects_and_their_classes(tmp_path):
    """Numbered by their values. Groups (26), stuff (7) and caravans, which are ignored, are none."""
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.uint16([[33001, 26000, 26], [26999, 26000, 7], [29000, 0, 33001]]))
    objects, classes = read_objects(path, dataset("cityscapes"))
    assert (objects.dtype, classes.dtype) == (np.int32, np.uint8)
    assert objects.tolist() == [[3, 1, 0], [2, 1, 0], [0, 0, 3]]
    assert classes.tolist() == [13, 13, 18]


def test_an_image_without_objects(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.full((1, 3), 23, np.uint16))
    objects, classes = read_objects(tmp_path / "x.png", dataset("cityscapes"))
    assert objects.tolist() == [[0, 0, 0]]
    assert classes.tolist() == []


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 3), np.uint8), r"uint8 of shape \(2, 3\); one channel of 16 bits is read"),
        (np.zeros((2, 3, 3), np.uint16), r"uint16 of shape \(2, 3, 3\); one channel"),
    ],
)
def test_other_pictures(tmp_path, pixels, message):
    cv2.imwrite(str(tmp_path / "x.png"), pixels)
    with pytest.raises(ImageError, match=message):
        read_objects(tmp_path / "x.png", dataset("cityscapes"))


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ImageError, match=r"x\.png: no such file"):
        read_objects(path, dataset("cityscapes"))
    cv2.imwrite(str(path), np.arange(600, dtype=np.uint16).reshape(20, 30))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImageError, match=r"x\.png: PNG file of \d+ bytes is cut short or damaged"):
        read_objects(path, dataset("cityscapes"))


def test_unknown_classes_are_named(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.uint16([[26000, 34000, 65535]]))
    with pytest.raises(ValueError, match=r"instance ids \[34000, 65535\] are of no class of cityscapes"):
        read_objects(tmp_path / "x.png", dataset("cityscapes"))
