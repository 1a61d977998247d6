"""From scores at the points of a sampling tensor back to every pixel ("Learning Downsampling Near Semantic
Boundaries", Sec. 3.3).

"It preserves the grid topology. Thus, an efficient implementation can skip the triangulation step and use the
original grid structure": each quad of grid neighbours is cut into two triangles, and scores are linear inside
each. What the paper leaves open, and how it is here:

- The points are at phi * (size - 1) pixels, not at the pixels that Eq. 1 rounds them to: any size can be
  asked for, and points that are close stay apart.
- Of a quad's two diagonals it takes the one that the in-circle (Delaunay) test chooses. So the triangles are
  those of scipy's interpolation, unless quads are so thin that Delaunay's leave the grid. Where all four
  points are on a circle, as in every uniform tensor, the diagonal is the one from the top left.
- A sampling tensor may fold over itself. Triangles that are turned over are left out; where several others
  overlap, the last one counts, quads in row-major order.
- An axis of one pixel is taken for the first of two.

No pixel stays empty, for any tensor whose border is on the image's border. The spans that the triangles cut
out of a row of pixels form a chain from the first column to the last: where it runs backwards (triangles
turned over) it must run forwards once more. This holds to the last bit, because the two triangles at an edge
take its column from the same expression of the same two points. A row that meets points is taken to pass just
below them (the last row: just above), so that it always crosses two edges of a triangle or none.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fullres.ops.jit import jit

# Of the in-circle determinant over the squared diagonals: below it, four points are on one circle.
_COCIRCULAR = 1e-9

# Pixels whose scores `interpolate_tensor_labels` holds at a time.
_AT_ONCE = 1 << 17

_jit = jit(error_model="numpy")  # numpy's: no test for zero at every division


def interpolate_scores(scores: np.ndarray, phi: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sec. 3.3: scores of every pixel, linear in each triangle of grid points.

    Args:
        scores: (C, h, w) float32, those of grid point (i, j) at [:, i, j].
        phi: (h, w, 2) float, the sampling tensor, h and w at least 2.
        size: (H, W) of the result.

    Returns:
        (C, H, W) float32.

    Raises:
        ValueError: shapes that do not belong together; a tensor with less than 2 x 2 points, that leaves
            [0, 1] or whose border is not on the image's border (Eq. 3).
    """
    _check(scores, phi)
    y, x, corners = _triangles(np, phi.astype(np.float64), size)
    out = np.empty((len(scores), *size), np.float32)
    _fill_scores(_by_point(scores), y, x, corners, _last(size[0]), out)
    return out


