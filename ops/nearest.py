"""The nearest boundary pixel, b(u) of "Efficient Segmentation: Learning Downsampling Near Semantic
Boundaries", Sec. 3.1: of every pixel (`nearest_boundary`), or of a grid's points only and straight from
labels (`nearest_at_grid`). Both are exact and agree.

**Metric.** The paper measures in [0, 1]^2 ("unit": a step down is 1 / (H - 1), a step right 1 / (W - 1)); its
author's code in pixels ("pixels", the default). On images of 2:1 half the nearest pixels differ.

**Ties.** Of a column's pixels that are equally near the upper one is taken, and then, of all columns' the
leftmost: a distance transform down the columns, then along the rows, as scipy's.

**How the grid's points are done.** `_sweep` reads the labels once. Of every column it keeps the last
boundary row at or above each grid row and the first one at or below. What remains is, for each point of a
grid row, the least of vertical^2 + horizontal^2 over all columns; `_search` looks at columns by blocks,
outwards from the point, until the horizontal part alone is too much. Squared distances are whole numbers:
nothing is rounded.
"""

from collections.abc import Sequence
from math import gcd
from typing import Literal

import numpy as np
from scipy.ndimage import distance_transform_edt

from fullres.ops.boundary import counted_classes
from fullres.ops.jit import jit

Metric = Literal["pixels", "unit"]

_BLOCK = 64  # columns looked at together: one vector of bytes in AVX-512, two in AVX2
_WORDS = _BLOCK // 8
_FAR = np.int32(1 << 30)  # rows to a boundary that isn't there
_NEVER = np.int64(1 << 62)  # the square of a distance to it


def nearest_boundary(boundary: np.ndarray, metric: Metric = "pixels") -> tuple[np.ndarray, np.ndarray]:
    """Sec. 3.1: every pixel's nearest boundary pixel, of a boundary map HxW bool.

    Returns its row and column, HxWx2 int32, and the distance in units of the metric, HxW float32.

    scipy compares products of whole numbers in float64. In pixels they fit it; in the unit metric of large
    images they round to one part in 10^16, which has not been seen to matter.

    Raises:
        ValueError: no boundary pixel at all; an unknown metric.
    """
    if not boundary.any():
        raise ValueError("the boundary map has no boundary pixel: none is nearest")
    down, right = _steps(boundary.shape, metric)
    distance, indices = distance_transform_edt(~boundary, sampling=(down, right), return_indices=True)
    if metric == "unit":
        distance *= 1 / (down * max(boundary.shape[0] - 1, 1))
    return np.moveaxis(indices, 0, 2), distance.astype(np.float32)


def nearest_at_grid(
    labels: np.ndarray,
    grid: tuple[int, int],
    ignore_index: int = 255,
    target_classes: Sequence[int] | None = None,
    metric: Metric = "pixels",
) -> np.ndarray | None:
    """Sec. 3.1: b(u_ij), the nearest boundary pixel of each point of a uniform h x w grid.

    A grid point stands for the pixel closest to it, as in Eq. 1 (see `grid_lines`), and what is nearest is
    nearest to that pixel: "for each pixel we compute the closest pixel on the boundary". So this equals
    `nearest_boundary` of `boundary_map(labels, ignore_index, target_classes)` at the grid's pixels.

    Args:
        labels: HxW uint8.
        grid: h and w, at least 2 each.

    Returns:
        Rows and columns, h x w x 2 int32; None where the labels have no boundary.

    Raises:
        ValueError: h or w below 2; an unknown metric.
    """
    check_grid(*grid)
    height, width = labels.shape
    rows, columns = grid_lines(height, grid[0]), grid_lines(width, grid[1])
    down, right = _steps((height, width), metric)
    counted = counted_classes(ignore_index, target_classes)
    above, below = _sweep(
        np.ascontiguousarray(labels), np.uint8(ignore_index), counted, target_classes is not None, rows
    )
    if above[-1].max() < 0:
        return None
    return _search(above, below, rows, columns, down * down, right * right)


def grid_lines(length: int, points: int) -> np.ndarray:
    """The pixels that a uniform grid's points stand for along an axis of `length` pixels, `points` int64.

    Point i lies at i (length - 1) / (points - 1) pixels, which is rounded to the nearest pixel, halves to the
    even one.
    """
    return np.rint(np.arange(points) * (length - 1) / (points - 1)).astype(np.int64)


def check_grid(h: int, w: int) -> None:
    """Raise ValueError unless h x w points span an image: at least 2 along each axis."""
    if h < 2 or w < 2:
        raise ValueError(f"a grid of {h}x{w} points: at least 2x2 are needed")


def _steps(shape: tuple[int, ...], metric: Metric) -> tuple[int, int]:
    """A step down and one right in whole numbers, up to a common factor of both."""
    if metric == "pixels":
        return 1, 1
    if metric == "unit":
        # 1 / (H - 1) and 1 / (W - 1) times what makes both whole; an axis of one pixel has no steps
        height, width = max(shape[0] - 1, 1), max(shape[1] - 1, 1)
        return width // gcd(height, width), height // gcd(height, width)
    raise ValueError(f"metric is {metric!r}: 'pixels' or 'unit'")


