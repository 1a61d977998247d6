import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fullres.ops.boundary import WIDEST, boundary_map, trimap_rings

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


WIDTHS = st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 13, 50]), unique=True, max_size=5).map(sorted)


def distances(boundary):
    """Of each pixel to every boundary pixel in turn, the least; infinite where there is none."""
    rows, columns = np.indices(boundary.shape)
    least = np.full(boundary.shape, np.inf)
    for r, c in np.argwhere(boundary):
        least = np.minimum(least, np.sqrt((rows - r) ** 2 + (columns - c) ** 2))
    return least


@settings(max_examples=500, deadline=None)
@given(arrays(bool, SHAPES) | arrays(bool, SHAPES, fill=st.just(False)), WIDTHS)
def test_rings_equal_a_search_of_all_boundary_pixels(boundary, widths):
    expected = [sum(d >= w for w in widths) for d in distances(boundary).ravel().tolist()]
    rings = trimap_rings(boundary, widths)
    assert rings.dtype == np.uint16
    assert rings.ravel().tolist() == expected


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (97, 131)])
def test_rings_of_wide_bands_in_larger_maps(shape):
    rng = np.random.default_rng(0)
    boundary = rng.random(shape) < 3 / np.prod(shape)
    widths = [1, 7, 40, 41, WIDEST]
    expected = sum((distances(boundary) >= w).astype(int) for w in widths)
    np.testing.assert_array_equal(trimap_rings(boundary, widths), expected)
    np.testing.assert_array_equal(trimap_rings(boundary.T, widths), expected.T)


def test_a_band_has_its_width_on_each_side_of_an_edge():
    boundary = boundary_map(np.uint8([[0, 0, 0, 0, 1, 1, 1, 1]]))
    assert trimap_rings(boundary, [1, 3]).tolist() == [[2, 1, 1, 0, 0, 1, 1, 2]]


@pytest.mark.parametrize("widths", [[0], [-1, 2], [2, 2], [1, 4, 3], [WIDEST + 1]])
def test_widths_that_are_none(widths):
    given = ",".join(map(str, widths))
    with pytest.raises(ValueError, match=f"^widths are {given}: 1 to 10000 pixels, each wider than the one"):
        trimap_rings(np.zeros((2, 2), bool), widths)
