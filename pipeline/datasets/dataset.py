"""What one data set is: its classes, their colours, and what the values in its label files mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fullres.ops.relabel import pair_table, relabel
from fullres.pipeline.data.images import decode_labels, read_bytes

Encoding = Mapping[int, int | None]
_UNKNOWN = 254  # no trainId of any data set, nor its ignore_index
MAX_CLASSES = _UNKNOWN


@dataclass(frozen=True)
class Split:
    """Where a split's files lie under the data set's root; `layout.py` finds them.

    Attributes:
        images: folder of the images, searched recursively. `*` stands for the name of one folder.
        labels: the same of the label maps, with as many `*`.
        lists: files that name the split's frames, where others lie beside them in the folders; with `*`.
        part: where nobody published a split, which of the folders' frames in the order of their keys' CRC-32:
            as good as random, and the same everywhere. All where there is none.
        keys: those of the split's frames, where it is short enough to stand here.
    """

    images: str
    labels: str
    lists: str | None = None
    part: slice | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instances:
    """Files beside label maps that tell objects apart; `instances.py` says how and reads them.

    Attributes:
        endings: the end of a label file's name, as in `Dataset.encodings` -> what stands in its place in the
            name of the instance map.
        classes: the class stored -> trainId, or None to ignore.
    """

    endings: Mapping[str, str]
    classes: Encoding


@dataclass(frozen=True)
class Dataset:
    """A data set as the rest of the project sees it: trainIds 0..K-1, and `ignore_index` for no class.

    Attributes:
        name: as given to `--dataset`.
        classes: K names; the index is the trainId.
        palette: K RGB colours, 0..255.
        small_thin: names of the small and thin classes, whose mean IoU is given apart ("Split-Merge Pooling",
            Tables 3 and 4).
        splits: where the files of each split lie.
        train_size: (H, W) in pixels that the papers train at; None for the largest square of each image
            ("Learning Downsampling Near Semantic Boundaries", Sec. 4.1).
        encodings: how label files are stored: the end of the file's name without suffix -> (stored value ->
            trainId, or None to ignore). Where several fit a name, the first counts. "" fits every name.
        image_ending: what ends an image's name in the place of an encoding's ending.
        target_classes: names of the classes whose boundaries sampling goes for ("Learning Downsampling Near
            Semantic Boundaries", Sec. 3.1 and 4.2); all where none is named.
        instances: where its files tell objects apart; None where they do not, or are not read.
        decoder: from a label file's bytes, and its path for errors, to the HxW uint8 values stored.
        ignore_index: trainId of pixels that count for nothing.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    small_thin: tuple[str, ...]
    splits: Mapping[str, Split]
    train_size: tuple[int, int] | None
    encodings: Mapping[str, Encoding]
    image_ending: str = ""
    target_classes: tuple[str, ...] = ()
    instances: Instances | None = None
    decoder: Callable[[bytes, str | Path], np.ndarray] = decode_labels
    ignore_index: int = 255

    @property
    def small_thin_ids(self) -> tuple[int, ...]:
        """trainIds of the small and thin classes."""
        return tuple(self.classes.index(name) for name in self.small_thin)

    @property
    def target_ids(self) -> tuple[int, ...]:
        """trainIds of the classes whose boundaries sampling goes for."""
        return tuple(self.classes.index(name) for name in self.target_classes or self.classes)

    def split(self, name: str) -> Split:
        """The split of that name. Raises ValueError, and lists those there are."""
        if name not in self.splits:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(self.splits)}")
        return self.splits[name]

    def decode(self, data: bytes, path: str | Path) -> np.ndarray:
        """The HxW uint8 trainIds of the label file `path`, whose bytes are `data`.

        Raises:
            ImageError: not a label file, or damaged.
            ValueError: as `to_train_ids`.
        """
        return self.to_train_ids(self.decoder(data, path), path)

    def read(self, path: str | Path) -> np.ndarray:
        """As `decode`, of a local file."""
        return self.decode(read_bytes(path), path)

    def label_ending(self, path: str | Path) -> str | None:
        """The ending among `encodings` that fits a label file's name; None for a file of another kind."""
        stem = Path(path).stem
        return next((ending for ending in self.encodings if stem.endswith(ending)), None)

    def to_train_ids(self, stored: np.ndarray, path: str | Path) -> np.ndarray:
        """Turn the HxW uint8 values of the label file `path` into HxW uint8 trainIds; its name says how.

        Raises:
            ValueError: the name fits no encoding, or values that the encoding doesn't know.
        """
        ending = self.label_ending(path)
        if ending is None:
            endings = ", ".join(f"*{ending}" for ending in self.encodings)
            raise ValueError(f"{path}: label files of {self.name} are named {endings}")
        encoding = self.encodings[ending]
        train_ids = relabel(stored, self._tables[ending])
        if (train_ids == _UNKNOWN).any():
            unknown = [value for value in np.unique(stored).tolist() if value not in encoding]
            raise ValueError(f"{path}: label ids {unknown} don't belong to {self.name} ({_ranges(encoding)})")
        return train_ids

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        """By ending: the pair table of each stored value's trainId, `_UNKNOWN` where it does not belong."""
        tables = {}
        for ending, encoding in self.encodings.items():
            table = np.full(256, _UNKNOWN, np.uint8)
            for value, train_id in encoding.items():
                table[value] = self.ignore_index if train_id is None else train_id
            tables[ending] = pair_table(table)
        return tables


def train_id_encoding(num_classes: int, *ignored: int) -> Encoding:
    """trainIds stored as they are, and the values in `ignored` that mean no class."""
    return {**{i: i for i in range(num_classes)}, **dict.fromkeys(ignored)}


def _ranges(values: Encoding) -> str:
    """The values in short: "0..18, 255"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}..{b}" if a < b else str(a) for a, b in runs)
