"""A data set's frames: which image and which label map belong together, found by name alone.

`match_frames` works on names under a root, wherever that is; `find_stored_frames` on disks and object stores,
`find_frames` and `local_frames` on local folders, whose names need not be UTF-8.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from zlib import crc32

from fullres.pipeline.data.files import files_below, text_lines
from fullres.pipeline.data.images import SUFFIXES
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets.dataset import Dataset, Split
from fullres.pipeline.datasets.pairs import LABEL_SUFFIXES, FilesError, label_maps


@dataclass(frozen=True)
class Frame:
    """An image and its label map. `key` names the frame in its data set, without endings and suffix."""

    image: Path
    labels: Path
    key: str


@dataclass(frozen=True)
class Found:
    """What there is of a split, sorted by key.

    Attributes:
        frames: with image and label map.
        images_without_labels: files.
        labels_without_image: files.
        missing: keys that a list file or the data set's description names, of which there is neither.
    """

    frames: list[Frame]
    images_without_labels: list[Path]
    labels_without_image: list[Path]
    missing: list[str]

    @property
    def problems(self) -> list[str]:
        """What lacks its counterpart, a line each."""
        return [
            *(f"{path}: no label map" for path in self.images_without_labels),
            *(f"{path}: no image" for path in self.labels_without_image),
            *(f"{key}: neither image nor label map" for key in self.missing),
        ]

    def __bool__(self) -> bool:
        return bool(self.frames or self.problems)

    def whole(self) -> list[Frame]:
        """The frames. Raises FilesError where files lack their counterpart; all are named."""
        if self.problems:
            raise FilesError(f"files without their counterpart ({len(self.problems)}):", self.problems)
        return self.frames


def local_frames(dataset: Dataset, root: str | Path, split: str) -> Found:
    """As `find_frames`. Raises FilesError where there is nothing of the split, too."""
    found = find_frames(dataset, root, split)
    if not found:
        raise nothing_found(dataset, root, split)
    return found


def find_frames(dataset: Dataset, root: str | Path, split: str) -> Found:
    """What there is of a split under the local folder `root`, with paths that start with it.

    Raises:
        ValueError: no such split.
        FilesError: no such folder, or two images of one frame.
    """
    root, where = Path(root), dataset.split(split)
    if not root.is_dir():
        raise FilesError(f"{root}: no such folder", [])
    names = [
        path.relative_to(root).as_posix()
        for pattern in (where.images, where.labels)
        for top in root.glob(pattern)
        for path in files_below(top)
    ]
    listed = None
    if where.lists is not None:
        listed = [
            line for path in sorted(root.glob(where.lists)) for line in list_lines(path, path.read_bytes())
        ]
    found = match_frames(dataset, split, names, listed)
    return Found(
        [replace(frame, image=root / frame.image, labels=root / frame.labels) for frame in found.frames],
        [root / path for path in found.images_without_labels],
        [root / path for path in found.labels_without_image],
        found.missing,
    )


def find_stored_frames(root: Storage, dataset: Dataset, split: str) -> Found:
    """What there is of a split below `root`, on a disk or in an object store, names relative to it.

    Raises ValueError for an unknown split, FilesError where there is nothing of it, OSError.
    """
    where = dataset.split(split)
    folders = {
        pattern.split("*")[0].rpartition("/")[0] for pattern in (f"{where.images}/", f"{where.labels}/")
    }
    names = {name for folder in folders for name in root.names(folder)}
    listed = None
    if where.lists is not None:
        lists = [
            n
            for n in root.names(str(PurePosixPath(where.lists).parent))
            if PurePosixPath(n).match(where.lists)
        ]
        listed = [line for name in lists for line in list_lines(name, root.read(name))]
    found = match_frames(dataset, split, names, listed)
    if not found:
        raise nothing_found(dataset, root.location, split)
    return found


def match_frames(
    dataset: Dataset, split: str, names: Iterable[str], listed: Iterable[str] | None = None
) -> Found:
    """What there is of a split among `names`, POSIX paths relative to a root; other files may be among them.

    Where a frame's labels are stored in two ways, the first of `dataset.encodings` counts.

    Args:
        listed: the lines of the files that match `Split.lists`, where a split has such. A line names a frame
            by its key, or by its image's path up to the first tab.

    Raises:
        ValueError: no such split.
        FilesError: two images of one frame.
    """
    where = dataset.split(split)
    files = sorted(name for name in names if not PurePosixPath(name).name.startswith("."))
    images: dict[str, Path] = {}
    for name, stem in _files_in(where.images, files, SUFFIXES):
        key = stem.removesuffix(dataset.image_ending)
        if key in images:
            raise FilesError("two images for one frame:", [str(images[key]), name])
        images[key] = Path(name)
    labels = label_maps(
        dataset, ((Path(n), stem) for n, stem in _files_in(where.labels, files, LABEL_SUFFIXES))
    )
    keys = _keys(where, dataset.image_ending, images.keys() | labels.keys(), listed)
    return Found(
        [Frame(images[key], labels[key], key) for key in keys if key in images and key in labels],
        [images[key] for key in keys if key in images and key not in labels],
        [labels[key] for key in keys if key in labels and key not in images],
        [key for key in keys if key not in images and key not in labels],
    )


def list_lines(path: object, data: bytes) -> list[str]:
    """The lines of a list of frames. Raises FilesError where it is no text."""
    try:
        return text_lines(data)
    except UnicodeDecodeError as error:
        raise FilesError(f"{path}: neither UTF-8 nor UTF-16 ({error})", []) from error


def nothing_found(dataset: Dataset, root: str | Path, split: str) -> FilesError:
    """The error that says where a split's files were looked for."""
    where = dataset.split(split)
    ending = next(iter(dataset.encodings))
    places = [f"images in {where.images}/", f"label maps in {where.labels}/ (*{ending}.png)"]
    if where.lists is not None:
        places.append(f"frames listed in {where.lists}")
    return FilesError(f"{root}: nothing of the split {split} of {dataset.name}: {', '.join(places)}", [])


def _keys(where: Split, image_ending: str, there: Iterable[str], listed: Iterable[str] | None) -> list[str]:
    if where.lists is not None:
        named = {line.split("\t")[0].strip() for line in listed or ()} - {""}
        stems = dict(_files_in(where.images, named, SUFFIXES))
        return sorted({stems.get(name, name).removesuffix(image_ending) for name in named})
    if where.keys:
        return sorted(where.keys) if set(where.keys) & set(there) else []
    if where.part is not None:
        there = sorted(there, key=lambda key: (crc32(os.fsencode(key)), key))[where.part]
    return sorted(there)


def _files_in(folder: str, names: Iterable[str], suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, stem) of the files in a folder; the stem is what stands for `*` and behind the folder, less
    suffix."""
    pattern = re.compile(re.escape(folder).replace(r"\*", "([^/]+)") + r"/(.+)(\.[^./]+)", re.DOTALL)
    matches = ((name, pattern.fullmatch(name)) for name in names)
    return [
        (name, "/".join(match.groups()[:-1]))
        for name, match in matches
        if match and match.groups()[-1].lower() in suffixes
    ]
