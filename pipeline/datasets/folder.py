"""Any folder of images and label maps: `images/` and `labels/`, with the same names below both."""

from fullres.pipeline.datasets.colours import voc_colours
from fullres.pipeline.datasets.dataset import MAX_CLASSES, Dataset, Split, train_id_encoding


def folder(num_classes: int) -> Dataset:
    """The data set of a folder whose label maps hold 0..`num_classes` - 1, and 255 for no class.

    Splits are `all`, and `train`, `val` and `test` for the subfolders of these names.

    Raises:
        ValueError: a count that uint8 trainIds do not hold.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"a folder of {num_classes} classes: 1 to {MAX_CLASSES} are read")
    return Dataset(
        "folder",
        classes=tuple(f"class {i}" for i in range(num_classes)),
        palette=voc_colours(num_classes),
        small_thin=(),
        splits={
            "all": Split("images", "labels"),
            **{name: Split(f"images/{name}", f"labels/{name}") for name in ("train", "val", "test")},
        },
        train_size=None,
        encodings={"": train_id_encoding(num_classes, 255)},
    )
