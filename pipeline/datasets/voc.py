"""PASCAL VOC 2012, and the annotations that others made of its images: SBD, Context and Person-Part.

Each in the PNG files that are in common use; the roots are the VOC folders with `JPEGImages` in them.
"""

from fullres.pipeline.datasets.colours import voc_colours
from fullres.pipeline.datasets.dataset import Dataset, Split, train_id_encoding

_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_CONTEXT = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building",
    "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog",
    "door", "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike",
    "mountain", "mouse", "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves",
    "sidewalk", "sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor",
    "wall", "water", "window", "wood",
)  # fmt: skip
_PARTS = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")


def _listed(labels: str, list_file: str) -> Split:
    return Split("JPEGImages", labels, f"{list_file}.txt")


# 255 is the line around objects. With SBD: the 10,582 images of `trainaug.txt`, SBD's masks and VOC's own as
# PNG files in `SegmentationClassAug` (SBD itself comes as .mat files); PSPNet trains on them (Sec. 5.3).
VOC2012 = Dataset(
    "voc2012",
    classes=_VOC,
    palette=voc_colours(len(_VOC)),
    small_thin=(),
    splits={
        **{
            name: _listed("SegmentationClass", f"ImageSets/Segmentation/{name}")
            for name in ("train", "val", "trainval")
        },
        "trainaug": _listed("SegmentationClassAug", "ImageSets/Segmentation/trainaug"),
    },
    train_size=(513, 513),  # SPGNet, Sec. 4.6
    encodings={"": train_id_encoding(len(_VOC), 255)},
)

# Of the 459 classes of PASCAL Context the 59 frequent ones, as mmsegmentation's converter writes them: 0 for
# all others, then alphabetically. Paper 003 trains with mmsegmentation and doesn't say whether all others are
# a class too; its scores are near that project's with 60 classes and far from those with 59.
_CONTEXT_SPLITS = {
    name: _listed("SegmentationClassContext", f"ImageSets/SegmentationContext/{name}")
    for name in ("train", "val")
}
CONTEXT59 = Dataset(
    "context59",
    classes=_CONTEXT,
    palette=voc_colours(1 + len(_CONTEXT))[1:],
    small_thin=(),
    splits=_CONTEXT_SPLITS,
    train_size=(480, 480),  # mmsegmentation's; SeeThroughNet gives none
    encodings={"": {0: None, **{1 + i: i for i in range(len(_CONTEXT))}}},
)
CONTEXT60 = Dataset(
    "context60",
    classes=("background", *_CONTEXT),
    palette=voc_colours(1 + len(_CONTEXT)),
    small_thin=(),
    splits=_CONTEXT_SPLITS,
    train_size=(480, 480),
    encodings={"": train_id_encoding(1 + len(_CONTEXT))},
)

# The PNG files that DeepLab's authors published, unpacked into VOC2010. Their list files have not been seen
# here: ids a line in `train_id.txt` and `val_id.txt`, as public code reads them. 255 is taken for ignored.
_PERSON_PART = "pascal_person_part/pascal_person_part"
PERSON_PART = Dataset(
    "person-part",
    classes=_PARTS,
    palette=voc_colours(len(_PARTS)),
    small_thin=(),
    splits={
        name: _listed(f"{_PERSON_PART}_gt", f"{_PERSON_PART}_trainval_list/{name}_id")
        for name in ("train", "val")
    },
    train_size=(513, 513),  # SPGNet, Sec. 4.6
    encodings={"": train_id_encoding(len(_PARTS), 255)},
)
