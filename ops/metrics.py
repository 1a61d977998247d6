"""Scores of predicted label maps, from the confusion matrix, with cityscapesScripts' conventions.

A pixel whose truth is `ignore_index` counts for nothing, whatever is predicted there. Class scores are
fractions in [0, 1], nan where a class has none; means leave nan out.
"""

from collections.abc import Sequence

import numpy as np

from fullres.ops.boundary import boundary_map, trimap_rings

_CHUNK = 1 << 20  # pixels counted at once: bincount widens them to 8 bytes


def confusion_matrix(
    prediction: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int = 255
) -> np.ndarray:
    """Count pixels by true and predicted class: KxK int64, rows are the truth.

    Args:
        prediction: class ids 0..K-1, uint8, any shape.
        label: true class ids or `ignore_index`, uint8, of the same shape.

    Raises:
        ValueError: shapes that differ; not uint8; ids out of range, which it names (predicted ones only
            where the truth counts).
    """
    if prediction.dtype != np.uint8 or label.dtype != np.uint8:
        raise ValueError(f"prediction is {prediction.dtype}, label {label.dtype}: both must be uint8")
    if prediction.shape != label.shape:
        raise ValueError(f"prediction is {prediction.shape}, label {label.shape}: they must be alike")
    pairs = np.zeros(256 * 256, np.int64)
    predicted, true = prediction.ravel(), label.ravel()
    for start in range(0, true.size, _CHUNK):
        pair = true[start : start + _CHUNK].astype(np.uint16) << 8 | predicted[start : start + _CHUNK]
        pairs += np.bincount(pair, minlength=pairs.size)
    counts = pairs.reshape(256, 256)
    counts[ignore_index] = 0
    for what, pixels in (("label", counts.sum(axis=1)), ("prediction", counts.sum(axis=0))):
        unknown = np.flatnonzero(pixels[num_classes:]) + num_classes
        if unknown.size:
            raise ValueError(f"{what} ids {unknown.tolist()} don't belong: 0..{num_classes - 1} do")
    return counts[:num_classes, :num_classes].copy()


def trimap_confusions(
    prediction: np.ndarray,
    label: np.ndarray,
    widths: Sequence[int],
    num_classes: int,
    ignore_index: int = 255,
) -> np.ndarray:
    """Count pixels by true and predicted class in bands around the truth's boundaries: W x K x K int64
    ("Learning Downsampling Near Semantic Boundaries", Sec. 4.3).

    What a band is, `trimap_rings` says, and what a boundary, `boundary_map`: of all classes, and a border to
    ignored pixels is one too. In VOC, which is commonly measured so, a strip of ignored pixels lies along
    every object, and it is the boundary. The ignored pixels themselves do not count.

    Args:
        prediction, label: HxW uint8, as in `confusion_matrix`.
        widths: W of them, in pixels.

    Raises:
        ValueError: as `confusion_matrix`, of pixels in a band; widths that do not increase from 1 on.
    """
    counts = np.zeros((len(widths), num_classes, num_classes), np.int64)
    if not widths:
        return counts
    rings = trimap_rings(boundary_map(label, ignore_index), widths)
    inside = rings < len(widths)
    rings, prediction, label = rings[inside], prediction[inside], label[inside]
    for i in range(len(widths)):
        here = rings == i
        counts[i] = confusion_matrix(prediction[here], label[here], num_classes, ignore_index)
    return counts.cumsum(axis=0)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, K float64; nan for a class neither true nor predicted."""
    hits = np.diagonal(confusion)
    return _ratio(hits, confusion.sum(axis=0) + confusion.sum(axis=1) - hits)


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of each class's true pixels that were found, K float64; nan for a class without any."""
    return _ratio(np.diagonal(confusion), confusion.sum(axis=1))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of all counted pixels whose class is right; nan without pixels."""
    return float(_ratio(np.trace(confusion), confusion.sum()))


def mean_score(scores: np.ndarray, classes: Sequence[int] | None = None) -> float:
    """Mean of class scores that are not nan, of all classes or of those given; nan where none is left.

    `mean_score(class_iou(confusion))` is the mean IoU over present classes.
    """
    scores = scores if classes is None else scores[list(classes)]
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
