"""`fullres evaluate` beside what others compute from the same files.

All leave out pixels without a class, whatever is predicted there, sum over the set, and divide then. In all
of them a class that is predicted, where pixels count, but never labelled has an IoU of 0, which counts in the
mean. They differ in

- a class that is neither labelled nor predicted: nan here, in mmsegmentation and in cityscapesScripts, 0 in
  torchmetrics' list of classes; it counts in no mean.
- a prediction that is no class: an error here; in mmsegmentation and, where the id is one that is not
  evaluated, in cityscapesScripts a pixel that was not found; torchmetrics does not expect it.
- precision: float64 here and in cityscapesScripts, float32 in the two others; mmsegmentation's means are in
  percent with two decimals.

Predictions are label maps with seeded faults. Others read the files with Pillow.
"""

import copy
import json

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import args, evaluateImgLists
from cityscapesscripts.helpers.labels import trainId2label
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import write_png
from tests import predictions
from tests.predictions import BICYCLE, BUS, CAMVID, MOTORCYCLE, TRAIN

SINGLE = 2e-7  # of a quotient in float32


def evaluated(pred, labels, dataset, file):
    """What `fullres evaluate --json` writes, with nan for null."""
    asked = ["evaluate", str(pred), str(labels), "--dataset", dataset, "--json", str(file)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    scores = json.loads(file.read_text())
    scores["class_iou"] = np.array(list(scores["class_iou"].values()), np.float64)
    return scores


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("camvid", marks=pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not there")),
        "scenes",
    ],
)
def predicted(request, tmp_path_factory):
    return getattr(predictions, request.param)(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def scores(predicted, tmp_path_factory):
    file = tmp_path_factory.mktemp("scores") / "scores.json"
    return evaluated(predicted.predictions, predicted.labels, predicted.dataset, file)


@pytest.fixture(scope="module")
def frames(predicted):
    """(prediction, label) of each frame as stored."""
    folders = predicted.predictions, predicted.labels
    return [tuple(np.array(Image.open(folder / name)) for folder in folders) for name in predicted.names]


def test_what_is_compared(predicted, scores, frames):
    iou = scores["class_iou"]
    assert 0.2 < scores["mean_iou"] < 0.95
    assert all((label == predicted.ignored).any() for _, label in frames)
    if predicted.dataset == "camvid":
        assert scores["images"] == 101
        assert len(set(iou.round(3))) == 11  # each class has its own, and none is perfect
        assert (iou > 0).all()
        assert (iou < 1).all()
    else:
        assert len({label.shape for _, label in frames}) == len(frames)
        assert iou[BUS] == 0
        assert np.flatnonzero(np.isnan(iou)).tolist() == [TRAIN, MOTORCYCLE, BICYCLE]
        assert any((prediction == TRAIN).any() for prediction, _ in frames)


def iou_metric(frames, classes, ignored):
    """What mmsegmentation 1.2.2's IoUMetric computes, written anew: IoU of each class, their mean and that of
    accuracies and the accuracy of all pixels, these three in percent. `make parity` runs the real one.

    Its areas are float32. They are exact up to 2^24 pixels of a class."""
    hits, found, there = torch.zeros(3, classes)
    for prediction, label in (map(torch.from_numpy, frame) for frame in frames):
        counts = label != ignored
        prediction, label = prediction[counts].float(), label[counts].float()
        pixels = prediction[prediction == label], prediction, label
        for area, values in zip((hits, found, there), pixels, strict=True):
            area += torch.histc(values, classes, 0, classes - 1)
    iou, accuracy = (hits / (found + there - hits)).numpy(), (hits / there).numpy()
    means = np.nanmean(iou), np.nanmean(accuracy), (hits.sum() / there.sum()).numpy()
    return iou, [np.round(100 * mean, 2) for mean in means]


def test_equal_to_mmsegmentations_metric(predicted, scores, frames):
    iou, means = iou_metric(frames, predicted.classes, predicted.ignored)
    np.testing.assert_allclose(scores["class_iou"], iou, rtol=0, atol=SINGLE)
    own = [scores[name] for name in ("mean_iou", "mean_accuracy", "pixel_accuracy")]
    np.testing.assert_allclose(np.multiply(100, own), means, rtol=0, atol=0.00501)


def test_equal_to_torchmetrics(predicted, scores, frames):
    classes, ignored = predicted.classes, predicted.ignored
    each, mean = (
        MulticlassJaccardIndex(classes, average=average, ignore_index=ignored) for average in (None, "macro")
    )
    for prediction, label in (map(torch.from_numpy, frame) for frame in frames):
        for metric in (each, mean):
            metric.update(prediction, label)
    assert np.array_equal(each.confmat.numpy(), scores["confusion"])
    np.testing.assert_allclose(np.nan_to_num(scores["class_iou"]), each.compute(), rtol=0, atol=SINGLE)
    np.testing.assert_allclose(scores["mean_iou"], mean.compute(), rtol=0, atol=SINGLE)


def test_equal_to_cityscapes_scripts(predicted, scores, frames, tmp_path):
    """It evaluates files of labelIds, of Cityscapes' classes: CamVid's stand for the first of those."""
    ids = [trainId2label[i].id for i in range(predicted.classes)]
    table = np.zeros(256, np.uint8)  # 0 is "unlabeled", which is not evaluated
    table[: len(ids)] = ids
    pred, gt = [], []
    for name, (prediction, label) in zip(predicted.names, frames, strict=True):
        stem = name.removesuffix(".png")
        pred.append(str(tmp_path / f"pred/{stem}.png"))
        gt.append(str(tmp_path / f"gt/{stem}_gtFine_labelIds.png"))
        write_png(pred[-1], table[prediction])
        write_png(gt[-1], table[label])
    settings = copy.copy(args)
    settings.quiet, settings.evalInstLevelScore = True, False
    settings.exportFile = str(tmp_path / "result.json")
    result = evaluateImgLists(pred, gt, settings)
    assert np.array_equal(np.array(result["confMatrix"])[np.ix_(ids, ids)], scores["confusion"])
    iou = [result["classScores"][trainId2label[i].name] for i in range(predicted.classes)]
    np.testing.assert_allclose(scores["class_iou"], iou, rtol=0, atol=1e-12)
    assert scores["mean_iou"] == pytest.approx(result["averageScoreClasses"], abs=1e-12)

    if predicted.classes == 19:  # the same label files, read by the project
        own = evaluated(predicted.predictions, tmp_path / "gt", "cityscapes", tmp_path / "own.json")
        assert own["confusion"] == scores["confusion"]
