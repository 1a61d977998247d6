"""Compare a folder of predictions with a folder of labels."""

import glob
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fullres.ops import metrics
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.images import ImageError, read_labels

_PICTURES = ("_color", "_overlay")  # for people; they lie beside the class ids
_NAMED = 10  # files named in one message


class EvaluationError(Exception):
    """Files that can't be compared. The message names up to ten; `problems` holds all, one line each."""

    def __init__(self, headline: str, problems: Sequence[str]):
        self.problems = list(problems)
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        super().__init__("\n  ".join([headline, *problems[:_NAMED], *more]))


@dataclass(frozen=True)
class Evaluation:
    """Scores over a set of images; fractions in [0, 1], nan where nothing was counted."""

    dataset: Dataset
    images: int
    confusion: np.ndarray  # KxK int64, rows are the truth

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
        """Mean IoU over the data set's small and thin classes, as in paper 000, Tables 3 and 4."""
        return metrics.mean_score(self.class_iou, self.dataset.small_thin_ids)

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

        def plain(score: float) -> float | None:
            return None if math.isnan(score) else float(score)

        return {
            "dataset": self.dataset.name,
            "images": self.images,
            "mean_iou": plain(self.mean_iou),
            "small_thin_iou": plain(self.small_thin_iou),
            "pixel_accuracy": plain(self.pixel_accuracy),
            "mean_accuracy": plain(self.mean_accuracy),
            "class_iou": dict(zip(self.dataset.classes, map(plain, self.class_iou), strict=True)),
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    pred_dir: str | Path,
    label_dir: str | Path,
    dataset: Dataset,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score the class-id PNG files in `pred_dir` against the label files in `label_dir`.

    Both folders are searched recursively, and files are matched by relative path and name, less the endings
    that `dataset` gives to images and labels. `*_color.*` and `*_overlay.*` are left out. Frames are read by
    several threads.

    Args:
        progress: called with (frames done, frames in all) after each frame.

    Raises:
        EvaluationError: a folder without files, predictions without label or labels without prediction;
            or, of all frames, those unreadable, of unequal size or with ids that don't belong.
    """
    pairs = match(pred_dir, label_dir, dataset)
    confusion = np.zeros((len(dataset.classes),) * 2, np.int64)
    problems = []

    def score(pair: tuple[Path, Path]) -> np.ndarray | str:
        return _score(*pair, dataset)

    with ThreadPoolExecutor() as threads:
        for done, result in enumerate(threads.map(score, pairs), 1):
            if isinstance(result, str):
                problems.append(result)
            else:
                confusion += result
            if progress:
                progress(done, len(pairs))
    if problems:
        raise EvaluationError(f"{len(problems)} of {len(pairs)} frames can't be scored:", problems)
    return Evaluation(dataset, len(pairs), confusion)


def match(pred_dir: str | Path, label_dir: str | Path, dataset: Dataset) -> list[tuple[Path, Path]]:
    """List (prediction file, label file), sorted; raises as `evaluate` does."""
    predictions: dict[str, Path] = {}
    for path in _files(pred_dir, (".png",)):
        key = _key(path, pred_dir).removesuffix(dataset.image_ending)
        if key in predictions:
            raise EvaluationError("two predictions for one frame:", [str(predictions[key]), str(path)])
        predictions[key] = path

    labels: dict[str, Path] = {}
    files = _files(label_dir, (".png", ".tif", ".tiff"))
    for ending in dataset.encodings:  # where a frame is stored in two ways, the first encoding counts
        for path in files:
            if dataset.label_ending(path) == ending:
                labels.setdefault(_key(path, label_dir).removesuffix(ending), path)

    if not predictions:
        raise EvaluationError(f"{pred_dir}: no predictions; they are class-id PNG files", [])
    if not labels:
        names = ", ".join(f"*{ending}.png" for ending in dataset.encodings)
        raise EvaluationError(f"{label_dir}: no labels of {dataset.name}; they are named {names}", [])
    unmatched = [f"{predictions[key]}: no label" for key in sorted(predictions.keys() - labels.keys())]
    unmatched += [f"{labels[key]}: no prediction" for key in sorted(labels.keys() - predictions.keys())]
    if unmatched:
        raise EvaluationError(f"files without their counterpart ({len(unmatched)}):", unmatched)
    return [(predictions[key], labels[key]) for key in sorted(labels)]


def _files(folder: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not os.path.isdir(folder):
        raise EvaluationError(f"{folder}: no such folder", [])
    found = glob.glob(os.path.join(glob.escape(str(folder)), "**", "*"), recursive=True)
    paths = (Path(name) for name in sorted(found))
    return [p for p in paths if p.suffix.lower() in suffixes and not p.stem.endswith(_PICTURES)]


def _key(path: Path, folder: str | Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _score(pred_path: Path, label_path: Path, dataset: Dataset) -> np.ndarray | str:
    """The confusion of one frame, or in one line why there is none."""
    try:
        prediction = read_labels(pred_path)
        label = dataset.to_train_ids(read_labels(label_path), label_path)
    except (ImageError, ValueError) as error:
        return str(error)
    if prediction.shape != label.shape:
        sizes = " but ".join(f"{height}x{width}" for height, width in (prediction.shape, label.shape))
        return f"{pred_path}: size {sizes} in {label_path}"
    try:
        return metrics.confusion_matrix(prediction, label, len(dataset.classes), dataset.ignore_index)
    except ValueError as error:
        return f"{pred_path}: {error}"
