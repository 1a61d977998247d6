"""Semantic boundaries of a label map, and the band around them ("Efficient Segmentation: Learning
Downsampling Near Semantic Boundaries", Sec. 3.1 and 4.3)."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt


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


def trimap_band(boundary: np.ndarray, width: float) -> np.ndarray:
    """Sec. 4.3: the pixels at most `width` pixels from the nearest boundary pixel, HxW bool, of one HxW bool.

    Distances are Euclidean, between the centres of pixels. The paper leaves open how a band's width is
    measured: here it is how far the band goes to each side, beyond the boundary pixels, which are the band of
    width 0. Without boundary pixels the band is empty. Pixels that are ignored may lie in it: they are the
    caller's to leave out.
    """
    if not boundary.any():
        return np.zeros(boundary.shape, bool)
    return distance_transform_edt(~boundary) <= width
