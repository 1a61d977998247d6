"""Sampling tensors from labels: the minimum of Eq. 2 under the covering constraints, Eq. 3 ("Efficient
Segmentation: Learning Downsampling Near Semantic Boundaries", Sec. 3.1).

A sampling tensor phi is h x w x 2, in [0, 1]; component 0 is the row. phi minimises

    sum |phi_p - b_p|^2  +  lam * sum over neighbours p, q, each pair once, of weight_pq |phi_p - phi_q|^2

Neighbours are the 4 beside a point, as in the author's code; Eq. 2 as printed would join diagonals only.
`lam` counts steps of the grid: to smooth alike at another size, it must grow with (h - 1)^2.

The components are independent. Component 0 is fixed at 0 in the first row and at 1 in the last, and free at
the sides; component 1 likewise with columns for rows. Each value of the minimum is a weighted mean of values
of b and of fixed ones, so for b in [0, 1] the constraint to [0, 1] holds by itself, and what is left is a
linear system a component: `SparseSolver` takes any weights, `solve` the unit weights of the paper.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from fullres.ops.nearest import Metric, check_grid, nearest_at_grid


def uniform_tensor(h: int, w: int) -> np.ndarray:
    """u of Sec. 3: (i / (h - 1), j / (w - 1)), h x w x 2 float64. Raises ValueError if h or w is below 2."""
    check_grid(h, w)
    return np.stack(np.meshgrid(np.linspace(0, 1, h), np.linspace(0, 1, w), indexing="ij"), axis=-1)


def sampling_tensor(
    labels: np.ndarray,
    grid: tuple[int, int],
    lam: float,
    ignore_index: int = 255,
    target_classes: Sequence[int] | None = None,
    metric: Metric = "pixels",
) -> np.ndarray:
    """Sec. 3.1: the sampling tensor, h x w x 2 float64, that the labels HxW uint8 call for.

    Boundaries are those of `boundary_map`, b the nearest of their pixels as in `nearest_at_grid`, over
    (H - 1, W - 1). Labels without a boundary get the uniform tensor. Along an axis of one pixel b is 0.

    Raises:
        ValueError: h or w below 2; an unknown metric.
    """
    nearest = nearest_at_grid(labels, grid, ignore_index, target_classes, metric)
    if nearest is None:
        return uniform_tensor(*grid)
    return solve(nearest / np.maximum(np.subtract(labels.shape, 1), 1), lam)


def solve(b: np.ndarray, lam: float) -> np.ndarray:
    """The minimum for unit weights: phi, (..., h, w, 2) float64, of b of that shape in [0, 1].

    Exact: the sine transform (DST-I) along the fixed axis and the cosine transform (DCT-II) along the free
    one turn the system into a division. Raises ValueError if h or w is below 2.
    """
    h, w = b.shape[-3:-1]
    check_grid(h, w)
    phi = np.empty(b.shape)
    _solve_component(b[..., 0], lam, phi[..., 0])
    _solve_component(b[..., 1].swapaxes(-2, -1), lam, phi[..., 1].swapaxes(-2, -1))
    return np.clip(phi, 0, 1, out=phi)  # of rounding: some 1e-14


def _solve_component(b: np.ndarray, lam: float, phi: np.ndarray) -> None:
    """Write to `phi` (..., n, m) the component that is 0 in the first row and 1 in the last."""
    sine, cosine, stiffness = _transforms(*b.shape[-2:])
    phi[..., 0, :], phi[..., -1, :] = 0, 1
    inner = b[..., 1:-1, :].astype(np.float64, order="C")  # BLAS takes no stride between elements
    inner[..., -1:, :] += lam  # what the row of ones pulls
    spectrum = sine @ inner @ cosine.T
    spectrum /= 1 + lam * stiffness
    phi[..., 1:-1, :] = sine @ spectrum @ cosine


@lru_cache(maxsize=32)
def _transforms(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DST-I of n - 2 inner points and DCT-II of m points as orthonormal matrices, and the eigenvalues of the
    grid's Laplacian in their basis.

    As matrices, for up to some 256 points they are faster than scipy.fft: the lengths that matter, 2 (n - 1),
    often have a large prime factor.
    """
    p, q = np.arange(1, n - 1)[:, None], np.arange(m)
    sine = np.sqrt(2 / (n - 1)) * np.sin(np.pi * p * p.T / (n - 1))
    cosine = np.sqrt(2 / m) * np.cos(np.pi * q[:, None] * (q + 0.5) / m)
    cosine[0] /= np.sqrt(2)
    return sine, cosine, (2 - 2 * np.cos(np.pi * p / (n - 1))) + (2 - 2 * np.cos(np.pi * q / m))


