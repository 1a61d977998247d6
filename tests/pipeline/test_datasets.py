import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from fullres.pipeline.datasets import DATASETS, dataset
from fullres.pipeline.images import read_labels

DATA = Path(os.environ.get("FULLRES_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.parametrize("known", DATASETS.values(), ids=DATASETS)
def test_tables_are_consistent(known):
    count = len(known.classes)
    assert len(set(known.classes)) == len(set(known.palette)) == count
    assert dataset(known.name) is known
    assert pickle.loads(pickle.dumps(known)) == known  # it travels to workers
    for encoding in known.encodings.values():
        train_ids = {i for i in encoding.values() if i is not None}
        assert train_ids == set(range(count))


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


def test_camvid_annotations():
    folder = DATA / "camvid" / "valannot"
    if not folder.is_dir():
        pytest.skip(f"no CamVid at {folder}; FULLRES_DATA names the folder that holds it")
    files = sorted(folder.glob("*.png"))
    camvid = dataset("camvid")
    maps = np.stack([camvid.to_train_ids(read_labels(path), path) for path in files])
    assert set(np.unique(maps)) == {*range(11), 255}
    rows = [np.nonzero(maps == camvid.classes.index(name))[1].mean() for name in ("sky", "building", "road")]
    assert rows == sorted(rows)  # sky above buildings above the road: the class order is right
