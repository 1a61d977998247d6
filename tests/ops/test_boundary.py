import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fullres.ops.boundary import boundary_map, trimap_band

IGNORE = 255
SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=11)
LABELS = arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 0, 0, 1, 2, IGNORE]))
TARGETS = st.none() | st.lists(st.sampled_from([0, 1, 2, 7, IGNORE]), max_size=3)


def loop(labels, targets):
    """The boundary pixel by pixel."""
    height, width = labels.shape
    boundary = np.zeros(labels.shape, bool)
    for r in range(height):
        for c in range(width):
            beside = [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
            differs = any(
                labels[y, x] != labels[r, c] for y, x in beside if 0 <= y < height and 0 <= x < width
            )
            counts = labels[r, c] != IGNORE and (targets is None or labels[r, c] in targets)
            boundary[r, c] = differs and counts
    return boundary


@settings(max_examples=1000, deadline=None)
@given(LABELS, TARGETS)
def test_the_boundary_equals_a_plain_loop(labels, targets):
    boundary = boundary_map(labels, IGNORE, targets)
    assert boundary.dtype == np.bool_
    np.testing.assert_array_equal(boundary, loop(labels, targets))


@pytest.mark.parametrize(
    "labels", [np.uint8([[3]]), np.full((5, 7), IGNORE, np.uint8), np.ones((1, 9), np.uint8)]
)
def test_labels_without_a_boundary(labels):
    assert not boundary_map(labels).any()


def test_both_sides_of_an_edge_count_but_for_ignored_pixels_and_other_classes():
    labels = np.uint8([[0, 0, 1, 1, IGNORE, 2]])
    assert boundary_map(labels).tolist() == [[False, True, True, True, False, True]]
    assert boundary_map(labels, target_classes=[1]).tolist() == [[False, False, True, True, False, False]]
    assert boundary_map(labels, ignore_index=0).tolist() == [[False, False, True, True, True, True]]


@settings(max_examples=500, deadline=None)
@given(arrays(bool, SHAPES), st.sampled_from([0, 0.5, 1, 1.4, 2**0.5, 2, 3, 5**0.5, 4.9, 50]))
def test_the_band_holds_every_pixel_within_its_width(boundary, width):
    rows, columns = np.indices(boundary.shape)
    expected = np.zeros(boundary.shape, bool)
    for r, c in np.argwhere(boundary):
        expected |= np.sqrt((rows - r) ** 2 + (columns - c) ** 2) <= width
    band = trimap_band(boundary, width)
    assert band.dtype == np.bool_
    np.testing.assert_array_equal(band, expected)


def test_the_band_grows_to_both_sides_of_an_edge():
    boundary = boundary_map(np.uint8([[0, 0, 0, 0, 1, 1, 1, 1]]))
    assert np.flatnonzero(trimap_band(boundary, 0)).tolist() == [3, 4]
    assert np.flatnonzero(trimap_band(boundary, 2)).tolist() == [1, 2, 3, 4, 5, 6]
