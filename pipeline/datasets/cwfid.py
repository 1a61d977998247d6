"""CWFID: 60 pictures of a field, 1296x966, with crop and weed leaf by leaf (Haug and Ostermann, ECCV 2014
Workshops).

Published with coloured annotations, black, green and red; this reads label maps made of them, with the ids
below. Picture 28 is in both of the published splits: here it is for testing alone.
"""

from collections.abc import Iterable

from fullres.pipeline.datasets.dataset import Dataset, Split, train_id_encoding

_TABLE = (("soil", (0, 0, 0)), ("crop", (0, 255, 0)), ("weed", (255, 0, 0)))
_TEST = (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)


def _frames(numbers: Iterable[int]) -> Split:
    return Split("images", "labels", keys=tuple(f"{number:03}" for number in numbers))


CWFID = Dataset(
    "cwfid",
    classes=tuple(name for name, _ in _TABLE),
    palette=tuple(rgb for _, rgb in _TABLE),
    small_thin=("crop", "weed"),
    splits={"train": _frames(n for n in range(1, 61) if n not in _TEST), "test": _frames(_TEST)},
    train_size=(966, 1296),  # whole pictures
    encodings={"": train_id_encoding(len(_TABLE))},
)