class SparseSolver:
    """The minimum for any positive weights, as a sparse system that is factorised once.

    `edge_weights` are those of the vertical pairs, (h - 1) x w, and of the horizontal ones, h x (w - 1); all
    are 1 without them. Raises ValueError if h or w is below 2.
    """

    def __init__(
        self, h: int, w: int, lam: float, edge_weights: tuple[np.ndarray, np.ndarray] | None = None
    ) -> None:
        check_grid(h, w)
        vertical, horizontal = edge_weights or (np.ones((h - 1, w)), np.ones((h, w - 1)))
        differences = sparse.vstack(
            [
                sparse.kron(_difference(h), sparse.eye_array(w)),
                sparse.kron(sparse.eye_array(h), _difference(w)),
            ]
        )
        weights = sparse.diags_array(np.concatenate([vertical.ravel(), horizontal.ravel()]))
        matrix = sparse.csr_array(sparse.eye_array(h * w) + lam * differences.T @ weights @ differences)
        point = np.arange(h * w).reshape(h, w)
        self._shape = (h, w)
        self._components = [_Component(matrix, point), _Component(matrix, point.T)]

    def solve(self, b: np.ndarray) -> np.ndarray:
        """phi, (..., h, w, 2) float64, of b of that shape in [0, 1]: as many right-hand sides as it holds."""
        systems = b.reshape(-1, self._shape[0] * self._shape[1], 2)
        phi = np.stack([c.solve(systems[..., i].T).T for i, c in enumerate(self._components)], axis=-1)
        return np.clip(phi, 0, 1, out=phi).reshape(b.shape)


class _Component:
    """One component's system: `points` h x w are the indices of grid points, fixed at 0 in the first row and
    at 1 in the last."""

    def __init__(self, matrix: sparse.csr_array, points: np.ndarray) -> None:
        self._free, self._ones = points[1:-1].ravel(), points[-1]
        rows = matrix[self._free]
        self._pull = rows[:, self._ones].sum(axis=1)
        # the matrix is symmetric and positive definite: an ordering for such ones, and no pivoting
        self._factor = (
            splu(
                rows[:, self._free].tocsc(),
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0,
                options={"SymmetricMode": True},
            )
            if self._free.size
            else None
        )

    def solve(self, b: np.ndarray) -> np.ndarray:
        """(h w) x n of the same: n systems at once."""
        phi = np.zeros(b.shape)
        phi[self._ones] = 1
        if self._factor is not None:
            phi[self._free] = self._factor.solve(b[self._free] - self._pull[:, None])
        return phi


def _difference(n: int) -> sparse.dia_array:
    """(n - 1) x n: each element less the one before."""
    return sparse.diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))


def fold_overs(phi: np.ndarray) -> int:
    """How many triangles of the grid, of 2 (h - 1) (w - 1), are turned over or empty under phi, h x w x 2.

    Each quad is cut from its point (i, j) to (i + 1, j + 1). With none turned over phi keeps the grid's
    topology (Sec. 3.3), which Eq. 2 doesn't ensure; interpolation leaves no hole either way.
    """
    top_left, bottom_right = phi[:-1, :-1], phi[1:, 1:]
    diagonal = bottom_right - top_left
    below = _cross(phi[1:, :-1] - top_left, diagonal)
    above = _cross(diagonal, phi[:-1, 1:] - top_left)
    return int(np.count_nonzero(below <= 0) + np.count_nonzero(above <= 0))


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
