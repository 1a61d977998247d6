"""Objects of label maps, and how much of each was found ("Efficient Segmentation: Learning Downsampling Near
Semantic Boundaries", Sec. 4.4).

An object map, HxW int32, numbers a label map's objects from 1; 0 is no object. Where nobody annotated
objects, connected pieces of a class stand for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fullres.ops.jit import jit


def check_bins(count: int) -> None:
    """Raise ValueError for less than one bin."""
    if count < 1:
        raise ValueError(f"{count} bins of objects: there must be 1 or more")


@dataclass(frozen=True)
class SizeBin:
    """Objects of about the same size. Areas are in pixels, None without objects; then the recall is nan."""

    objects: int
    smallest: int | None
    largest: int | None
    recall: float  # mean of theirs, in [0, 1]


@dataclass(frozen=True)
class Objects:
    """N objects of one or more label maps, in the order of maps and of numbers in each."""

    classes: np.ndarray  # N uint8
    areas: np.ndarray  # N int64, pixels
    hits: np.ndarray  # N int64, how many of them are predicted to be of the object's class

    def __len__(self) -> int:
        return self.classes.size

    def of_classes(self, ids: Sequence[int]) -> "Objects":
        """Those of some classes."""
        chosen = np.isin(self.classes, np.array(ids, np.uint8))
        return Objects(self.classes[chosen], self.areas[chosen], self.hits[chosen])

    def bins(self, count: int) -> list[SizeBin]:
        """Sec. 4.4, Fig. 12 and 14: the objects in bins of equal number by area, smallest first.

        An object's recall is the share of its pixels whose predicted class is right. Of equal areas the
        objects keep their order. Where `count` does not divide their number, the first bins have one more;
        with fewer objects than bins, the last bins are empty.

        Raises ValueError for less than one bin.
        """
        check_bins(count)
        order = np.argsort(self.areas, kind="stable")
        return [self._bin(chosen) for chosen in np.array_split(order, count)]

    def _bin(self, chosen: np.ndarray) -> SizeBin:
        if not chosen.size:
            return SizeBin(0, None, None, float("nan"))
        areas = self.areas[chosen]
        recall = float((self.hits[chosen] / areas).mean())
        return SizeBin(chosen.size, int(areas[0]), int(areas[-1]), recall)


def joined(several: Sequence[Objects]) -> Objects:
    """The objects of several label maps, in their order."""
    none = np.zeros(0, np.int64)
    parts = [Objects(none.astype(np.uint8), none, none), *several]
    return Objects(
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.areas for part in parts]),
        np.concatenate([part.hits for part in parts]),
    )


def found_objects(prediction: np.ndarray, objects: np.ndarray, classes: np.ndarray) -> Objects:
    """How much of each object of a label map was found.

    Args:
        prediction: class ids, HxW uint8.
        objects: object map, HxW int32, of 0..N; a number without pixels is left out.
        classes: class of each object, N uint8.

    Raises:
        ValueError: shapes that differ; numbers beyond N.
    """
    if prediction.shape != objects.shape:
        raise ValueError(f"prediction is {prediction.shape}, objects {objects.shape}: they must be alike")
    if objects.size and not 0 <= objects.min() <= objects.max() <= classes.size:
        raise ValueError(f"objects are {objects.min()}..{objects.max()}: 0..{classes.size} have a class")
    areas, hits = np.zeros((2, classes.size), np.int64)
    _count(prediction.ravel(), objects.ravel(), classes, areas, hits)
    there = areas > 0
    return Objects(classes[there], areas[there], hits[there])


@jit(nogil=True)
def _count(prediction, objects, classes, areas, hits):
    for i in range(objects.size):
        if objects[i]:
            number = objects[i] - 1
            areas[number] += 1
            hits[number] += prediction[i] == classes[number]


def connected_objects(labels: np.ndarray, class_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The connected pieces of some classes in a label map HxW uint8, as objects.

    Pixels are connected to all 8 around them: a slanting pole one pixel wide is one object, not a chain of
    pieces that would fill the bin of the smallest. Objects of one class that touch are one here, and one that
    is covered in part may be several.

    Returns:
        The object map, HxW int32, numbered in the order of the objects' first pixels, row by row; and the
        class of each object, N uint8.
    """
    counted = np.zeros(256, bool)
    counted[list(class_ids)] = True
    objects = np.empty(labels.shape, np.int32)
    firsts = _number_pieces(np.ascontiguousarray(labels), counted, objects)
    return objects, labels.ravel()[firsts]


@jit(nogil=True)
def _number_pieces(labels, counted, objects):
    """Number the pieces, and return each one's first pixel.

    First every pixel points to one of its piece before it, or to itself; `objects` holds those pointers. Then
    they are replaced by numbers, in the order of pixels: what a pixel points to has its number already.
    """
    height, width = labels.shape
    pointers = objects.ravel()
    for r in range(height):
        for c in range(width):
            here, i = labels[r, c], r * width + c
            pointers[i] = i if counted[here] else -1
            if not counted[here]:
                continue
            left = c > 0 and labels[r, c - 1] == here
            if r > 0 and labels[r - 1, c] == here:  # the others are connected to it already
                pointers[i] = pointers[i - width]
                continue
            if left:
                pointers[i] = pointers[i - 1]
            elif r > 0 and c > 0 and labels[r - 1, c - 1] == here:
                pointers[i] = pointers[i - width - 1]
            if r > 0 and c + 1 < width and labels[r - 1, c + 1] == here:
                _join(pointers, i, i - width + 1)
    count = 0
    firsts = np.empty(pointers.size, np.int32)
    for i in range(pointers.size):
        if pointers[i] < 0:
            pointers[i] = 0
        elif pointers[i] == i:
            firsts[count] = i
            count += 1
            pointers[i] = count
        else:
            pointers[i] = pointers[pointers[i]]
    return firsts[:count].copy()


@jit(nogil=True)
def _join(pointers, a, b):
    """Make one piece of those of two pixels: its first pixel is that of the piece that began first."""
    while pointers[a] != a:
        pointers[a] = pointers[pointers[a]]  # the way is half as long the next time
        a = pointers[a]
    while pointers[b] != b:
        pointers[b] = pointers[pointers[b]]
        b = pointers[b]
    pointers[max(a, b)] = min(a, b)