def interpolate_labels(scores: np.ndarray, phi: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The class of the highest interpolated score of every pixel: `interpolate_scores(...).argmax(0)`.

    Scores of the pixels are never stored, and most are never computed: inside a triangle whose three points
    agree, no other class can win. The two functions can differ where scores are equal but for round-off.

    Args and Raises: as `interpolate_scores`, at most 256 classes. Returns (H, W) uint8.
    """
    _check(scores, phi)
    y, x, corners = _triangles(np, phi.astype(np.float64), size)
    out = np.empty(size, np.uint8)
    _fill_labels(_by_point(scores), y, x, corners, _last(size[0]), out)
    return out


def interpolate_tensor(scores: Tensor, phi: Tensor, size: tuple[int, int]) -> Tensor:
    """`interpolate_scores` for a batch on any device that has float64: the same triangles.

    Args:
        scores: (N, C, h, w) floating point. Gradients flow to it.
        phi: (N, h, w, 2) floating point on the same device. No gradient flows to it.
        size: (H, W) of the result.

    Returns:
        (N, C, H, W) of the scores' dtype, channels last in memory.

    Raises:
        ValueError: as `interpolate_scores`.
    """
    images = [_interpolate_one(*pair, size) for pair in zip(scores, phi.detach(), strict=True)]
    return torch.stack(images).permute(0, 3, 1, 2)


def interpolate_tensor_labels(scores: Tensor, phi: Tensor, size: tuple[int, int]) -> Tensor:
    """`interpolate_tensor(...).argmax(1)` on the same device, as (N, H, W) uint8; at most 256 classes.

    Scores of the pixels are never stored: they are computed and compared some rows' worth at a time.
    """
    images = []
    for image, grid in zip(scores.detach(), phi.detach(), strict=True):
        chunks = zip(*(part.split(_AT_ONCE) for part in _weighted(image, grid, size)), strict=True)
        table = _table(image)
        labels = [_blend(table, *chunk).argmax(1).to(torch.uint8) for chunk in chunks]
        images.append(torch.cat(labels).view(size))
    return torch.stack(images)


def _interpolate_one(scores: Tensor, phi: Tensor, size: tuple[int, int]) -> Tensor:
    weighted = _weighted(scores, phi, size)
    return _blend(_table(scores), *weighted).view(*size, -1)


def _weighted(scores: Tensor, phi: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    _check(scores, phi)
    return _locate(*_triangles(torch, phi.double(), size), size)


def _table(scores: Tensor) -> Tensor:
    """(h * w, C) of C x h x w scores, those of one point side by side."""
    return scores.flatten(1).T.contiguous()


def _blend(table: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Scores of a `_table` at pixels with these points and weights (`_locate`): pixels x C."""
    return F.embedding_bag(points, table, per_sample_weights=weights.to(table), mode="sum")


def _check(scores: Any, phi: Any) -> None:
    shape, grid = tuple(scores.shape), tuple(phi.shape)
    if len(shape) != 3 or grid != (*shape[1:], 2) or min(grid) < 2:
        raise ValueError(f"scores are {shape}, phi {grid}: C x h x w and h x w x 2, h and w at least 2")
    border = [(phi[0, :, 0], 0), (phi[-1, :, 0], 1), (phi[:, 0, 1], 0), (phi[:, -1, 1], 1)]
    if not all(bool((side == value).all()) for side, value in border):
        raise ValueError("phi leaves parts of the image uncovered: its border must be the image's (Eq. 3)")
    if not bool(((phi >= 0) & (phi <= 1)).all()):
        raise ValueError("phi leaves the image: it must be within [0, 1]")


def _last(length: int) -> int:
    return max(length - 1, 1)


def _triangles(xp: Any, phi: Any, size: tuple[int, int]) -> tuple[Any, Any, Any]:
    """The points' rows and columns in pixels, (h * w,) each, and which three each triangle has, clockwise:
    (2 (h - 1) (w - 1), 3), quads in row-major order. `xp` is numpy or torch, whichever `phi` is of.

    A quad is cut from its top left to its bottom right unless the other diagonal is Delaunay's: that is where
    the angles at the other two points add up to more than 180 degrees, so where the sine of their sum, which
    is the in-circle determinant, is negative.
    """
    y, x = phi[..., 0] * _last(size[0]), phi[..., 1] * _last(size[1])
    ay, by, cy, dy = y[:-1, :-1], y[:-1, 1:], y[1:, 1:], y[1:, :-1]  # clockwise from the top left
    ax, bx, cx, dx = x[:-1, :-1], x[:-1, 1:], x[1:, 1:], x[1:, :-1]
    cross_b = (cx - bx) * (ay - by) - (cy - by) * (ax - bx)
    cross_d = (ax - dx) * (cy - dy) - (ay - dy) * (cx - dx)
    dot_b = (cx - bx) * (ax - bx) + (cy - by) * (ay - by)
    dot_d = (ax - dx) * (cx - dx) + (ay - dy) * (cy - dy)
    scale = ((cx - ax) ** 2 + (cy - ay) ** 2) * ((dx - bx) ** 2 + (dy - by) ** 2)
    falling = cross_b * dot_d + cross_d * dot_b >= -_COCIRCULAR * scale
    point = xp.arange(y.shape[0] * y.shape[1], device=phi.device).reshape(y.shape)
    a, b, c, d = point[:-1, :-1], point[:-1, 1:], point[1:, 1:], point[1:, :-1]
    halves = [a, b, xp.where(falling, c, d), xp.where(falling, a, b), c, d]
    return y.reshape(-1), x.reshape(-1), xp.stack(halves, -1).reshape(-1, 3)


def _by_point(scores: np.ndarray) -> np.ndarray:
    """(h * w, C) float64: the scores of one point side by side."""
    return np.ascontiguousarray(scores.reshape(len(scores), -1).T, np.float64)


@_jit
def _rows(y, corners, last, height):
    """First and last + 1 row of pixels that crosses a triangle."""
    top = min(y[corners[0]], y[corners[1]], y[corners[2]])
    bottom = max(y[corners[0]], y[corners[1]], y[corners[2]])
    stop = last + 1 if top < last <= bottom else int(np.ceil(bottom))
    return int(np.ceil(top)), min(stop, height)


@_jit
def _span(y, x, corners, row, last):
    """Where a row crosses a triangle: the apex, which is the point alone on its side of the row; the other
    points of the left and of the right edge crossed; how far from the apex to these, and at which columns."""
    cut = float(row) if row < last else np.nextafter(float(last), 0.0)
    p, q, r = corners
    above_p, above_q, above_r = y[p] <= cut, y[q] <= cut, y[r] <= cut
    if above_p == above_q:
        apex, after, before, apex_above = r, p, q, above_r
    elif above_p == above_r:
        apex, after, before, apex_above = q, r, p, above_q
    else:
        apex, after, before, apex_above = p, q, r, above_p
    if apex_above:
        left_t, left_x = _cross(y, x, apex, before, row)
        right_t, right_x = _cross(y, x, apex, after, row)
        return apex, before, after, left_t, right_t, left_x, right_x
    left_t, left_x = _cross(y, x, after, apex, row)
    right_t, right_x = _cross(y, x, before, apex, row)
    return apex, after, before, 1 - left_t, 1 - right_t, left_x, right_x


@_jit
def _cross(y, x, upper, lower, row):
    """How far down an edge a row crosses it, and at which column."""
    t = (row - y[upper]) / (y[lower] - y[upper])
    return t, x[upper] + t * (x[lower] - x[upper])


@_jit
def _columns(left_x, right_x, width):
    """First and last + 1 pixel of a span, its ends included; none where the triangle is turned over."""
    return int(np.ceil(left_x)), min(int(np.floor(right_x)), width - 1) + 1


@_jit
def _along(column, left_x, right_x):
    return (column - left_x) / (right_x - left_x) if right_x > left_x else 0.0


@_jit
def _fill_scores(scores, y, x, triangles, last, out):
    classes, height, width = out.shape
    weights = np.empty(width)
    for p, q, r in triangles:
        corners = p, q, r
        start, stop = _rows(y, corners, last, height)
        for row in range(start, stop):
            apex, left, right, left_t, right_t, left_x, right_x = _span(y, x, corners, row, last)
            first, end = _columns(left_x, right_x, width)
            for column in range(first, end):
                weights[column] = _along(column, left_x, right_x)
            for k in range(classes):
                a = scores[apex, k] + left_t * (scores[left, k] - scores[apex, k])
                b = scores[apex, k] + right_t * (scores[right, k] - scores[apex, k])
                for column in range(first, end):
                    out[k, row, column] = a + weights[column] * (b - a)


@_jit
def _fill_labels(scores, y, x, triangles, last, out):
    height, width = out.shape
    points, classes = scores.shape
    best = np.empty(points, np.uint8)
    for point in range(points):
        best[point] = np.argmax(scores[point])
    candidates = np.empty(classes, np.int64)
    at_left, at_right = np.empty(classes), np.empty(classes)
    for p, q, r in triangles:
        corners = p, q, r
        label = best[corners[0]]
        agree = label == best[corners[1]] and label == best[corners[2]]
        count = 0 if agree else _candidates(scores, corners, candidates)
        start, stop = _rows(y, corners, last, height)
        for row in range(start, stop):
            apex, left, right, left_t, right_t, left_x, right_x = _span(y, x, corners, row, last)
            first, end = _columns(left_x, right_x, width)
            if agree:
                out[row, first:end] = label
                continue
            for n in range(count):
                k = candidates[n]
                at_left[n] = scores[apex, k] + left_t * (scores[left, k] - scores[apex, k])
                at_right[n] = scores[apex, k] + right_t * (scores[right, k] - scores[apex, k])
            for column in range(first, end):
                weight = _along(column, left_x, right_x)
                highest, winner = -np.inf, 0
                for n in range(count):
                    score = at_left[n] + weight * (at_right[n] - at_left[n])
                    if score > highest:
                        highest, winner = score, candidates[n]
                out[row, column] = winner


@_jit
def _candidates(scores, corners, candidates):
    """The classes that may win somewhere in a triangle, ascending, into `candidates`; returns how many. One
    whose highest score of the three points is below another's lowest cannot."""
    p, q, r = corners
    floor = -np.inf
    for k in range(scores.shape[1]):
        floor = max(floor, min(scores[p, k], scores[q, k], scores[r, k]))
    count = 0
    for k in range(scores.shape[1]):
        if max(scores[p, k], scores[q, k], scores[r, k]) >= floor:
            candidates[count] = k
            count += 1
    return count


def _locate(y: Tensor, x: Tensor, corners: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """For every pixel the three points of its triangle, (H * W, 3) int32, and their weights, float64:
    `_fill_scores` for all triangles at once."""
    height, width = size
    last = _last(height)
    top, bottom = y[corners].aminmax(dim=1)
    start = top.ceil().long()
    stop = torch.where((top < last) & (bottom == last), last + 1, bottom.ceil().long()).clamp(max=height)
    triangle, row = _ranges(start, stop)
    cut = row.double()
    cut[row == last] = np.nextafter(float(last), 0.0)

    corners = corners[triangle]
    above = y[corners] <= cut[:, None]
    alone = torch.where(above[:, 0] == above[:, 1], 2, torch.where(above[:, 0] == above[:, 2], 1, 0))[:, None]
    apex, after, before = corners.gather(1, (alone + torch.arange(3, device=y.device)) % 3).unbind(1)
    apex_above = above.gather(1, alone)[:, 0]
    left, right = torch.where(apex_above, before, after), torch.where(apex_above, after, before)
    ends = []
    for other in (left, right):
        high, low = torch.where(apex_above, apex, other), torch.where(apex_above, other, apex)
        t = (row - y[high]) / (y[low] - y[high])
        ends.append((torch.where(apex_above, t, 1 - t), x[high] + t * (x[low] - x[high])))
    (left_t, left_x), (right_t, right_x) = ends

    span, column = _ranges(left_x.ceil().long(), right_x.floor().long().clamp(max=width - 1) + 1)
    # Spans are in the order of their triangles: of several on a pixel the last counts.
    chosen = torch.zeros(height * width, dtype=torch.long, device=y.device)
    chosen.scatter_reduce_(0, row[span] * width + column, span, "amax")
    column = torch.arange(width, device=y.device).repeat(height)
    left_x, right_x = left_x[chosen], right_x[chosen]
    along = torch.where(right_x > left_x, (column - left_x) / (right_x - left_x), 0)
    of_left, of_right = (1 - along) * left_t[chosen], along * right_t[chosen]
    points = torch.stack([apex, left, right], 1).int()[chosen]
    return points, torch.stack([1 - of_left - of_right, of_left, of_right], 1)


def _ranges(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of all ranges one after another, and of which range each is; both int64."""
    length = (stop - start).clamp(min=0)
    owner = torch.repeat_interleave(length)
    first = length.cumsum(0) - length
    return owner, torch.arange(len(owner), device=start.device) - (first - start)[owner]
