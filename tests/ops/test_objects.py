import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fullres.ops.objects import Objects, SizeBin, connected_objects, found_objects, joined

SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=12)
LABELS = arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 0, 1, 1, 2, 255]))


def flood_fill(labels, class_ids):
    """Numbers and classes of pieces, pixel by pixel."""
    height, width = labels.shape
    objects, classes = np.zeros(labels.shape, np.int32), []
    for r in range(height):
        for c in range(width):
            if objects[r, c] or labels[r, c] not in class_ids:
                continue
            classes.append(int(labels[r, c]))
            waiting = [(r, c)]
            while waiting:
                y, x = waiting.pop()
                inside = 0 <= y < height and 0 <= x < width
                if inside and not objects[y, x] and labels[y, x] == labels[r, c]:
                    objects[y, x] = len(classes)
                    waiting += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return objects, classes


@settings(max_examples=1000)
@given(LABELS, st.sampled_from([[0], [1, 2], [0, 1, 2], [7], []]))
def test_pieces_equal_a_flood_fill(labels, class_ids):
    objects, classes = connected_objects(labels, class_ids)
    expected, of_class = flood_fill(labels, class_ids)
    assert (objects.dtype, classes.dtype) == (np.int32, np.uint8)
    np.testing.assert_array_equal(objects, expected)
    assert classes.tolist() == of_class


def spiral(side):
    """A line one pixel wide, with a gap as wide between its turns: one piece, which is met in many parts."""
    labels = np.zeros((side, side), np.uint8)
    r, c, down, right = 0, 0, 0, 1
    for length in (side - 1, *(n for n in range(side - 1, 0, -2) for _ in (0, 1))):
        for _ in range(length):
            labels[r, c] = 1
            r, c = r + down, c + right
        down, right = right, -down
    labels[r, c] = 1
    return labels


@pytest.mark.parametrize(
    "labels",
    [
        spiral(41),
        np.tile(np.uint8([0, 1]), (30, 17)),  # upright stripes
        np.uint8(np.indices((23, 31)).sum(axis=0) % 3),  # slanting ones
        np.random.default_rng(0).integers(0, 2, (60, 77), np.uint8),
    ],
)
def test_winding_pieces(labels):
    for turned in (labels, labels[:, ::-1], labels[::-1], labels.T):
        objects, classes = connected_objects(turned, [0, 1, 2])
        expected, of_class = flood_fill(turned, [0, 1, 2])
        np.testing.assert_array_equal(objects, expected)
        assert classes.tolist() == of_class


def test_a_slanting_line_is_one_object():
    objects, classes = connected_objects(np.eye(9, dtype=np.uint8)[::-1], [1])
    assert classes.tolist() == [1]
    assert objects.sum() == 9


@given(st.data())
def test_what_is_found_equals_a_plain_count(data):
    objects = data.draw(arrays(np.int32, SHAPES, elements=st.integers(0, 4)))
    prediction = data.draw(arrays(np.uint8, objects.shape, elements=st.sampled_from([0, 1, 2, 255])))
    classes = data.draw(arrays(np.uint8, 4, elements=st.integers(0, 2)))
    expected = []
    for number, class_id in enumerate(classes.tolist(), 1):
        predicted = [p for p, o in zip(prediction.flat, objects.flat, strict=True) if o == number]
        if predicted:
            expected.append((class_id, len(predicted), predicted.count(class_id)))
    found = found_objects(prediction, objects, classes)
    assert list(zip(found.classes, found.areas, found.hits, strict=True)) == expected
    assert (found.classes.dtype, found.areas.dtype, found.hits.dtype) == (np.uint8, np.int64, np.int64)


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"prediction is \(1, 2\), objects \(2, 1\): they must be alike"):
        found_objects(np.zeros((1, 2), np.uint8), np.zeros((2, 1), np.int32), np.zeros(0, np.uint8))


@pytest.mark.parametrize("number", [-1, 2])
def test_numbers_without_a_class(number):
    with pytest.raises(ValueError, match=r"^objects are .*: 0\.\.1 have a class"):
        found_objects(np.zeros((1, 2), np.uint8), np.int32([[0, number]]), np.uint8([3]))


def sorted_into_bins(objects, count):
    """(area, hits) pairs, one after the other into the bin whose turn it is."""
    left = sorted(objects, key=lambda one: one[0])  # stable: ties keep their order
    bins = []
    for i in range(count):
        here = [left.pop(0) for _ in range(len(objects) // count + (i < len(objects) % count))]
        recalls = [hits / area for area, hits in here]
        areas = [area for area, _ in here]
        recall = sum(recalls) / len(recalls) if recalls else math.nan
        bins.append((len(here), min(areas, default=None), max(areas, default=None), recall))
    return bins


PAIRS = st.integers(1, 5).flatmap(lambda area: st.tuples(st.just(area), st.integers(0, area)))


@given(st.lists(PAIRS, max_size=12), st.integers(1, 6))
def test_bins_equal_a_plain_sort(pairs, count):
    areas, hits = np.array(pairs, np.int64).reshape(-1, 2).T
    objects = Objects(np.zeros(areas.size, np.uint8), areas, hits)
    for found, expected in zip(objects.bins(count), sorted_into_bins(pairs, count), strict=True):
        assert (found.objects, found.smallest, found.largest) == expected[:3]
        np.testing.assert_allclose(found.recall, expected[3])


def test_no_bins():
    with pytest.raises(ValueError, match="0 bins of objects: there must be 1 or more"):
        joined([]).bins(0)


def test_objects_of_several_maps():
    one = Objects(np.uint8([3, 1]), np.int64([5, 6]), np.int64([5, 3]))
    other = Objects(np.uint8([1]), np.int64([2]), np.int64([0]))
    both = joined([one, joined([]), other])
    assert len(both) == 3
    assert len(joined([])) == 0
    assert both.of_classes([1, 9]).bins(1) == [SizeBin(2, 2, 6, 0.25)]
    assert both.of_classes([]).bins(1)[0].objects == 0
