"""The augmentation of training: a sample's crop, changed at random as a configuration says.

Images are H x W x 3 uint8 RGB, label maps H x W uint8. All randomness comes from the generator given.
"""

import cv2
import numpy as np

from fullres.ops.normalisation import MEAN
from fullres.pipeline.train.config import Augmentation

Pair = tuple[np.ndarray, np.ndarray]
_MEAN_COLOUR = tuple(round(value) for value in MEAN)
_GREY = np.array((0.299, 0.587, 0.114))  # of red, green and blue, as OpenCV


def augmented(
    image: np.ndarray,
    labels: np.ndarray,
    how: Augmentation,
    crop: tuple[int, int],
    ignore_index: int,
    rng: np.random.Generator,
    around: tuple[int, int] | None = None,
) -> Pair:
    """A crop of `crop` (h, w) pixels: scaled, rotated, cut out, mirrored, blurred, coloured and given noise
    in this order. Where the image does not reach it has the mean colour and ignored labels.

    around: a pixel (y, x) of the image that the crop covers, at a place of its own drawn evenly.
    """
    point = np.array((0.0, 0.0) if around is None else around) + 0.5
    image, labels, point = _scaled(image, labels, point, how, rng)
    image, labels, point = _rotated(image, labels, point, how, ignore_index, rng)
    image, labels = _cropped(image, labels, crop, ignore_index, rng, None if around is None else point)
    if how.mirror and rng.random() < 0.5:
        image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
    if how.blur is not None and rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*how.blur))
    if any(how.colour):
        image = coloured(image, *_factors(how.colour, rng))
    if how.salt_and_pepper:
        image = _with_noise(image, how.salt_and_pepper, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def _with_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """That share of the pixels black or white, as many of both."""
    drawn = rng.random(image.shape[:2], np.float32)
    noisy, places = image.copy(), np.flatnonzero(drawn < share)
    noisy.reshape(-1, 3)[places] = np.where(drawn.ravel()[places] < share / 2, 0, 255)[:, None]
    return noisy


def _scaled(
    image: np.ndarray, labels: np.ndarray, point: np.ndarray, how: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    least, most = how.scale
    if how.scale_step:
        steps = int((most - least) / how.scale_step + 1e-9)  # a step may not add up to the last bit
        factor = least + how.scale_step * int(rng.integers(steps + 1))
    else:
        factor = rng.uniform(least, most)
    before = labels.shape
    size = tuple(max(1, round(side * factor)) for side in before)
    if size == before:
        return image, labels, point
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return image, labels, point * size / before


def _rotated(
    image: np.ndarray,
    labels: np.ndarray,
    point: np.ndarray,
    how: Augmentation,
    ignore_index: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not how.rotation or rng.random() < 0.5:
        return image, labels, point
    h, w = labels.shape
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), rng.uniform(-how.rotation, how.rotation), 1)
    turned = cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=_MEAN_COLOUR)
    places = cv2.warpAffine(labels, matrix, (w, h), flags=cv2.INTER_NEAREST, borderValue=ignore_index)
    x, y = matrix @ (point[1] - 0.5, point[0] - 0.5, 1)
    return turned, places, np.array((y + 0.5, x + 0.5))


def _cropped(
    image: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    ignore_index: int,
    rng: np.random.Generator,
    point: np.ndarray | None,
) -> Pair:
    missing = [max(0, side - there) for side, there in zip(size, labels.shape, strict=True)]
    if any(missing):
        below, right = missing
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=_MEAN_COLOUR)
        labels = cv2.copyMakeBorder(labels, 0, below, 0, right, cv2.BORDER_CONSTANT, value=ignore_index)
    first, last = [0, 0], [there - side for side, there in zip(size, labels.shape, strict=True)]
    if point is not None:
        inside = [int(np.clip(p, 0, there - 1)) for p, there in zip(point, labels.shape, strict=True)]
        first = [max(0, p - side + 1) for p, side in zip(inside, size, strict=True)]
        last = [min(p, end) for p, end in zip(inside, last, strict=True)]
        first = [min(a, b) for a, b in zip(first, last, strict=True)]
    y, x = (rng.integers(a, b + 1) for a, b in zip(first, last, strict=True))
    return image[y : y + size[0], x : x + size[1]], labels[y : y + size[0], x : x + size[1]]


def _factors(
    colour: tuple[float, float, float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    brightness, contrast, saturation, hue = (rng.uniform(-most, most) for most in colour)
    return 1 + brightness, 1 + contrast, 1 + saturation, hue


def coloured(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """`image` times `brightness`; its distance from its mean grey times `contrast`, that of each pixel from
    its own grey times `saturation`; its hues moved by `hue` of the colour circle. Each step is cut to 0..255.
    """
    image = np.ascontiguousarray(image)
    # The first two steps are the same for all pixels of a level: a table of 256 says them.
    level = np.clip(np.arange(256) * brightness, 0, 255)
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    mean = _GREY @ (counts @ level) / image[..., 0].size
    level = np.clip(mean + (level - mean) * contrast, 0, 255)
    if saturation == 1 and not hue:
        return cv2.LUT(image, np.rint(level).astype(np.uint8))
    x = cv2.LUT(image, level.astype(np.float32))
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    x = np.clip(grey + (x - grey) * saturation, 0, 255)
    if hue:
        hsv = cv2.cvtColor(x / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + hue * 360) % 360
        x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    return np.rint(x).astype(np.uint8)
