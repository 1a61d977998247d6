import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fullres.ops.metrics import (
    class_accuracy,
    class_iou,
    confusion_matrix,
    mean_score,
    pixel_accuracy,
    trimap_confusions,
)

K, IGNORE = 4, 255
SHAPE = (5, 6)
predictions = arrays(np.uint8, SHAPE, elements=st.integers(0, K - 1))
labels = arrays(np.uint8, SHAPE, elements=st.sampled_from([*range(K), IGNORE]))


def loop(prediction, label):
    """Intersection, union and truth of every class, pixel by pixel."""
    hits, union, truth = [0] * K, [0] * K, [0] * K
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t == IGNORE:
            continue
        truth[t] += 1
        hits[t] += p == t
        union[t] += 1
        union[p] += p != t
    return hits, union, truth


def mean(values):
    present = [v for v in values if not math.isnan(v)]
    return sum(present) / len(present) if present else math.nan


def ratio(part, whole):
    return [a / b if b else math.nan for a, b in zip(part, whole, strict=True)]


@given(predictions, labels)
def test_scores_equal_a_plain_loop(prediction, label):
    hits, union, truth = loop(prediction, label)
    confusion = confusion_matrix(prediction, label, K, IGNORE)
    assert confusion.dtype == np.int64
    assert confusion.sum(axis=1).tolist() == truth
    iou = ratio(hits, union)
    np.testing.assert_allclose(class_iou(confusion), iou)
    np.testing.assert_allclose(class_accuracy(confusion), ratio(hits, truth))
    np.testing.assert_allclose(pixel_accuracy(confusion), ratio([sum(hits)], [sum(truth)])[0])
    np.testing.assert_allclose(mean_score(class_iou(confusion)), mean(iou))
    np.testing.assert_allclose(mean_score(class_iou(confusion), [1, 3]), mean([iou[1], iou[3]]))


def test_rows_are_the_truth():
    confusion = confusion_matrix(np.uint8([[2, 2]]), np.uint8([[0, 2]]), 3)
    assert confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 1]]


def test_more_pixels_than_one_chunk():
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 200, (2, 1200, 1000), dtype=np.uint8)
    expected = np.zeros((200, 200), np.int64)
    np.add.at(expected, (label, prediction), 1)
    np.testing.assert_array_equal(confusion_matrix(prediction, label, 200), expected)


def trimap_loop(prediction, label, width):
    """The confusion in one band, pixel by pixel: each looks for a boundary pixel near it."""
    height, w = label.shape
    boundary = []
    for r in range(height):
        for c in range(w):
            beside = [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
            inside = [(y, x) for y, x in beside if 0 <= y < height and 0 <= x < w]
            if label[r, c] != IGNORE and any(label[y, x] != label[r, c] for y, x in inside):
                boundary.append((r, c))
    counts = np.zeros((K, K), np.int64)
    for r in range(height):
        for c in range(w):
            near = any(math.hypot(r - y, c - x) < width for y, x in boundary)
            if near and label[r, c] != IGNORE:
                counts[label[r, c], prediction[r, c]] += 1
    return counts


maps = array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, shape, elements=st.integers(0, K - 1)),
        arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 3, IGNORE])),
    )
)


@given(maps, st.sampled_from([[], [1], [2, 3], [1, 2, 4, 8, 16]]))
def test_confusion_near_boundaries_equals_a_plain_loop(both, widths):
    counts = trimap_confusions(*both, widths, K, IGNORE)
    assert counts.dtype == np.int64
    assert counts.shape == (len(widths), K, K)
    for count, width in zip(counts, widths, strict=True):
        np.testing.assert_array_equal(count, trimap_loop(*both, width))


@pytest.mark.parametrize("value", [0, 2, IGNORE])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7)])
def test_no_band_without_a_boundary(value, shape):
    label = np.full(shape, value, np.uint8)
    assert not trimap_confusions(np.zeros(shape, np.uint8), label, [1, 16], K).any()


def test_a_border_to_ignored_pixels_is_a_boundary():
    """One class with a strip of ignored pixels, as around VOC's objects: two pixels on each side of it."""
    label = np.uint8([[1, 1, 1, IGNORE, IGNORE, 1, 1, 1]])
    counts = trimap_confusions(np.uint8([[1, 1, 0, 0, 0, 1, 1, 1]]), label, [1, 2], K)
    assert counts[:, 1, :2].tolist() == [[1, 1], [1, 3]]


def test_what_is_predicted_on_ignored_pixels_does_not_matter():
    label = np.uint8([[0, IGNORE]])
    assert confusion_matrix(np.uint8([[0, 255]]), label, 2).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([[0, 7]], [[0, 1]], r"prediction ids \[7\] don't belong: 0..1 do"),
        ([[0, 1]], [[9, 3]], r"label ids \[3, 9\] don't belong: 0..1 do"),
        ([[0], [1]], [[0, 1]], r"prediction is \(2, 1\), label \(1, 2\)"),
    ],
)
def test_what_does_not_belong_is_named(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.uint8(prediction), np.uint8(label), 2)


def test_wider_integers_are_refused():
    with pytest.raises(ValueError, match="prediction is int64, label uint8"):
        confusion_matrix(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8), 2)
