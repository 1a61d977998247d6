"""Pictures of training targets for people: what `fullres targets show` writes. All H x W x 3 uint8 RGB."""

from collections.abc import Sequence

import cv2
import numpy as np

from fullres.pipeline.data.pictures import colour

_RED, _WHITE = (255, 0, 0), (255, 255, 255)
_TILE = 320  # pixels, the longer side of one channel in a sheet


def boundary_picture(
    labels: np.ndarray, boundary: np.ndarray, palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """The label map (H x W uint8) in its colours, darkened, with its boundary (H x W, true on it) in
    white."""
    picture = colour(labels, palette) // 2
    picture[boundary.astype(bool)] = _WHITE
    return picture


def grid_picture(image: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """The sampling tensor (h x w x 2, relative coordinates) as a net of red knots over the image."""
    picture = image.copy()
    size = np.array(image.shape[:2])
    knots = np.rint(phi * (size - 1)).astype(np.int32)[..., ::-1]  # x, y
    lines = [*knots, *knots.transpose(1, 0, 2)]
    cv2.polylines(picture, lines, isClosed=False, color=_WHITE, thickness=1, lineType=cv2.LINE_AA)
    radius = max(1, round(min(image.shape[:2]) / (6 * max(phi.shape[:2]))) // 2)
    for x, y in knots.reshape(-1, 2).tolist():
        cv2.circle(picture, (x, y), radius, _RED, thickness=-1, lineType=cv2.LINE_AA)
    return picture


def distance_picture(distance: np.ndarray) -> np.ndarray:
    """Distances (H x W float32) from near (dark) to far; without a boundary all is far."""
    known = np.isfinite(distance)
    farthest = distance[known].max(initial=0) or 1
    grey = np.where(known, np.sqrt(np.minimum(distance, farthest) / farthest), 1)
    return cv2.cvtColor(
        cv2.applyColorMap((255 * grey).astype(np.uint8), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB
    )


def probability_picture(probability: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class probabilities (C x h x w in [0, 1], the last the ignored share) as a sheet: a tile for each
    channel that is not zero everywhere, named."""
    names = [*classes, "ignored"][: len(probability)]
    height, width = probability.shape[1:]
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tiles = []
    for name, channel in zip(names, probability, strict=True):
        if channel.any():
            grey = cv2.resize((255 * channel).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            tile = cv2.copyMakeBorder(grey, 18, 2, 2, 2, cv2.BORDER_CONSTANT, value=64)
            tiles.append(
                cv2.putText(tile, name, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 255, 1, cv2.LINE_AA)
            )
    columns = int(np.ceil(np.sqrt(len(tiles))))
    tiles += [np.full_like(tiles[0], 64)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return cv2.cvtColor(np.vstack(rows), cv2.COLOR_GRAY2RGB)
