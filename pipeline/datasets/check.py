"""Whether a data set's files are what its description says: every file of a split is read."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fullres.pipeline.data.images import ImageError, read_image
from fullres.pipeline.datasets.dataset import Dataset
from fullres.pipeline.datasets.layout import Found, Frame


@dataclass(frozen=True)
class Check:
    """What a split's files hold.

    Attributes:
        frames: images with a label map, those with problems among them.
        problems: files without their counterpart, unreadable files, label ids that do not belong, sizes that
            differ between image and label map; a line each.
        sizes: images by (H, W) in pixels.
        pixels: K int64, pixels of each class.
        ignored: pixels without a class.
    """

    frames: int
    problems: list[str]
    sizes: Counter[tuple[int, int]]
    pixels: np.ndarray
    ignored: int

    @property
    def shares(self) -> np.ndarray:
        """Share of each class in the pixels that have one, K float64; zeros where none has."""
        return self.pixels / max(1, int(self.pixels.sum()))

    @property
    def ignored_share(self) -> float:
        """Share of the pixels without a class in all."""
        return self.ignored / max(1, int(self.pixels.sum()) + self.ignored)


def check_frames(dataset: Dataset, found: Found, progress: Callable[[], None]) -> Check:
    """Read every file of `found`, by several threads; `progress` is called after each frame."""
    problems = list(found.problems)
    sizes: Counter[tuple[int, int]] = Counter()
    counts = np.zeros(256, np.int64)

    def read(frame: Frame) -> tuple[list[str], tuple[int, int] | None, np.ndarray]:
        return _check(frame, dataset)

    with ThreadPoolExecutor() as threads:
        for wrong, size, pixels in threads.map(read, found.frames):
            problems += wrong
            sizes.update([size] if size else [])
            counts += pixels
            progress()
    ignored = int(counts[dataset.ignore_index])
    return Check(len(found.frames), problems, sizes, counts[: len(dataset.classes)], ignored)


def _check(frame: Frame, dataset: Dataset) -> tuple[list[str], tuple[int, int] | None, np.ndarray]:
    """A frame's problems, its image's size and its pixels by trainId."""
    problems, size, pixels = [], None, np.zeros(256, np.int64)
    try:
        image = read_image(frame.image)
        size = image.shape[:2]
    except ImageError as error:
        problems.append(str(error))
    try:
        labels = dataset.decode(frame.labels.read_bytes(), frame.labels)
    except OSError as error:
        return [*problems, f"{frame.labels}: {error.strerror}"], size, pixels
    except (ImageError, ValueError) as error:
        return [*problems, str(error)], size, pixels
    if size and labels.shape != size:
        (h, w), (image_h, image_w) = labels.shape, size
        problems.append(f"{frame.labels}: size {w}x{h} but {image_w}x{image_h} in {frame.image}")
    return problems, size, np.bincount(labels.ravel(), minlength=256)
