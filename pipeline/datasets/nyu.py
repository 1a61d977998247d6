"""NYU-Depth-v2 with 40 classes, as PNG files.

The data set itself is one HDF5 file with 894 classes. Several projects write it out as pictures; this is the
layout of ESANet's `prepare_dataset.py`: `{train,test}/{rgb,labels_40}`, 0 for no class, then the 40 classes
of Gupta et al. (CVPR 2013). The official split has 795 and 654 images.
"""

from fullres.pipeline.datasets.colours import voc_colours
from fullres.pipeline.datasets.dataset import Dataset, Split

_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes",
    "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip

NYU = Dataset(
    "nyu-depth-v2",
    classes=_CLASSES,
    palette=voc_colours(1 + len(_CLASSES))[1:],
    small_thin=(),
    splits={name: Split(f"{name}/rgb", f"{name}/labels_40") for name in ("train", "test")},
    train_size=(480, 640),  # whole frames; SeeThroughNet gives no size
    encodings={"": {0: None, **{1 + i: i for i in range(len(_CLASSES))}}},
)
