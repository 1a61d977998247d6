"""SYNTHIA-RAND-CITYSCAPES: 9,400 drawn frames of 1280x760.

Its root is the folder `RAND_CITYSCAPES`. Paper 004 (Sec. 4.2) has 13,000 frames of SYNTHIA, so probably
SYNTHIA-RAND, which comes with coloured pictures and text files for labels and fewer classes. Nobody published
a split.
"""

from pathlib import Path

import numpy as np

from fullres.pipeline.data.images import decode_png_16
from fullres.pipeline.datasets import cityscapes
from fullres.pipeline.datasets.dataset import Dataset, Encoding, Split

_TABLE = (  # id 1 first; void is 0. Colours as published: two of them are equal
    ("sky", (70, 130, 180)),
    ("building", (70, 70, 70)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("fence", (64, 64, 128)),
    ("vegetation", (107, 142, 35)),
    ("pole", (153, 153, 153)),
    ("car", (0, 0, 142)),
    ("traffic sign", (220, 220, 0)),
    ("pedestrian", (220, 20, 60)),
    ("bicycle", (119, 11, 32)),
    ("motorcycle", (0, 0, 230)),
    ("parking slot", (250, 170, 160)),
    ("road work", (128, 64, 64)),
    ("traffic light", (250, 170, 30)),
    ("terrain", (152, 251, 152)),
    ("rider", (255, 0, 0)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("wall", (102, 102, 156)),
    ("lane marking", (102, 102, 156)),
)
_NAMES = tuple(name for name, _ in _TABLE)


def decode_class_channel(data: bytes, path: str | Path) -> np.ndarray:
    """The HxW uint8 class ids of a label file: a PNG of 16 bits, whose first channel is the class and whose
    second is the instance.

    Raises:
        ImageError: another kind of file, or damaged.
    """
    classes = decode_png_16(data, path, 3)[:, :, 2]  # red, the first channel, is last
    return np.minimum(classes, 255).astype(np.uint8)  # no class has an id beyond a byte


def _dataset(
    name: str, classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...], ids: Encoding
) -> Dataset:
    pedestrian = "person" if "person" in classes else "pedestrian"
    return Dataset(
        name,
        classes,
        palette,
        small_thin=("pole", "traffic light", "traffic sign", pedestrian, "rider", "motorcycle", "bicycle"),
        splits={"all": Split("RGB", "GT/LABELS")},
        train_size=(760, 760),  # "Learning Downsampling", Sec. 4.1: the largest square
        encodings={"": ids},
        # Paper 004 has target classes here (Table 4) and doesn't name them: those of ApolloScape that occur.
        target_classes=("car", "motorcycle", "bicycle", pedestrian, "rider", "bus"),
        decoder=decode_class_channel,
    )


SYNTHIA = _dataset(
    "synthia",
    _NAMES,
    tuple(rgb for _, rgb in _TABLE),
    {0: None, **{1 + i: i for i in range(len(_TABLE))}},
)

# The classes that both SYNTHIA and Cityscapes show, in Cityscapes' order, names and colours.
_SHARED = tuple(name for name in cityscapes.CLASSES if name not in ("terrain", "truck", "train"))
_IDS = {"person" if name == "pedestrian" else name: 1 + i for i, name in enumerate(_NAMES)}
SYNTHIA16 = _dataset(
    "synthia16",
    _SHARED,
    tuple(cityscapes.PALETTE[cityscapes.CLASSES.index(name)] for name in _SHARED),
    {**dict.fromkeys(range(1 + len(_TABLE))), **{_IDS[name]: i for i, name in enumerate(_SHARED)}},
)
