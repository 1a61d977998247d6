from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay

from fullres.ops.interpolate import (
    interpolate_labels,
    interpolate_scores,
    interpolate_tensor,
    interpolate_tensor_labels,
)
from fullres.ops.sampling_solve import uniform_tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
torch.set_num_threads(1)
seeds = st.integers(0, 10**6)
grids = st.tuples(st.integers(2, 9), st.integers(2, 9))
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def on_border(phi):
    phi[0, :, 0] = phi[:, 0, 1] = 0
    phi[-1, :, 0] = phi[:, -1, 1] = 1
    return phi


def scattered(rng, h, w, amount):
    """The uniform tensor, moved by up to so many quads' sides: above 0.5 it may fold."""
    sides = 1 / (np.array([h, w]) - 1)
    phi = (uniform_tensor(h, w) + rng.uniform(-amount, amount, (h, w, 2)) * sides) % 2
    return on_border(np.minimum(phi, 2 - phi))  # mirrored at the border


@st.composite
def tensors(draw):
    """From nearly regular ones to any; points anywhere, or at few places so that many meet and many are
    pixels' centres."""
    (h, w), rng = draw(grids), np.random.default_rng(draw(seeds))
    phi = scattered(rng, h, w, draw(st.sampled_from([0, 0.3, 1, 3])))
    places = draw(st.sampled_from([None, 1, 2, 5, 13]))
    return phi if places is None else np.rint(phi * places) / places


def positions(phi, size):
    return phi * np.maximum(np.array(size) - 1, 1)


@settings(deadline=None, max_examples=400)
@given(tensors(), sizes)
def test_a_linear_function_is_reproduced_at_every_pixel(phi, size):
    # With what no hole and no misplaced triangle goes together, however the tensor is folded.
    scores = np.float32(positions(phi, size)).transpose(2, 0, 1)
    expected = np.float32(np.mgrid[: size[0], : size[1]])
    np.testing.assert_allclose(interpolate_scores(scores, phi, size), expected, atol=1e-5)
    on_torch = interpolate_tensor(torch.from_numpy(scores)[None], torch.from_numpy(phi)[None], size)
    np.testing.assert_allclose(on_torch[0], expected, atol=2e-5)


def triangles_of(y, x):
    """Triples of points of each grid quad, cut where the determinant of the in-circle test says."""
    h, w = y.shape
    found = []
    for i, j in product(range(h - 1), range(w - 1)):
        a, b, c, d = (i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j)
        inside = np.linalg.det([[x[p], y[p], x[p] ** 2 + y[p] ** 2, 1] for p in (a, b, c, d)])
        found += [(a, b, d), (b, c, d)] if inside > 1e-6 else [(a, b, c), (a, c, d)]
    return found


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(2, 5), st.integers(2, 5)), seeds, st.sampled_from([0.2, 0.5, 1.5]))
def test_equals_barycentric_coordinates_in_the_last_triangle(grid, seed, amount):
    rng, size = np.random.default_rng(seed), (13, 17)
    phi = scattered(rng, *grid, amount)
    scores = rng.normal(size=(2, *grid)).astype(np.float32)
    y, x = np.moveaxis(positions(phi, size), -1, 0)
    triangles = triangles_of(y, x)
    result = interpolate_scores(scores, phi, size)
    for row, column in product(*map(range, size)):
        allowed = []
        for p, q, r in triangles:
            corners = np.array([[y[p], y[q], y[r]], [x[p], x[q], x[r]], [1, 1, 1]])
            if np.linalg.det(corners) > -1e-9:  # turned over: row and column are clockwise this way
                continue
            weights = np.linalg.solve(corners, [row, column, 1])
            value = sum(
                t * scores[(slice(None), *point)] for t, point in zip(weights, (p, q, r), strict=True)
            )
            if weights.min() > 1e-9:
                allowed = [value]
            elif weights.min() > -1e-9:  # at its edge: it may be the next one's pixel
                allowed.append(value)
        assert min(np.abs(result[:, row, column] - value).max() for value in allowed) < 1e-5


def warped(h, w):
    """Denser around the middle, no folds, no four points on a circle."""
    y, x = np.moveaxis(uniform_tensor(h, w), -1, 0)
    bend = 0.03 * np.sin(np.pi * y) * np.sin(np.pi * x)
    return on_border(np.stack([y + bend * np.sin(5 * x + 1), x + bend * np.sin(7 * y + 2)], -1))


def test_equals_scipys_linear_interpolation():
    phi, size = warped(24, 30), (181, 240)
    scores = np.random.default_rng(0).normal(size=(5, 24, 30)).astype(np.float32)
    delaunay = Delaunay(positions(phi, size).reshape(-1, 2))
    pixels = np.stack(np.mgrid[: size[0], : size[1]], -1)
    expected = LinearNDInterpolator(delaunay, scores.reshape(5, -1).T)(pixels)
    np.testing.assert_allclose(
        interpolate_scores(scores, phi, size), expected.transpose(2, 0, 1), rtol=0, atol=1e-5
    )
    assert (interpolate_labels(scores, phi, size) != expected.argmax(-1)).sum() == 0


