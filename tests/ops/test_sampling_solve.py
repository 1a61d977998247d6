import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from fullres.ops.nearest import nearest_at_grid
from fullres.ops.sampling_solve import SparseSolver, fold_overs, sampling_tensor, solve, uniform_tensor
from tests.shared import DATA

SMALL = st.tuples(st.integers(2, 6), st.integers(2, 6))
LAMBDAS = st.sampled_from([0, 1e-3, 0.1, 1, 7, 1e3]) | st.floats(0, 50)
SEEDS = st.integers(0, 2**32)


def random_b(rng, *shape):
    """In [0, 1], often at its ends."""
    return np.clip(rng.uniform(-0.5, 1.5, shape), 0, 1)


def random_weights(rng, h, w):
    return 10 ** rng.uniform(-2, 2, (h - 1, w)), 10 ** rng.uniform(-2, 2, (h, w - 1))


def bounded_least_squares(b, lam, weights):
    """The minimum of Eq. 2 in [0, 1] under Eq. 3, term by term."""
    h, w = b.shape[:2]
    phi = np.empty(b.shape)
    for component in (0, 1):
        fixed = np.full((h, w), np.nan)
        if component == 0:
            fixed[0], fixed[-1] = 0, 1
        else:
            fixed[:, 0], fixed[:, -1] = 0, 1
        terms, target = [], []
        for i, j in np.ndindex(h, w):
            pairs = [((i + 1, j), weights[0])] * (i + 1 < h) + [((i, j + 1), weights[1])] * (j + 1 < w)
            for other, weight in [(None, None), *pairs]:
                term = np.zeros((h, w))
                scale = 1 if other is None else np.sqrt(lam * weight[i, j])
                term[i, j] = scale
                if other is not None:
                    term[other] = -scale
                terms.append(term.ravel())
                target.append(b[i, j, component] if other is None else 0)
        terms, known = np.array(terms), fixed.ravel()
        free = np.isnan(known)
        target -= terms[:, ~free] @ known[~free]
        if free.any():
            known[free] = lsq_linear(terms[:, free], target, (0, 1), method="bvls", tol=1e-15).x
        phi[..., component] = known.reshape(h, w)
    return phi


def assert_covers(phi):
    assert phi.dtype == np.float64
    assert phi.min() >= 0
    assert phi.max() <= 1
    assert (phi[..., 0, :, 0] == 0).all()
    assert (phi[..., -1, :, 0] == 1).all()
    assert (phi[..., :, 0, 1] == 0).all()
    assert (phi[..., :, -1, 1] == 1).all()


@settings(max_examples=200, deadline=None)
@given(SMALL, LAMBDAS, SEEDS)
def test_both_solvers_equal_bounded_least_squares(grid, lam, seed):
    b = random_b(np.random.default_rng(seed), *grid, 2)
    phi = solve(b, lam)
    expected = bounded_least_squares(b, lam, (np.ones(grid), np.ones(grid)))
    np.testing.assert_allclose(phi, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(SparseSolver(*grid, lam).solve(b), phi, rtol=0, atol=1e-10)
    assert_covers(phi)


@settings(max_examples=200, deadline=None)
@given(SMALL, LAMBDAS, SEEDS)
def test_edges_may_weigh_differently(grid, lam, seed):
    rng = np.random.default_rng(seed)
    b, weights = random_b(rng, *grid, 2), random_weights(rng, *grid)
    phi = SparseSolver(*grid, lam, weights).solve(b)
    np.testing.assert_allclose(phi, bounded_least_squares(b, lam, weights), rtol=0, atol=1e-8)
    assert_covers(phi)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), LAMBDAS, SEEDS)
def test_the_fast_solver_equals_the_sparse_one(h, w, lam, seed):
    b = random_b(np.random.default_rng(seed), 3, h, w, 2)
    phi = solve(b, lam)
    np.testing.assert_allclose(phi, SparseSolver(h, w, lam).solve(b), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(phi[1], solve(b[1], lam))
    assert_covers(phi)


@pytest.mark.parametrize(("h", "w"), [(128, 128), (97, 160)])
def test_the_solvers_agree_on_large_grids(h, w):
    b = random_b(np.random.default_rng(0), h, w, 2)
    np.testing.assert_allclose(solve(b, 1), SparseSolver(h, w, 1).solve(b), rtol=0, atol=1e-10)


def test_a_factorisation_serves_many_right_hand_sides():
    b = random_b(np.random.default_rng(0), 4, 5, 7, 6, 2)
    solver = SparseSolver(7, 6, 0.3)
    phi = solver.solve(b)
    assert phi.shape == b.shape
    for index in np.ndindex(4, 5):
        np.testing.assert_allclose(phi[index], solver.solve(b[index]), rtol=0, atol=1e-14)


@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.sampled_from([0.1, 1, 20]),
    st.sampled_from([None, [1], [1, 2], [9]]),
    st.sampled_from(["pixels", "unit"]),
    SEEDS,
)
def test_from_labels_to_phi(height, width, grid, lam, targets, metric, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.uint8([0, 1, 2, 255]), (height, width), p=[0.8, 0.1, 0.05, 0.05])
    phi = sampling_tensor(labels, grid, lam, 255, targets, metric)
    nearest = nearest_at_grid(labels, grid, 255, targets, metric)
    if nearest is None:
        np.testing.assert_array_equal(phi, uniform_tensor(*grid))
        return
    b = nearest / [max(height - 1, 1), max(width - 1, 1)]
    np.testing.assert_allclose(phi, SparseSolver(*grid, lam).solve(b), rtol=0, atol=1e-10)
    assert_covers(phi)