@jit(nogil=True)
def _sweep(labels, ignored, counted, targeted, rows):
    """Boundary rows about each grid row: above[k, c], the last one of column c up to rows[k], or -_FAR; and
    below[k, c], the first one from rows[k] on but before the next grid row, or _FAR.

    Columns are padded to whole blocks, so that each loop over a block has a fixed length and becomes a few
    vector operations. `edge` holds one row of the boundary map; most of its blocks are empty and are skipped.
    """
    height, width = labels.shape
    padded = (width + _BLOCK - 1) // _BLOCK * _BLOCK
    edge = np.zeros(padded, np.uint8)
    words = edge.view(np.uint64)
    last = np.full(padded, -_FAR, np.int32)
    above = np.empty((rows.size, padded), np.int32)
    below = np.full((rows.size, padded), _FAR, np.int32)
    reached = 0  # grid rows before this one are done
    begun = 0  # the last grid row at or above this row; several can be one row where the grid is the finer
    for row in range(height):
        here, up, down = labels[row], labels[max(row - 1, 0)], labels[min(row + 1, height - 1)]
        _mark_edges(here, up, down, ignored, edge)
        while begun + 1 < rows.size and rows[begun + 1] <= row:
            begun += 1
        for block in range(words.size // _WORDS):
            eights = words[block * _WORDS : (block + 1) * _WORDS]
            any_edge = np.uint64(0)
            for i in range(_WORDS):  # a fixed length here too
                any_edge |= eights[i]
            if any_edge == 0:
                continue
            start, stop = block * _BLOCK, (block + 1) * _BLOCK
            edges = edge[start:stop]
            if targeted:
                for c in range(min(_BLOCK, width - start)):
                    edges[c] *= counted[here[start + c]]
            _note_row(np.int32(row), edges, last[start:stop], below[begun, start:stop])
        while reached < rows.size and rows[reached] == row:
            above[reached] = last
            reached += 1
    return above, below


@jit(nogil=True, inline="always")  # a call for each row would cost a third of it
def _mark_edges(here, up, down, ignored, edge):
    """edge[c] isn't 0 where pixel c of a row differs from any neighbour and isn't ignored. At the image's
    margin `up` or `down` is the row itself."""
    end = here.size - 1
    for c in range(1, end):
        pixel = here[c]
        differs = (pixel ^ here[c - 1]) | (pixel ^ here[c + 1]) | (pixel ^ up[c]) | (pixel ^ down[c])
        edge[c] = differs if pixel != ignored else 0
    for c, beside in ((0, min(1, end)), (end, max(end - 1, 0))):
        pixel = here[c]
        differs = (pixel ^ here[beside]) | (pixel ^ up[c]) | (pixel ^ down[c])
        edge[c] = differs if pixel != ignored else 0


@jit(nogil=True)
def _note_row(row, edges, last, first):
    """Where a block of a row has boundary pixels: it is the columns' last boundary row so far, and their
    first one if they have none yet."""
    for c in range(_BLOCK):
        is_edge = edges[c] != 0
        last[c] = row if is_edge else last[c]
        first[c] = min(first[c], row if is_edge else _FAR)


@jit(nogil=True)
def _search(above, below, rows, columns, down, right):
    """The nearest boundary pixel of every grid point, h x w x 2 int32, from `_sweep`'s two answers.
    `down` and `right` are the squares of a step."""
    padded = above.shape[1]
    first = np.full(padded, _FAR, np.int32)
    site = np.empty(padded, np.int32)  # of each column, the boundary row nearest to the grid row
    vertical = np.empty(padded, np.int64)  # and the square of its distance
    least = np.empty(padded // _BLOCK, np.int64)  # the least of them in each block
    offsets = np.arange(-padded, padded)
    horizontal = right * offsets * offsets  # of column c from column j: [padded + c - j]
    nearest = np.empty((rows.size, columns.size, 2), np.int32)
    for k in range(rows.size - 1, -1, -1):
        _nearest_in_columns(np.int32(rows[k]), above[k], below[k], first, site, vertical, down)
        for block in range(least.size):
            least[block] = vertical[block * _BLOCK : (block + 1) * _BLOCK].min()
        for j in range(columns.size):
            c = _nearest_column(columns[j], vertical, least, horizontal)
            nearest[k, j, 0] = site[c]
            nearest[k, j, 1] = c
    return nearest


@jit(nogil=True)
def _nearest_in_columns(row, above, below, first, site, vertical, down):
    """Of each column the boundary row nearest to `row`, the upper one of two. `first` is the first boundary
    row from the next grid row on, and then from this one on."""
    for c in range(site.size):
        first[c] = min(first[c], below[c])
        up, low = row - above[c], first[c] - row
        site[c] = above[c] if up <= low else first[c]
        rows = np.int64(min(up, low))
        vertical[c] = down * rows * rows if rows < _FAR // 2 else _NEVER


@jit(nogil=True)
def _nearest_column(column, vertical, least, horizontal):
    """The leftmost column of least vertical + horizontal. `least` bounds a block from below: most blocks that
    are near enough are passed over all the same."""
    padded = vertical.size
    own = column // _BLOCK
    best, where = _NEVER, own
    for block in range(own, -1, -1):
        gap = horizontal[padded + min(block * _BLOCK + _BLOCK - 1 - column, 0)]
        if gap > best:
            break
        if least[block] + gap <= best:
            value = _least_of_block(block, column, vertical, horizontal)
            if value <= best:  # further left: it wins ties
                best, where = value, block
    for block in range(own + 1, least.size):
        gap = horizontal[padded + block * _BLOCK - column]
        if gap >= best:
            break
        if least[block] + gap < best:
            value = _least_of_block(block, column, vertical, horizontal)
            if value < best:
                best, where = value, block
    c = where * _BLOCK
    while vertical[c] + horizontal[padded + c - column] != best:
        c += 1
    return c


@jit(nogil=True)
def _least_of_block(block, column, vertical, horizontal):
    down = vertical[block * _BLOCK : (block + 1) * _BLOCK]
    start = vertical.size + block * _BLOCK - column
    right = horizontal[start : start + _BLOCK]
    value = _NEVER
    for c in range(_BLOCK):
        value = min(value, down[c] + right[c])
    return value
