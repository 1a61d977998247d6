"""The samples of a training: each is a function of the seed and its number in the whole training.

Sample number `step * batch_size + place` is of one image and one random generator, whoever reads it and on
however many workers. Numbers 0 to n-1 of n images are the first epoch, each image once in an order of its
own, the next n the second.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fullres.pipeline.data.images import ImageError, decode_image, list_images, read_bytes
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets.layout import Frame, find_stored_frames, local_frames
from fullres.pipeline.datasets.pairs import FilesError, pair_with_labels
from fullres.pipeline.targets.folder import frames_with_targets
from fullres.pipeline.train.augment import augmented
from fullres.pipeline.train.config import Augmentation, DataConfig

# The same seed must not give orders, samples and places the same random numbers.
_ORDER, _SAMPLE = 0, 1
_AHEAD = 4  # batches that each process reads ahead


@dataclass(frozen=True)
class Batch:
    """images: N x h x w x 3 uint8. labels: N x h x w uint8 class ids. files: of each image its file."""

    images: Tensor
    labels: Tensor
    files: list[str]

    def part(self, index: int, count: int) -> "Batch":
        """One of `count` equal parts."""
        size = len(self.files) // count
        here = slice(index * size, (index + 1) * size)
        return Batch(self.images[here], self.labels[here], self.files[here])


class Frames:
    """The images and label maps of a split, read one by one: of the one that is trained on, where none is
    named. Then those without targets are left out, where the configuration has some.

    Raises ValueError, FilesError where files lack their counterpart, TargetsError, ImageError, OSError.
    """

    def __init__(self, config: DataConfig, split: str | None = None) -> None:
        self.known = config.known()
        self._read_bytes: Callable[[Any], bytes] = read_bytes
        self.stored = config.root is not None and "://" in config.root
        self._storage: Storage | None = None
        if config.root is None:
            assert config.images is not None
            assert config.labels is not None
            pairs = pair_with_labels(list_images([config.images]), config.labels, self.known, "image")
            self.frames = [Frame(image, labels, image.stem) for image, labels in pairs]
        else:
            of = split or config.split
            if self.stored:
                self._storage = storage = Storage(config.root)
                self._read_bytes = _Stored(storage)
                found = find_stored_frames(storage, self.known, of)
            else:
                found = local_frames(self.known, config.root, of)
            if split is None and config.targets is not None:
                self.frames = frames_with_targets(Storage(config.targets), found, self.known, of)
            else:
                self.frames = found.whole()

    def __len__(self) -> int:
        return len(self.frames)

    def versions(self) -> list[tuple[str, int, int]]:
        """Of each label map its file, size in bytes and time of its last change in nanoseconds."""
        paths = [frame.labels for frame in self.frames]
        if self._storage is not None:
            known = self._storage.versions()
            return [(path.as_posix(), *known[path.as_posix()]) for path in paths]
        found = [path.stat() for path in paths]
        return [(str(p), f.st_size, f.st_mtime_ns) for p, f in zip(paths, found, strict=True)]

    def labels(self, index: int) -> np.ndarray:
        """H x W uint8 class ids."""
        path = self.frames[index].labels
        return self.known.decode(self._read_bytes(path), path)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image H x W x 3 uint8 and labels. Raises ImageError, also where they are of unequal sizes, and
        ValueError for ids that do not belong."""
        frame = self.frames[index]
        image, labels = decode_image(self._read_bytes(frame.image), frame.image), self.labels(index)
        if image.shape[:2] != labels.shape:
            (h, w), (height, width) = image.shape[:2], labels.shape
            raise ImageError(f"{frame.image}: {w}x{h} pixels, its labels {frame.labels} {width}x{height}")
        return image, labels


@dataclass(frozen=True)
class _Stored:
    storage: Storage

    def __call__(self, path: Any) -> bytes:
        return self.storage.read(path.as_posix())


class Samples(TorchDataset):
    """Sample number i: its image, its label map and its file. `places`: by class, where it is in which image,
    rows of (image, y, x), as `class_places` finds them."""

    def __init__(
        self,
        frames: Frames,
        how: Augmentation,
        crop: tuple[int, int],
        seed: int,
        in_memory: bool = False,
        places: Sequence[np.ndarray] = (),
    ) -> None:
        self.frames, self.how, self.crop, self.seed, self.places = frames, how, crop, seed, places
        self._kept = [frames.read(i) for i in range(len(frames))] if in_memory else None
        self._order = lru_cache(2)(self._new_order)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = lru_cache(2)(self._new_order)

    def _new_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self.frames))

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, str]:
        epoch, place = divmod(number, len(self.frames))
        index = int(self._order(epoch)[place])
        around: tuple[int, int] | None = None
        rng = np.random.default_rng((self.seed, _SAMPLE, number))
        if self.how.class_uniform and rng.random() < self.how.class_uniform:
            of_class = self.places[int(rng.integers(len(self.places)))]
            index, y, x = of_class[rng.integers(len(of_class))]
            around = (y, x)
        image, labels = self.frames.read(index) if self._kept is None else self._kept[index]
        ignored = self.frames.known.ignore_index
        image, labels = augmented(image, labels, self.how, self.crop, ignored, rng, around)
        return image, labels, str(self.frames.frames[index].image)

    def batches(
        self,
        batch_size: int,
        first: int,
        last: int,
        workers: int,
        rank: int = 0,
        ranks: int = 1,
        parts: int = 1,
    ) -> Generator[Batch, None, None]:
        """The batches of steps `first` to `last` - 1, or of each of its `parts` the share of one of `ranks`,
        read ahead by `workers` processes. Raises what reading raises."""
        share = batch_size // ranks // parts
        begins = [part * share * ranks + rank * share for part in range(parts)]
        own = [begin + place for begin in begins for place in range(share)]
        numbers = [[step * batch_size + place for place in own] for step in range(first, last)]
        loader = DataLoader(
            _Checked(self), batch_sampler=numbers, collate_fn=_batch, num_workers=workers,
            prefetch_factor=_AHEAD if workers else None, worker_init_fn=_alone if workers else None,
            # Connections to an object store do not live on in a copy of the process.
            multiprocessing_context=("spawn" if self.frames.stored else "fork") if workers else None,
        )  # fmt: skip
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch


class _Checked(TorchDataset):
    """A sample, or why there is none: torch would put a page of its own around the message."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> Any:
        try:
            return self.samples[number]
        except (FilesError, ImageError, OSError, ValueError) as error:
            return error


def _batch(samples: list[Any]) -> Batch | Exception:
    failed = next((sample for sample in samples if isinstance(sample, Exception)), None)
    if failed is not None:
        return failed
    images, labels, files = zip(*samples, strict=True)
    return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), list(files))


def _alone(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
