"""The objects that a data set's annotators drew: instance maps, files beside the label maps.

Their layout is Cityscapes': a PNG file of 16 bits, class * 1000 + n for pixels of the n-th object of a class,
from n = 0 on; below 1000 the class alone, for pixels of no single object: groups, classes without objects.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fullres.pipeline.data.images import decode_png_16, read_bytes
from fullres.pipeline.datasets.dataset import Dataset
from fullres.pipeline.datasets.pairs import FilesError

_OBJECTS = 1000  # of a class at most, and where values of objects begin


def instance_maps(labels: Sequence[Path], dataset: Dataset) -> list[Path] | None:
    """The instance map of each label map; None where there is none of any.

    Raises FilesError where some label maps have one and others do not: all of those are named.
    """
    found = [_beside(path, dataset) for path in labels]
    there = [path is not None and path.is_file() for path in found]
    if not any(there):
        return None
    lacking = [f"{label}: no instance map" for label, has in zip(labels, there, strict=True) if not has]
    if lacking:
        raise FilesError(f"instance maps of some frames alone ({len(lacking)} lack theirs):", lacking)
    return [path for path in found if path is not None]


def read_objects(path: str | Path, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The objects of an instance map: which one each pixel is of, HxW int32 from 1 on and 0 for none, and the
    trainId of each, N uint8. Objects of a class without a trainId are none.

    Raises:
        ImageError: not such a file, or damaged.
        ValueError: classes that the data set doesn't know.
    """
    values = decode_png_16(read_bytes(path), path, 2)
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=1 << 16))
    objects = present[present >= _OBJECTS]
    known = dataset.instances.classes if dataset.instances else {}
    if unknown := [value for value in objects.tolist() if value // _OBJECTS not in known]:
        raise ValueError(f"{path}: instance ids {unknown} are of no class of {dataset.name}")
    numbers, classes = np.zeros(1 << 16, np.int32), []
    for value in objects.tolist():
        train_id = known[value // _OBJECTS]
        if train_id is not None:
            classes.append(train_id)
            numbers[value] = len(classes)
    return numbers[values], np.array(classes, np.uint8)


def _beside(label: Path, dataset: Dataset) -> Path | None:
    """Where a label map's instance map would be; None where the data set has none for files so named."""
    ending = dataset.label_ending(label)
    instances = dataset.instances.endings if dataset.instances else {}
    if ending is None or ending not in instances:
        return None
    return label.with_name(f"{label.stem.removesuffix(ending)}{instances[ending]}.png")
