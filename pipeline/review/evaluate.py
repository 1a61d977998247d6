"""Compare a folder of predictions with a folder of labels."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fullres.ops import metrics
from fullres.ops.boundary import check_widths
from fullres.ops.objects import Objects, SizeBin, check_bins, connected_objects, found_objects, joined
from fullres.pipeline.data.files import files_below
from fullres.pipeline.data.images import ImageError, read_labels
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.datasets.instances import instance_maps, read_objects
from fullres.pipeline.datasets.pairs import FilesError, pair_with_labels
from fullres.pipeline.predict.outputs import is_picture


@dataclass(frozen=True)
class Band:
    """Scores of the pixels near boundaries ("Learning Downsampling Near Semantic Boundaries", Sec. 4.3); what
    a band is, `ops.boundary.trimap_rings` and `ops.metrics.trimap_confusions` say."""

    width: int  # pixels on each side of a boundary
    confusion: np.ndarray  # KxK int64, rows are the truth

    @property
    def pixels(self) -> int:
        """How many count."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of them whose class is right, nan without any."""
        return metrics.pixel_accuracy(self.confusion)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes present in the band, of which the set's pixels are summed; or nan."""
        return metrics.mean_score(metrics.class_iou(self.confusion))


@dataclass(frozen=True)
class ObjectRecall:
    """How much of objects of several sizes was found ("Learning Downsampling Near Semantic Boundaries",
    Sec. 4.4, Fig. 12 and 14); `ops.objects.Objects.bins` says how they are sorted."""

    annotated: bool  # in instance maps; else the objects are connected pieces of a class
    all: tuple[SizeBin, ...]  # objects of all classes together, smallest first
    by_class: Mapping[str, tuple[SizeBin, ...]]  # of each class that has objects

    def to_json(self) -> dict[str, Any]:
        """As `Evaluation.to_json`."""

        def plain(bins: tuple[SizeBin, ...]) -> list[dict[str, Any]]:
            return [{**asdict(one), "recall": _plain(one.recall)} for one in bins]

        return {
            "objects": "instance maps" if self.annotated else "connected pieces",
            "all": plain(self.all),
            "classes": {name: plain(bins) for name, bins in self.by_class.items()},
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores over a set of images; fractions in [0, 1], nan where nothing was counted."""

    dataset: Dataset
    images: int
    confusion: np.ndarray  # KxK int64, rows are the truth
    trimap: tuple[Band, ...] = ()  # narrowest first; none where none was asked for
    by_size: ObjectRecall | None = None  # where it was asked for

    @cached_property
    def class_iou(self) -> np.ndarray:
        """IoU of each class, K float64."""
        return metrics.class_iou(self.confusion)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes present."""
        return metrics.mean_score(self.class_iou)

    @property
    def small_thin_iou(self) -> float:
        """Mean IoU over the small and thin classes, as in "Split-Merge Pooling", Tables 3 and 4."""
        return metrics.mean_score(self.class_iou, self.dataset.small_thin_ids)

    @property
    def target_iou(self) -> float:
        """Mean IoU over the data set's target classes, over all where it names none ("Learning Downsampling
        Near Semantic Boundaries", Sec. 4.2, Table 2)."""
        return metrics.mean_score(self.class_iou, self.dataset.target_ids)

    @property
    def pixel_accuracy(self) -> float:
        """Share of pixels whose class is right."""
        return metrics.pixel_accuracy(self.confusion)

    @property
    def mean_accuracy(self) -> float:
        """Mean over classes of the share of their pixels that were found."""
        return metrics.mean_score(metrics.class_accuracy(self.confusion))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; nan becomes None, which JSON knows."""
        return {
            "dataset": self.dataset.name,
            "images": self.images,
            "mean_iou": _plain(self.mean_iou),
            "small_thin_iou": _plain(self.small_thin_iou),
            "target_classes": list(self.dataset.target_classes or self.dataset.classes),
            "target_iou": _plain(self.target_iou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_accuracy": _plain(self.mean_accuracy),
            "class_iou": dict(zip(self.dataset.classes, map(_plain, self.class_iou), strict=True)),
            "trimap": [
                {
                    "width": band.width,
                    "pixels": band.pixels,
                    "accuracy": _plain(band.accuracy),
                    "mean_iou": _plain(band.mean_iou),
                }
                for band in self.trimap
            ],
            "by_size": self.by_size and self.by_size.to_json(),
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    pred_dir: str | Path,
    label_dir: str | Path,
    dataset: Dataset,
    progress: Callable[[int, int], None] | None = None,
    trimap: Sequence[int] = (),
    by_size: int | None = None,
) -> Evaluation:
    """Score the class-id PNG files in `pred_dir` against the label files in `label_dir`.

    Both folders are searched recursively, and files are matched by relative path and name, less the endings
    that `dataset` gives to images and labels. The pictures that `predict` writes beside class ids are left
    out. Frames are read by several threads.

    Args:
        progress: called with (frames done, frames in all) after each frame.
        trimap: widths of bands around boundaries whose pixels are scored apart, increasing, in pixels.
        by_size: in how many bins by area the target classes' objects are counted, 1 or more. They are those
            of the data set's instance maps where they lie beside the label files, else connected pieces of
            a class.

    Raises:
        ValueError: widths that don't increase from 1 on; less than one bin.
        FilesError: a folder without files, predictions without label or labels without prediction;
            or, of all frames, those unreadable, of unequal size or with ids that don't belong.
    """
    check_widths(trimap)
    if by_size is not None:
        check_bins(by_size)
    pairs = match(pred_dir, label_dir, dataset)
    instances = None if by_size is None else instance_maps([label for _, label in pairs], dataset)
    classes = len(dataset.classes)
    confusion = np.zeros((classes, classes), np.int64)
    bands = np.zeros((len(trimap), classes, classes), np.int64)
    objects, problems = [], []

    def score(pair: tuple[Path, Path], instance_map: Path | None) -> _Counts | str:
        try:
            return _score(*pair, dataset, trimap, by_size is not None, instance_map)
        except (ImageError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor() as threads:
        for done, result in enumerate(threads.map(score, pairs, instances or [None] * len(pairs)), 1):
            if isinstance(result, str):
                problems.append(result)
            else:
                confusion += result.confusion
                bands += result.bands
                objects.append(result.objects)
            if progress:
                progress(done, len(pairs))
    if problems:
        raise FilesError(f"{len(problems)} of {len(pairs)} frames can't be scored:", problems)
    found = None
    if by_size is not None:
        found = _by_size(joined(objects), by_size, dataset, instances is not None)
    return Evaluation(dataset, len(pairs), confusion, tuple(map(Band, trimap, bands)), found)


def match(pred_dir: str | Path, label_dir: str | Path, dataset: Dataset) -> list[tuple[Path, Path]]:
    """List (prediction file, label file), sorted; raises as `evaluate` does."""
    folder = Path(pred_dir)
    if not folder.is_dir():
        raise FilesError(f"{folder}: no such folder", [])
    found = (p for p in files_below(folder, (".png",)) if not is_picture(p))
    predictions = [(p, p.relative_to(folder).with_suffix("")) for p in found]
    if not predictions:
        raise FilesError(f"{folder}: no predictions; they are class-id PNG files", [])
    return pair_with_labels(predictions, Path(label_dir), dataset, "prediction")


@dataclass(frozen=True)
class _Counts:
    """What is counted in one frame: the confusion, that in each band, and objects."""

    confusion: np.ndarray
    bands: np.ndarray
    objects: Objects


def _score(
    pred_path: Path,
    label_path: Path,
    dataset: Dataset,
    trimap: Sequence[int],
    count_objects: bool,
    instance_map: Path | None,
) -> _Counts:
    """The counts of one frame. Raises ImageError or ValueError, which say in one line why there are none."""
    prediction, label = read_labels(pred_path), dataset.read(label_path)
    _check_size(pred_path, prediction, label_path, label)
    classes, ignored = len(dataset.classes), dataset.ignore_index
    try:
        confusion = metrics.confusion_matrix(prediction, label, classes, ignored)
    except ValueError as error:
        raise ValueError(f"{pred_path}: {error}") from error
    bands = metrics.trimap_confusions(prediction, label, trimap, classes, ignored)
    objects = joined([])
    if instance_map:
        numbers, of_class = read_objects(instance_map, dataset)
        _check_size(instance_map, numbers, label_path, label)
        objects = found_objects(prediction, numbers, of_class).of_classes(dataset.target_ids)
    elif count_objects:
        objects = found_objects(prediction, *connected_objects(label, dataset.target_ids))
    return _Counts(confusion, bands, objects)


def _check_size(path: Path, one: np.ndarray, label_path: Path, label: np.ndarray) -> None:
    if one.shape != label.shape:
        sizes = " but ".join(f"{width}x{height}" for height, width in (one.shape, label.shape))
        raise ValueError(f"{path}: size {sizes} in {label_path}")


def _by_size(objects: Objects, bins: int, dataset: Dataset, annotated: bool) -> ObjectRecall:
    of_class = {dataset.classes[i]: objects.of_classes([i]) for i in sorted(dataset.target_ids)}
    by_class = {name: tuple(some.bins(bins)) for name, some in of_class.items() if len(some)}
    return ObjectRecall(annotated, tuple(objects.bins(bins)), by_class)


def _plain(score: float) -> float | None:
    return None if math.isnan(score) else float(score)
