"""Pictures of label maps for people: class colours, those laid over the image, and several in one."""

from collections.abc import Sequence
from itertools import product

import cv2
import numpy as np


def colour(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paint a label map: HxW uint8 class ids to HxWx3 uint8 RGB; ids beyond the palette are black."""
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(palette), 0] = palette
    return cv2.applyColorMap(labels, table)  # keeps the table's channel order, RGB here


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], alpha: float = 0.5
) -> np.ndarray:
    """Lay class colours of weight `alpha` in [0, 1] over an HxWx3 uint8 RGB image of the same H and W."""
    return cv2.addWeighted(image, 1 - alpha, colour(labels, palette), alpha, 0)


def heat(image: np.ndarray, values: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Lay an HxW map of values in [0, 1], blue to red, with weight `alpha` over an HxWx3 uint8 RGB image."""
    colours = cv2.applyColorMap(np.rint(255 * values).astype(np.uint8), cv2.COLORMAP_JET)
    return cv2.addWeighted(image, 1 - alpha, cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), alpha, 0)


def dotted(picture: np.ndarray, phi: np.ndarray, colours: np.ndarray, width: float) -> np.ndarray:
    """An HxWx3 uint8 RGB picture with a square dot at each point of a sampling tensor, h x w x 2. colours:
    (3,) uint8, or h x w x 3 of each. `width`: of how far uniform points are apart; a pixel at the least."""
    painted = picture.copy()
    extent = np.array(picture.shape[:2]) - 1
    radius = int(min(extent / phi.shape[:2]) * width / 2)
    rows, columns = np.moveaxis(np.rint(phi.astype(np.float64) * extent).astype(np.intp), -1, 0)
    for down, across in product(range(-radius, radius + 1), repeat=2):
        painted[np.clip(rows + down, 0, extent[0]), np.clip(columns + across, 0, extent[1])] = colours
    return painted


def shrunk(picture: np.ndarray, longest: int) -> np.ndarray:
    """Of an HxWx3 uint8 picture at most so many pixels along its longer side."""
    factor = longest / max(picture.shape[:2])
    if factor >= 1:
        return picture
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def stacked(rows: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """HxWx3 uint8 pictures of any sizes, one below the other on white."""
    width = max(row.shape[1] for row in rows)
    white = (255, 255, 255)
    padded = [
        cv2.copyMakeBorder(row, 0, gap, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=white)
        for row in rows
    ]
    return np.vstack(padded)[:-gap]