def test_lambda_goes_from_the_boundary_to_the_uniform_grid():
    labels = np.zeros((60, 90), np.uint8)
    labels[20:34, 30:71] = 1
    b = nearest_at_grid(labels, (9, 9)) / [59, 89]
    np.testing.assert_allclose(sampling_tensor(labels, (9, 9), 0)[1:-1, 1:-1], b[1:-1, 1:-1], atol=1e-12)
    np.testing.assert_allclose(sampling_tensor(labels, (9, 9), 1e7), uniform_tensor(9, 9), atol=1e-5)


@pytest.mark.parametrize(
    "labels", [np.uint8([[3]]), np.zeros((40, 30), np.uint8), np.full((7, 5), 255, np.uint8)]
)
def test_without_a_boundary_the_grid_is_uniform(labels):
    np.testing.assert_array_equal(sampling_tensor(labels, (3, 5), 1), uniform_tensor(3, 5))


def test_the_uniform_tensor():
    assert uniform_tensor(2, 3).tolist() == [[[0, 0], [0, 0.5], [0, 1]], [[1, 0], [1, 0.5], [1, 1]]]


@pytest.mark.parametrize(("h", "w"), [(1, 8), (8, 1), (0, 4)])
def test_a_grid_of_one_line_is_refused(h, w):
    message = f"a grid of {h}x{w} points: at least 2x2"
    with pytest.raises(ValueError, match=message):
        uniform_tensor(h, w)
    with pytest.raises(ValueError, match=message):
        sampling_tensor(np.uint8([[0, 1]]), (h, w), 1)
    with pytest.raises(ValueError, match=message):
        solve(np.zeros((h, w, 2)), 1)
    with pytest.raises(ValueError, match=message):
        SparseSolver(h, w, 1)


def fold_overs_by_loop(phi):
    h, w = phi.shape[:2]
    folds = 0
    for i, j in np.ndindex(h - 1, w - 1):
        for corner in ((i + 1, j), (i, j + 1)):
            a, b, c = phi[i, j], phi[corner], phi[i + 1, j + 1]
            area = np.linalg.det(np.stack([b - a, c - a]))
            folds += (area if corner == (i + 1, j) else -area) <= 1e-12
    return folds


@settings(max_examples=200, deadline=None)
@given(SMALL, st.sampled_from([0.05, 0.3, 1.0]), SEEDS)
def test_fold_overs_equal_a_plain_loop(grid, shake, seed):
    phi = uniform_tensor(*grid) + np.random.default_rng(seed).uniform(-shake, shake, (*grid, 2)) / 2
    assert fold_overs(phi) == fold_overs_by_loop(phi)


def test_fold_overs_of_one_quad():
    quad = uniform_tensor(2, 2)
    assert fold_overs(quad) == 0
    assert fold_overs(quad[::-1]) == 2
    quad[1, 0] = [0.4, 0.6]  # across the diagonal from (0, 0) to (1, 1)
    assert fold_overs(quad) == 1
    quad[1, 0] = [0.5, 0.5]  # on it: an empty triangle
    assert fold_overs(quad) == 1


def test_camvid():
    files = sorted((DATA / "camvid").glob("*annot/*.png"))
    if not files:
        pytest.skip(f"no CamVid at {DATA}; see tests/shared.py")
    assert len(files) == 468
    solver = SparseSolver(8, 8, 1)
    for file in files:
        labels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        labels[labels == 11] = 255
        phi = sampling_tensor(labels, (8, 8), 1)
        b = nearest_at_grid(labels, (8, 8)) / np.subtract(labels.shape, 1)
        np.testing.assert_allclose(phi, solver.solve(b), rtol=0, atol=1e-10, err_msg=file.name)
        assert_covers(phi)
        assert fold_overs(phi) == 0, file.name
