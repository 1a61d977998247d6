from dataclasses import replace

import cv2
import numpy as np
import pytest

from fullres.ops.metrics import class_iou, confusion_matrix, mean_score, trimap_confusions
from fullres.ops.objects import connected_objects
from fullres.pipeline.data.images import write_png
from fullres.pipeline.datasets import dataset
from fullres.pipeline.datasets.pairs import FilesError
from fullres.pipeline.review.evaluate import evaluate


@pytest.fixture
def folders(tmp_path):
    """Three scenes in two folders: predictions, labels, and the arrays by name."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name in ("a/1", "a/2", "b/1"):
        label = rng.choice(np.uint8([0, 1, 5, 11, 255]), (20, 30))
        prediction = rng.choice(np.uint8([0, 1, 5, 11]), (20, 30))
        write_png(tmp_path / f"gt/{name}.png", label)
        write_png(tmp_path / f"pred/{name}.png", prediction)
        write_png(tmp_path / f"pred/{name}_color.png", np.zeros((20, 30, 3), np.uint8))
        write_png(tmp_path / f"pred/{name}_overlay.png", np.zeros((20, 30, 3), np.uint8))
        write_png(tmp_path / f"pred/{name}_attention_traffic_light.png", np.zeros((20, 30, 3), np.uint8))
        arrays[name] = prediction, label
    return tmp_path / "pred", tmp_path / "gt", arrays


def test_sums_the_frames(folders):
    pred, gt, arrays = folders
    seen = []
    result = evaluate(pred, gt, dataset("scenes"), progress=lambda done, total: seen.append((done, total)))
    expected = sum(confusion_matrix(p, t, 19) for p, t in arrays.values())
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.images == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]

    plain = result.to_json()
    iou = expected[5, 5] / (expected[5].sum() + expected[:, 5].sum() - expected[5, 5])
    assert plain["class_iou"]["pole"] == pytest.approx(iou)
    assert plain["class_iou"]["bus"] is None
    pole_and_person = [plain["class_iou"][name] for name in ("pole", "person")]
    assert plain["small_thin_iou"] == pytest.approx(sum(pole_and_person) / 2)
    assert plain["pixel_accuracy"] == pytest.approx(np.trace(expected) / expected.sum())
    assert plain["mean_iou"] == pytest.approx(
        sum(v for v in plain["class_iou"].values() if v is not None) / 4
    )
    assert plain["confusion"] == expected.tolist()


def test_the_mean_over_target_classes(folders):
    pred, gt, _ = folders
    known = replace(dataset("scenes"), target_classes=("pole", "bus", "sidewalk"))
    plain = evaluate(pred, gt, known).to_json()
    assert plain["target_classes"] == ["pole", "bus", "sidewalk"]
    present = [plain["class_iou"][name] for name in ("pole", "sidewalk")]
    assert plain["target_iou"] == pytest.approx(sum(present) / 2)

    none_named = evaluate(pred, gt, dataset("scenes"))
    assert none_named.target_iou == none_named.mean_iou
    assert none_named.to_json()["target_classes"] == list(dataset("scenes").classes)
    no_pixel = evaluate(pred, gt, replace(known, target_classes=("bus",)))
    assert no_pixel.to_json()["target_iou"] is None


def test_bands_are_summed_over_the_frames(folders):
    pred, gt, arrays = folders
    result = evaluate(pred, gt, dataset("scenes"), trimap=[1, 3])
    expected = sum(trimap_confusions(p, t, [1, 3], 19) for p, t in arrays.values())
    assert [band.width for band in result.trimap] == [1, 3]
    for band, counts, plain in zip(result.trimap, expected, result.to_json()["trimap"], strict=True):
        np.testing.assert_array_equal(band.confusion, counts)
        assert plain == {
            "width": band.width,
            "pixels": counts.sum(),
            "accuracy": pytest.approx(np.trace(counts) / counts.sum()),
            "mean_iou": pytest.approx(mean_score(class_iou(counts))),
        }
    np.testing.assert_array_equal(result.confusion, evaluate(pred, gt, dataset("scenes")).confusion)
    assert evaluate(pred, gt, dataset("scenes")).to_json()["trimap"] == []


@pytest.mark.parametrize("value", [3, 255])
def test_bands_without_a_boundary(tmp_path, value):
    """One class, or no pixel that counts."""
    write_png(tmp_path / "gt/1.png", np.full((3, 5), value, np.uint8))
    write_png(tmp_path / "pred/1.png", np.zeros((3, 5), np.uint8))
    plain = evaluate(tmp_path / "pred", tmp_path / "gt", dataset("scenes"), trimap=[2]).to_json()
    assert plain["trimap"] == [{"width": 2, "pixels": 0, "accuracy": None, "mean_iou": None}]


def test_widths_that_are_none(folders):
    with pytest.raises(ValueError, match="widths are 2,1: 1 to 10000 pixels, each wider than the one before"):
        evaluate(*folders[:2], dataset("scenes"), trimap=[2, 1])


def plain_bins(objects, count):
    """[(area, recall)] in the order of frames, sorted into bins with a loop: the first ones have one more."""
    number, objects, bins = len(objects), sorted(objects, key=lambda one: one[0]), []
    for i in range(count):
        size = number // count + (i < number % count)
        here, objects = objects[:size], objects[size:]
        bins.append(
            {
                "objects": size,
                "smallest": here[0][0] if here else None,
                "largest": here[-1][0] if here else None,
                "recall": pytest.approx(sum(recall for _, recall in here) / size) if here else None,
            }
        )
    return bins


def test_objects_of_all_frames_are_sorted_by_area(folders):
    pred, gt, arrays = folders
    known = replace(dataset("scenes"), target_classes=("pole", "bus", "sidewalk"))
    by_class = {"sidewalk": [], "pole": []}  # no bus
    together = []
    for prediction, label in arrays.values():
        numbers, classes = connected_objects(label, known.target_ids)
        for i, class_id in enumerate(classes.tolist(), 1):
            inside = numbers == i
            one = int(inside.sum()), float((prediction[inside] == class_id).mean())
            by_class[known.classes[class_id]].append(one)
            together.append(one)
    result = evaluate(pred, gt, known, by_size=3)
    assert result.to_json()["by_size"] == {
        "objects": "connected pieces",
        "all": plain_bins(together, 3),
        "classes": {name: plain_bins(objects, 3) for name, objects in by_class.items()},
    }
    many = evaluate(pred, gt, known, by_size=5000).to_json()["by_size"]
    assert many["all"] == plain_bins(together, 5000)
    assert evaluate(pred, gt, known).to_json()["by_size"] is None


def test_no_object_at_all(tmp_path):
    write_png(tmp_path / "gt/1.png", np.full((3, 5), 255, np.uint8))
    write_png(tmp_path / "pred/1.png", np.zeros((3, 5), np.uint8))
    plain = evaluate(tmp_path / "pred", tmp_path / "gt", dataset("scenes"), by_size=2).to_json()
    assert plain["by_size"] == {"objects": "connected pieces", "all": plain_bins([], 2), "classes": {}}


def test_no_bins(folders):
    with pytest.raises(ValueError, match="0 bins of objects: there must be 1 or more"):
        evaluate(*folders[:2], dataset("scenes"), by_size=0)


CAR, BICYCLE, TRAILER = 26, 33, 30  # labelIds


@pytest.fixture
def cityscapes(tmp_path):
    """Two frames. In the second two cars touch; of bicycles there is also a group; trailers are ignored."""
    frames = {
        "1": ([[CAR] * 4], [[26000] * 4], [[13, 13, 13, 0]]),
        "2": (
            [[CAR, CAR, CAR, BICYCLE, BICYCLE, BICYCLE, TRAILER, 7]],
            [[26000, 26001, 26001, BICYCLE, BICYCLE, 33012, 30000, 7]],
            [[13, 13, 0, 18, 18, 0, 13, 0]],
        ),
    }
    for name, (labels, instances, prediction) in frames.items():
        write_png(tmp_path / f"gt/x/{name}_gtFine_labelIds.png", np.uint8(labels))
        cv2.imwrite(str(tmp_path / f"gt/x/{name}_gtFine_instanceIds.png"), np.uint16(instances))
        write_png(tmp_path / f"pred/x/{name}.png", np.uint8(prediction))
    return tmp_path / "pred", tmp_path / "gt"


def test_objects_are_those_of_instance_maps(cityscapes):
    result = evaluate(*cityscapes, dataset("cityscapes"), by_size=2).to_json()["by_size"]
    cars, bicycles = [(4, 0.75), (1, 1.0), (2, 0.5)], [(1, 0.0)]
    assert result == {
        "objects": "instance maps",
        # of the two of one pixel the car is first in its map: that is their order
        "all": plain_bins([*cars, *bicycles], 2),
        "classes": {"car": plain_bins(cars, 2), "bicycle": plain_bins(bicycles, 2)},
    }
    only = replace(dataset("cityscapes"), target_classes=("bicycle", "road"))
    assert evaluate(*cityscapes, only, by_size=2).by_size.by_class.keys() == {"bicycle"}


def test_instance_maps_of_some_frames_alone(cityscapes):
    pred, gt = cityscapes
    (gt / "x/2_gtFine_instanceIds.png").unlink()
    with pytest.raises(FilesError, match="instance maps of some frames alone") as caught:
        evaluate(pred, gt, dataset("cityscapes"), by_size=2)
    assert caught.value.problems == [f"{gt}/x/2_gtFine_labelIds.png: no instance map"]
    assert evaluate(pred, gt, dataset("cityscapes")).images == 2  # they are not needed
    (gt / "x/1_gtFine_instanceIds.png").unlink()
    assert evaluate(pred, gt, dataset("cityscapes"), by_size=2).to_json()["by_size"]["classes"]["car"] == (
        plain_bins([(4, 0.75), (3, 2 / 3)], 2)
    )


def test_instance_maps_that_cannot_be_used_are_all_named(cityscapes):
    pred, gt = cityscapes
    first, second = (gt / f"x/{name}_gtFine_instanceIds.png" for name in "12")
    cv2.imwrite(str(first), np.full((1, 5), 26000, np.uint16))
    cv2.imwrite(str(second), np.full((1, 8), 40003, np.uint16))
    with pytest.raises(FilesError) as caught:
        evaluate(pred, gt, dataset("cityscapes"), by_size=2)
    assert caught.value.problems == [
        f"{first}: size 5x1 but 4x1 in {gt}/x/1_gtFine_labelIds.png",
        f"{second}: instance ids [40003] are of no class of cityscapes",
    ]
    write_png(first, np.zeros((1, 4), np.uint8))
    second.write_bytes(b"GIF89a")
    with pytest.raises(FilesError) as caught:
        evaluate(pred, gt, dataset("cityscapes"), by_size=2)
    assert caught.value.problems == [
        f"{first}: uint8 of shape (1, 4); one channel of 16 bits is read",
        f"{second}: not a PNG file, or damaged",
    ]


def test_a_picture_is_one_of_an_image_that_is_there(tmp_path):
    """Class ids of images that have such names are scored."""
    for name in ("sky_color", "x_overlay", "map_attention_car"):
        for folder in ("pred", "gt"):
            write_png(tmp_path / f"{folder}/{name}.png", np.zeros((2, 2), np.uint8))
        for picture in ("color", "attention_car"):
            write_png(tmp_path / f"pred/{name}_{picture}.png", np.zeros((2, 2, 3), np.uint8))
    assert evaluate(tmp_path / "pred", tmp_path / "gt", dataset("scenes")).images == 3


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_names(tmp_path, kind):
    stored = {"labelIds": np.uint8([[7, 17, 0]]), "labelTrainIds": np.uint8([[0, 5, 255]])}
    frame = "ulm/ulm_000000_000019"
    write_png(tmp_path / f"pred/{frame}_leftImg8bit.png", np.uint8([[0, 0, 0]]))
    write_png(tmp_path / f"gt/{frame}_gtFine_color.png", np.zeros((1, 3, 3), np.uint8))
    write_png(tmp_path / f"gt/{frame}_gtFine_instanceIds.png", np.uint8([[7, 17, 0]]))
    write_png(tmp_path / f"gt/{frame}_gtFine_{kind}.png", stored[kind])
    # Beside labelIds, which come first, labelTrainIds are not read.
    if kind == "labelIds":
        write_png(tmp_path / f"gt/{frame}_gtFine_labelTrainIds.png", np.uint8([[3, 3, 3]]))
    result = evaluate(tmp_path / "pred", tmp_path / "gt", dataset("cityscapes"))
    assert (result.confusion[0, 0], result.confusion[5, 0], result.confusion.sum()) == (1, 1, 2)


def test_files_without_counterpart_are_all_named(folders):
    pred, gt, _ = folders
    (gt / "a/2.png").unlink()
    for path in (pred / "b").iterdir():
        path.unlink()
    with pytest.raises(FilesError) as caught:
        evaluate(pred, gt, dataset("scenes"))
    assert caught.value.problems == [f"{pred}/a/2.png: no label", f"{gt}/b/1.png: no prediction"]
    assert str(caught.value).startswith("files without their counterpart (2):\n")


def test_frames_that_cannot_be_scored_are_all_named(folders):
    pred, gt, _ = folders
    write_png(pred / "a/1.png", np.full((20, 30), 19, np.uint8))
    write_png(gt / "a/2.png", np.full((20, 30), 40, np.uint8))
    write_png(pred / "b/1.png", np.zeros((20, 31), np.uint8))
    with pytest.raises(FilesError) as caught:
        evaluate(pred, gt, dataset("scenes"))
    assert caught.value.problems == [
        f"{pred}/a/1.png: prediction ids [19] don't belong: 0..18 do",
        f"{gt}/a/2.png: label ids [40] don't belong to scenes (0..18, 255)",
        f"{pred}/b/1.png: size 31x20 but 30x20 in {gt}/b/1.png",
    ]


def test_a_damaged_prediction_is_named(folders):
    pred, gt, _ = folders
    path = pred / "a/1.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FilesError, match=r"1 of 3 frames can't be scored:\n  .*1\.png: PNG file of"):
        evaluate(pred, gt, dataset("scenes"))


def test_ten_files_are_named_and_the_rest_counted(tmp_path):
    for i in range(13):
        write_png(tmp_path / f"pred/{i:02d}.png", np.zeros((1, 1), np.uint8))
    write_png(tmp_path / "gt/00.png", np.zeros((1, 1), np.uint8))
    with pytest.raises(FilesError) as caught:
        evaluate(tmp_path / "pred", tmp_path / "gt", dataset("scenes"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and 2 more"
    assert len(caught.value.problems) == 12


def test_folders_without_files_are_named(tmp_path, folders):
    pred, gt, _ = folders
    with pytest.raises(FilesError, match="nowhere: no such folder"):
        evaluate(tmp_path / "nowhere", gt, dataset("scenes"))
    with pytest.raises(FilesError, match=r"gt: no labels of cityscapes; they are named \*_gtFine_labelIds"):
        evaluate(pred, gt, dataset("cityscapes"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FilesError, match="empty: no predictions; they are class-id PNG files"):
        evaluate(tmp_path / "empty", gt, dataset("scenes"))


def test_two_predictions_for_one_frame(tmp_path):
    for name in ("x", "x_leftImg8bit"):
        write_png(tmp_path / f"pred/{name}.png", np.zeros((1, 1), np.uint8))
    with pytest.raises(FilesError, match=r"two predictions for one frame:\n.*x\.png\n.*x_leftImg8bit\.png"):
        evaluate(tmp_path / "pred", tmp_path, dataset("cityscapes"))