@settings(deadline=None, max_examples=200)
@given(tensors(), sizes, seeds, st.integers(1, 8), st.booleans())
def test_labels_are_the_highest_scores(phi, size, seed, classes, one_hot):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(classes, *phi.shape[:2])).astype(np.float32)
    if one_hot:
        scores = np.float32(scores == scores.max(0))
    labels = interpolate_labels(scores, phi, size)
    assert labels.dtype == np.uint8
    pixels = interpolate_scores(scores, phi, size)
    chosen = np.take_along_axis(pixels, labels[None].astype(int), 0)[0]
    assert (chosen >= pixels.max(0) - 1e-6).all()


def test_scores_that_are_the_same_everywhere_stay_so_to_the_bit():
    phi = scattered(np.random.default_rng(0), 9, 7, 2)
    scores = np.full((3, 9, 7), np.float32(0.1))
    scores[1] = np.float32(1 / 3)
    pixels = interpolate_scores(scores, phi, (50, 61))
    assert [np.unique(plane).tolist() for plane in pixels] == [np.unique(plane).tolist() for plane in scores]
    assert (interpolate_labels(scores, phi, (50, 61)) == 1).all()


def test_scores_at_pixels_that_are_grid_points_are_kept():
    scores = np.random.default_rng(0).normal(size=(2, 9, 5)).astype(np.float32)
    pixels = interpolate_scores(scores, uniform_tensor(9, 5), (33, 41))
    np.testing.assert_array_equal(pixels[:, ::4, ::10], scores)


def test_a_regular_quad_is_cut_from_its_top_left():
    scores = np.float32([[[1, 0], [0, 1]]])
    for size in ((5, 5), (4, 12), (101, 7)):
        corners = [interpolate_scores(scores, uniform_tensor(2, 2), size)[0, i, i] for i in (0, -1)]
        assert corners == [1, 1]
    np.testing.assert_array_equal(np.diagonal(interpolate_scores(scores, uniform_tensor(2, 2), (5, 5))[0]), 1)


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=50)
@given(tensors(), sizes, seeds)
def test_tensors_are_interpolated_alike(device, phi, size, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, 3, *phi.shape[:2])).astype(np.float32)
    phis = np.stack([phi, on_border(phi[::-1, ::-1].copy())])
    result = interpolate_tensor(torch.from_numpy(scores).to(device), torch.from_numpy(phis).to(device), size)
    assert result.dtype == torch.float32
    expected = [interpolate_scores(*pair, size) for pair in zip(scores, phis, strict=True)]
    np.testing.assert_allclose(result.cpu(), np.stack(expected), rtol=0, atol=1e-5)
    given_to = (torch.from_numpy(scores).to(device), torch.from_numpy(phis).to(device))
    assert interpolate_tensor_labels(*given_to, size).equal(result.argmax(1).to(torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_labels_of_an_image_larger_than_is_held_at_once(device):
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(1, 5, 8, 8)).astype(np.float32)).to(device)
    phi = torch.from_numpy(scattered(rng, 8, 8, 1))[None].to(device)
    labels = interpolate_tensor_labels(scores, phi, (509, 701))
    assert labels.dtype == torch.uint8
    assert labels.equal(interpolate_tensor(scores, phi, (509, 701)).argmax(1).to(torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_flow_to_the_scores_alone(device):
    phi = torch.from_numpy(np.stack([scattered(np.random.default_rng(i), 4, 3, 1) for i in range(2)]))
    phi = phi.to(device).requires_grad_()
    scores = torch.rand(2, 2, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: interpolate_tensor(x, phi, (6, 7)), (scores,))
    interpolate_tensor(scores, phi, (6, 7)).sum().backward()
    assert phi.grad is None
    torch.testing.assert_close(scores.grad.sum(), torch.tensor(168.0, dtype=torch.float64, device=device))


@pytest.mark.parametrize(
    ("shape", "grid", "message"),
    [
        ((3, 4, 5), (4, 6), r"scores are \(3, 4, 5\), phi \(4, 6, 2\)"),
        ((3, 1, 5), (1, 5), "h and w at least 2"),
        ((4, 5), (4, 5), r"scores are \(4, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, grid, message):
    with pytest.raises(ValueError, match=message):
        interpolate_labels(
            np.zeros(shape, np.float32), uniform_tensor(*np.maximum(grid, 2))[: grid[0]], (8, 8)
        )


@pytest.mark.parametrize(
    ("point", "value", "message"),
    [
        ((0, 2, 0), 0.01, "uncovered"),
        ((3, 2, 0), 0.99, "uncovered"),
        ((2, 0, 1), 0.2, "uncovered"),
        ((2, 3, 1), np.nan, "uncovered"),
        ((1, 1, 0), -0.1, r"within \[0, 1\]"),
        ((1, 1, 1), np.nan, r"within \[0, 1\]"),
    ],
)
def test_tensors_that_do_not_cover_the_image_are_refused(point, value, message):
    phi = uniform_tensor(4, 4)
    phi[point] = value
    scores = np.zeros((2, 4, 4), np.float32)
    for function in (interpolate_scores, interpolate_labels):
        with pytest.raises(ValueError, match=message):
            function(scores, phi, (8, 8))
    with pytest.raises(ValueError, match=message):
        interpolate_tensor(torch.from_numpy(scores)[None], torch.from_numpy(phi)[None], (8, 8))
