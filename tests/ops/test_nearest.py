import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from fullres.ops.boundary import boundary_map
from fullres.ops.nearest import grid_lines, nearest_at_grid, nearest_boundary
from tests.shared import DATA

IGNORE = 255
METRICS = st.sampled_from(["pixels", "unit"])
TARGETS = st.none() | st.lists(st.sampled_from([0, 1, 2, 7]), max_size=2)
SIDES = st.integers(1, 20) | st.sampled_from([63, 64, 65, 66, 127, 128, 129, 130, 195])
SHAPES = st.tuples(st.integers(1, 30), SIDES) | st.tuples(SIDES, st.integers(1, 12))
GRIDS = st.tuples(st.integers(2, 12), st.integers(2, 12))


@st.composite
def label_maps(draw):
    """Patches of a few classes, from single pixels to nearly one class; some pixels ignored."""
    height, width = draw(SHAPES)
    patch = draw(st.sampled_from([1, 2, 5, 17]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = [1 - (rest := draw(st.sampled_from([0, 0.02, 0.3, 0.7]))), rest / 2, rest / 4, rest / 4]
    patches = rng.choice([0, 1, 2, IGNORE], (height // patch + 1, width // patch + 1), p=share)
    return np.kron(patches, np.ones((patch, patch)))[:height, :width].astype(np.uint8)


def nearest_of_all(boundary, rows, columns, metric):
    """The nearest by trying every boundary pixel: of equal ones the leftmost, then the uppermost."""
    height, width = (max(n - 1, 1) for n in boundary.shape)
    down, right = (1, 1) if metric == "pixels" else (width, height)
    r, c = np.nonzero(boundary.T)[::-1]  # by column, then by row: argmin takes the first
    square = (down * (rows[:, None, None] - r)) ** 2 + (right * (columns[:, None] - c)) ** 2
    first = square.argmin(axis=-1)
    return np.stack([r[first], c[first]], axis=-1)


@settings(max_examples=1000, deadline=None)
@given(label_maps(), GRIDS, TARGETS, METRICS)
def test_the_fast_path_equals_trying_every_boundary_pixel(labels, grid, targets, metric):
    nearest = nearest_at_grid(labels, grid, IGNORE, targets, metric)
    boundary = boundary_map(labels, IGNORE, targets)
    if not boundary.any():
        assert nearest is None
        return
    rows, columns = (grid_lines(n, points) for n, points in zip(labels.shape, grid, strict=True))
    assert nearest.dtype == np.int32
    np.testing.assert_array_equal(nearest, nearest_of_all(boundary, rows, columns, metric))


@settings(max_examples=500, deadline=None)
@given(label_maps(), METRICS)
def test_the_full_transform_equals_trying_every_boundary_pixel(labels, metric):
    boundary = boundary_map(labels, IGNORE)
    if not boundary.any():
        with pytest.raises(ValueError, match="no boundary pixel"):
            nearest_boundary(boundary, metric)
        return
    nearest, distance = nearest_boundary(boundary, metric)
    assert (nearest.dtype, distance.dtype) == (np.int32, np.float32)
    rows, columns = (np.arange(n) for n in boundary.shape)
    np.testing.assert_array_equal(nearest, nearest_of_all(boundary, rows, columns, metric))
    step = np.ones(2) if metric == "pixels" else 1 / np.maximum(np.subtract(boundary.shape, 1), 1)
    away = np.linalg.norm((nearest - np.moveaxis(np.indices(boundary.shape), 0, 2)) * step, axis=-1)
    np.testing.assert_allclose(distance, away, rtol=1e-6)


@pytest.mark.parametrize("metric", ["pixels", "unit"])
@pytest.mark.parametrize("share", [3e-5, 1e-3, 0.1])
def test_both_paths_agree_at_every_pixel_of_a_large_map(metric, share):
    labels = (np.random.default_rng(7).random((401, 803)) < share).astype(np.uint8)
    full, _ = nearest_boundary(boundary_map(labels, target_classes=[1]), metric)
    at_pixels = nearest_at_grid(labels, labels.shape, target_classes=[1], metric=metric)
    np.testing.assert_array_equal(at_pixels, full)


def test_a_tie_goes_to_the_upper_pixel_of_a_column_and_to_the_leftmost_column():
    labels = np.zeros((5, 5), np.uint8)
    labels[[0, 4, 2, 2], [2, 2, 0, 4]] = 1
    assert nearest_at_grid(labels, (3, 3), target_classes=[1])[1, 1].tolist() == [2, 0]
    labels[2, 0] = 0
    assert nearest_at_grid(labels, (3, 3), target_classes=[1])[1, 1].tolist() == [0, 2]


def test_the_metrics_differ_on_a_wide_image():
    labels = np.zeros((5, 21), np.uint8)
    labels[0, 10] = labels[2, 13] = 1  # from the middle 2 rows or 3 columns: 0.5 or 0.15 of the image
    assert nearest_at_grid(labels, (3, 3), target_classes=[1])[1, 1].tolist() == [0, 10]
    assert nearest_at_grid(labels, (3, 3), target_classes=[1], metric="unit")[1, 1].tolist() == [2, 13]


def test_a_grid_points_pixel_is_the_closest_and_of_two_the_even_one():
    assert grid_lines(6, 3).tolist() == [0, 2, 5]  # 2.5
    assert grid_lines(4, 3).tolist() == [0, 2, 3]  # 1.5
    assert grid_lines(1024, 8).tolist() == [0, 146, 292, 438, 585, 731, 877, 1023]
    assert grid_lines(1, 4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "labels", [np.uint8([[3]]), np.full((5, 7), IGNORE, np.uint8), np.ones((1, 9), np.uint8)]
)
def test_labels_without_a_boundary_have_none_nearest(labels):
    assert nearest_at_grid(labels, (4, 4)) is None


def test_classes_that_are_absent_have_none_nearest():
    labels = np.uint8([[0, 1], [1, 0]])
    assert nearest_at_grid(labels, (4, 4), target_classes=[5]) is None
    assert nearest_at_grid(labels, (4, 4), target_classes=[]) is None


def test_labels_may_be_a_view_and_read_only():
    whole = np.random.default_rng(0).integers(0, 2, (40, 60), dtype=np.uint8)
    expected = nearest_at_grid(whole[::3, ::2].copy(), (5, 5))
    whole.setflags(write=False)
    np.testing.assert_array_equal(nearest_at_grid(whole[::3, ::2], (5, 5)), expected)


def test_what_is_not_possible_is_named():
    labels = np.uint8([[0, 1]])
    with pytest.raises(ValueError, match="a grid of 8x1 points: at least 2x2"):
        nearest_at_grid(labels, (8, 1))
    with pytest.raises(ValueError, match="metric is 'miles': 'pixels' or 'unit'"):
        nearest_at_grid(labels, (2, 2), metric="miles")


def check_camvid(step):
    files = sorted((DATA / "camvid").glob("*annot/*.png"))
    if not files:
        pytest.skip(f"no CamVid at {DATA}; see tests/shared.py")
    assert len(files) == 468
    for file in files[::step]:
        labels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        labels[labels == 11] = IGNORE
        boundary = boundary_map(labels)
        full = distance_transform_edt(~boundary, return_distances=False, return_indices=True)
        for grid in ((8, 8), (37, 50)):
            rows, columns = (grid_lines(n, points) for n, points in zip(labels.shape, grid, strict=True))
            expected = np.moveaxis(full[:, rows[:, None], columns], 0, 2)
            np.testing.assert_array_equal(nearest_at_grid(labels, grid), expected, err_msg=file.name)


def test_camvid_equals_scipys_distance_transform():
    check_camvid(step=9)


@pytest.mark.slow
def test_all_of_camvid_equals_scipys_distance_transform():
    check_camvid(step=1)
