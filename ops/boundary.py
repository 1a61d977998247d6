"""Semantic boundaries of a label map, and the band around them ("Efficient Segmentation: Learning
Downsampling Near Semantic Boundaries", Sec. 3.1 and 4.3)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fullres.ops.jit import jit

WIDEST = 10_000  # pixels: the squares of distances stay in 32 bits


def boundary_map(
    labels: np.ndarray, ignore_index: int = 255, target_classes: Sequence[int] | None = None
) -> np.ndarray:
    """Sec. 3.1: the pixels that differ from any of their 4 neighbours, HxW bool, of labels HxW uint8.

    Both sides of an edge belong to it. Ignored pixels never do, nor do those of other classes where target
    classes are given; but a counted pixel beside one of them does.
    """
    boundary = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    boundary[1:] |= down
    boundary[:-1] |= down
    boundary[:, 1:] |= right
    boundary[:, :-1] |= right
    return boundary & counted_classes(ignore_index, target_classes)[labels]


def counted_classes(ignore_index: int, target_classes: Sequence[int] | None) -> np.ndarray:
    """Whether pixels of each label 0..255 can be boundary pixels, 256 bool."""
    counted = np.full(256, target_classes is None)
    if target_classes is not None:
        counted[list(target_classes)] = True
    counted[ignore_index] = False
    return counted


def check_widths(widths: Sequence[int]) -> None:
    """Raise ValueError unless these are widths of bands: 1 to `WIDEST` pixels, each wider than the last."""
    if any(a >= b for a, b in pairwise((0, *widths))) or max(widths, default=0) > WIDEST:
        given = ",".join(map(str, widths))
        raise ValueError(f"widths are {given}: 1 to {WIDEST} pixels, each wider than the one before")


def trimap_rings(boundary: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Sec. 4.3: of each pixel the narrowest band around the boundary that holds it; `boundary` is HxW bool.

    A band (trimap) of width w holds the pixels less than w from the nearest boundary pixel. Distances are
    Euclidean, between the centres of pixels, and exact. Boundary pixels lie on both sides of an edge, so a
    band has w pixels on each side of a straight edge, and that of width 1 is the boundary map itself. The
    paper leaves open whether its widths are of one side or of both.

    Args:
        widths: in pixels, increasing. Time grows with the widest one.

    Returns:
        HxW uint16, the index of that band in `widths`; their number for pixels in none.

    Raises:
        ValueError: as `check_widths`.
    """
    check_widths(widths)
    rings = np.full(boundary.shape, len(widths), np.uint16)
    if widths and boundary.any():
        _fill_rings(np.ascontiguousarray(boundary), np.square(np.array(widths, np.int32)), rings)
    return rings


@jit(nogil=True)
def _fill_rings(boundary, squares, rings):
    """Lower the rings of the pixels within reach. Squared distances are whole numbers, and nothing beyond the
    widest band needs to be known: down the columns first, then along the rows."""
    height, width = boundary.shape
    reach = np.int32(np.ceil(np.sqrt(squares[-1])))
    rows_off = np.empty((height, width), np.int16)  # to the column's nearest boundary pixel, `reach` at most
    above = np.full(width, reach, np.int16)
    for r in range(height):
        for c in range(width):
            above[c] = 0 if boundary[r, c] else min(above[c] + 1, reach)
        rows_off[r] = above
    below = np.full(width, reach, np.int16)
    for r in range(height - 1, -1, -1):
        for c in range(width):
            below[c] = min(below[c] + 1, rows_off[r, c])
        rows_off[r] = below
    padded = np.full(width + 2 * reach, squares[-1], np.int32)
    nearest = np.empty(width, np.int32)
    for r in range(height):
        row = padded[reach : reach + width]
        for c in range(width):
            row[c] = np.int32(rows_off[r, c]) * np.int32(rows_off[r, c])
        if row.min() >= squares[-1]:
            continue
        nearest[:] = row
        for d in range(1, min(reach, width)):
            left, right, square = padded[reach - d :], padded[reach + d :], np.int32(d * d)
            for c in range(width):
                nearest[c] = min(nearest[c], min(left[c], right[c]) + square)
        for c in range(width):
            ring = squares.size
            while ring > 0 and nearest[c] < squares[ring - 1]:
                ring -= 1
            rings[r, c] = ring
