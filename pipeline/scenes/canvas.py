"""What a street scene is drawn with: a camera, a light, and a canvas whose image and labels share every mask.

World coordinates are metres: X to the right, Y up from the ground, Z away from the camera, which stands at
(0, height, 0). Colours are RGB in 0..255.
"""

from dataclasses import dataclass

import cv2
import numpy as np

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)

# Surfaces, each with its own noise: an object has texture without having to draw it.
PLAIN, PLASTER, CLOTH, LEAF, LEAF_FAR = range(5)

NEAREST = 1.2  # metres; what comes closer is drawn at this distance
SUBPIXEL = 3  # bits of fraction of cv2's coordinates


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along a road which bends by `bend` * Z^2 metres."""

    focal: float
    centre_x: float
    horizon: float
    height: float
    bend: float

    def project(self, points) -> np.ndarray:
        """World points (..., 3) to pixels (..., 2), x before y."""
        points = np.asarray(points, np.float64)
        depth = np.maximum(points[..., 2], NEAREST)
        x = self.centre_x + self.focal * (points[..., 0] / depth + self.bend * depth)
        y = self.horizon + self.focal * (self.height - points[..., 1]) / depth
        return np.stack([x, y], axis=-1)

    def scale(self, depth: float) -> float:
        """Pixels a metre."""
        return self.focal / max(depth, NEAREST)


@dataclass(frozen=True)
class Light:
    """The sun's direction (a unit vector to the sun), how much light comes from elsewhere, and the haze."""

    sun: np.ndarray
    ambient: float
    haze: np.ndarray
    visibility: float

    def on(self, normal) -> float:
        """Brightness of a surface with this unit normal."""
        return self.ambient + (1.1 - self.ambient) * max(0.0, float(np.dot(normal, self.sun)))

    def through_haze(self, colour, depth):
        """The colour, or an array of them, as seen from `depth` metres away."""
        clear = np.exp(-np.asarray(depth, np.float32) / self.visibility)
        return np.clip(colour, 0, 255) * clear + self.haze * (1 - clear)


class Canvas:
    """An image and its labels, drawn from far to near: what is drawn later hides what was there."""

    def __init__(self, height: int, width: int, camera: Camera, light: Light):
        self.image = np.zeros((height, width, 3), np.uint8)
        self.labels = np.full((height, width), SKY, np.uint8)
        self.surface = np.zeros((height, width), np.uint8)
        self.camera = camera
        self.light = light

    def fill(self, polygons, colour, label: int, depth: float, surface: int = PLAIN) -> None:
        """Fill polygons (each N x 2, pixels) that do not overlap one another."""
        contours = [_fixed(polygon) for polygon in polygons]
        tone = self._tone(colour, depth)
        for plane, value in ((self.image, tone), (self.labels, label), (self.surface, surface)):
            cv2.fillPoly(plane, contours, value, lineType=cv2.LINE_8, shift=SUBPIXEL)

    def quad(self, corners, colour, label: int, surface: int = PLAIN) -> None:
        """Fill one polygon given in the world (N x 3)."""
        corners = np.asarray(corners, np.float64)
        depth = float(np.maximum(corners[:, 2], NEAREST).mean())
        self.fill([self.camera.project(corners)], colour, label, depth, surface)

    def stroke(self, points, width: float, colour, label: int, depth: float, surface: int = PLAIN) -> None:
        """A line through pixels (N x 2), `width` pixels wide and never less than one."""
        tone, thickness = self._tone(colour, depth), max(1, round(width))
        contour = [_fixed(points)]
        for plane, value in ((self.image, tone), (self.labels, label), (self.surface, surface)):
            cv2.polylines(plane, contour, False, value, thickness, cv2.LINE_8, SUBPIXEL)

    def upright(self, x: float, top: float, bottom: float, width: float, colour, label: int, depth: float):
        """A vertical bar of exactly round(`width`) pixels, at least one, with a lit and a dark flank."""
        wide = max(1, round(width))
        left = round(x - wide / 2)
        rows = slice(max(0, round(top)), max(0, round(bottom)))
        for column in range(max(0, left), min(self.labels.shape[1], left + wide)):
            across = (column - left + 0.5) / wide * 2 - 1
            facing = self.light.on((across, 0.0, -np.sqrt(1 - across**2)))
            self.image[rows, column] = self._tone(np.asarray(colour) * facing, depth)
            self.labels[rows, column] = label
            self.surface[rows, column] = PLAIN

    def veil(self, polygon, colour, label: int, depth: float, opacity: float) -> None:
        """Label a polygon that one can see through: its colour is laid over what is behind."""
        height, width = self.labels.shape
        left, top = np.clip(np.floor(polygon.min(axis=0)).astype(int) - 1, 0, (width, height))
        right, bottom = np.clip(np.ceil(polygon.max(axis=0)).astype(int) + 2, 0, (width, height))
        if left >= right or top >= bottom:
            return
        window = np.s_[top:bottom, left:right]
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [_fixed(polygon - (left, top))], 1, lineType=cv2.LINE_8, shift=SUBPIXEL)
        inside = mask.astype(bool)
        behind = self.image[window][inside]
        self.image[window][inside] = behind * (1 - opacity) + np.array(self._tone(colour, depth)) * opacity
        self.labels[window][inside] = label
        self.surface[window][inside] = PLAIN

    def _tone(self, colour, depth: float) -> list[float]:
        return self.light.through_haze(colour, depth).round().tolist()


def _fixed(points) -> np.ndarray:
    # Far outside the picture the exact place no longer matters, and cv2 must not overflow.
    return np.round(np.clip(points, -20000, 20000) * (1 << SUBPIXEL)).astype(np.int32)


def noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise, float32 (height, width), about mean 0 and deviation 1, with bumps `cell` pixels wide."""
    coarse = (max(2, int(height / max(cell, 1))), max(2, int(width / max(cell, 1))))
    field = rng.standard_normal(coarse, dtype=np.float32)
    if coarse == (height, width):
        return field
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)


def photograph(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The canvas as a camera takes it, uint8 (H, W, 3): texture, uneven light, lens, exposure, JPEG."""
    height, width = canvas.labels.shape
    unit = height / 1024
    leaf = noise(rng, height, width, 4 * unit)
    coarse_leaf = noise(rng, height, width, 14 * unit)
    plaster = noise(rng, height, width, 40 * unit)
    textures = np.stack(
        [
            0.03 * plaster,
            0.04 * plaster + 0.04 * leaf,
            0.06 * leaf + 0.06 * coarse_leaf,
            0.22 * leaf + 0.20 * coarse_leaf,
            0.20 * leaf + 0.06 * coarse_leaf,
        ]
    )
    texture = np.take_along_axis(textures, canvas.surface[None], axis=0)[0]
    uneven = 1 + 0.06 * noise(rng, height, width, height / 3)
    image = canvas.image * ((1 + texture) * uneven)[..., None]

    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.8) * max(unit, 0.5))
    exposure = rng.uniform(0.6, 1.3) * rng.uniform(0.82, 1.18, size=3)
    contrast = rng.uniform(0.8, 1.2)
    image = (np.clip(image / 255 * exposure.astype(np.float32), 0, 1.2) ** contrast) * 255
    image += noise(rng, height, width, 1)[..., None] * rng.uniform(1.0, 5.0)
    image = np.clip(image, 0, 255).astype(np.uint8)
    quality = int(rng.integers(75, 97))
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # the order that cv2 codes
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
