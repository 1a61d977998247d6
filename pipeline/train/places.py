"""Where the classes of a training's label maps are, for samples that are drawn by class."""

import hashlib
import json
import zipfile

import numpy as np

from fullres.pipeline.data.storage import Storage
from fullres.pipeline.train.samples import Frames

_FILE = "class-places.npz"


def kept_places(frames: Frames, tile: int, out: Storage) -> list[np.ndarray]:
    """What `class_places` finds, from the file that an earlier run left in `out`, where it is of the same
    label maps; otherwise they are read, and the file is written. Raises what reading them raises, and
    OSError."""
    known = frames.known
    made_of = [tile, known.name, list(known.classes), known.ignore_index, frames.versions()]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    if (found := _read(out, digest)) is not None:
        return found
    places = class_places(frames, tile)
    with out.create(_FILE) as file:
        named = {str(i): rows for i, rows in enumerate(places)}
        np.savez(file, made_of=np.array(digest), **named)  # type: ignore[arg-type]  # numpy's stub is too narrow
    return places


def _read(out: Storage, digest: str) -> list[np.ndarray] | None:
    """None: not there, of other label maps, or damaged."""
    try:
        with out.fetch(_FILE) as file, np.load(file) as found:
            if found["made_of"] != digest:
                return None
            return [found[str(i)] for i in range(len(found.files) - 1)]
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def class_places(frames: Frames, tile: int) -> list[np.ndarray]:
    """By class that is there at all, where it is: rows of (image, y, x), int64, one for each `tile` x `tile`
    window of each image that has the class, of its pixel nearest to the mean place of the class in it."""
    found: list[list[tuple[int, int, int]]] = [[] for _ in frames.known.classes]
    for index in range(len(frames)):
        labels = frames.labels(index)
        for top in range(0, labels.shape[0], tile):
            for left in range(0, labels.shape[1], tile):
                window = labels[top : top + tile, left : left + tile]
                for class_id in np.unique(window):
                    if class_id == frames.known.ignore_index:
                        continue
                    at = np.argwhere(window == class_id)
                    y, x = at[((at - at.mean(0)) ** 2).sum(1).argmin()]
                    found[class_id].append((index, top + int(y), left + int(x)))
    return [np.array(places) for places in found if places]
