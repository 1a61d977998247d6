from dataclasses import replace

import numpy as np
import pytest

from fullres.ops.metrics import class_iou, confusion_matrix, mean_score, trimap_confusions
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
