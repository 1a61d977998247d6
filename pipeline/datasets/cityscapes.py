"""Cityscapes, and the data sets that share its 19 classes: GTA-5 and the project's own scenes."""

from fullres.pipeline.datasets.dataset import Dataset, Instances, Split, train_id_encoding

_TABLE = (  # trainId order: name, labelId, colour
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, _, _ in _TABLE)
PALETTE = tuple(rgb for _, _, rgb in _TABLE)
SMALL_THIN = ("pole", "traffic light", "traffic sign", "person", "rider", "motorcycle", "bicycle")

# labelIds run from 0 (unlabeled) to 33; those without a trainId are ignored.
LABEL_IDS = {**dict.fromkeys(range(34)), **{label_id: i for i, (_, label_id, _) in enumerate(_TABLE)}}
TRAIN_IDS = train_id_encoding(len(CLASSES), 255)

# labelIds and trainIds overlap (7 is road in one and traffic sign in the other): only the name tells them
# apart.
CITYSCAPES = Dataset(
    "cityscapes",
    CLASSES,
    PALETTE,
    SMALL_THIN,
    splits={
        **{name: Split(f"leftImg8bit/{name}", f"gtFine/{name}") for name in ("train", "val", "test")},
        "train_extra": Split("leftImg8bit/train_extra", "gtCoarse/train_extra"),
    },
    train_size=(769, 769),  # SPGNet, appendix; "Split-Merge Pooling", Sec. 4.2, has 512x512
    encodings={
        "_gtFine_labelIds": LABEL_IDS,
        "_gtFine_labelTrainIds": TRAIN_IDS,
        "_gtCoarse_labelIds": LABEL_IDS,
        "_gtCoarse_labelTrainIds": TRAIN_IDS,
    },
    image_ending="_leftImg8bit",
    instances=Instances(
        {
            f"_{kind}_{ids}": f"_{kind}_instanceIds"
            for kind in ("gtFine", "gtCoarse")
            for ids in ("labelIds", "labelTrainIds")
        },
        LABEL_IDS,
    ),
)

# Folders as the project's site serves them, unpacked side by side (not verified against the archives).
# Palette PNG files whose indices are labelIds; 34 is the license plate, which Cityscapes numbers -1.
# Validation is on 500 images at random ("Split-Merge Pooling", Sec. 4.4).
GTA5 = Dataset(
    "gta5",
    CLASSES,
    PALETTE,
    SMALL_THIN,
    splits={
        "train": Split("images", "labels", part=slice(500, None)),
        "val": Split("images", "labels", part=slice(500)),
    },
    train_size=(512, 512),  # "Split-Merge Pooling", Sec. 4.2
    encodings={"": {**LABEL_IDS, 34: None}},
)

SCENES = Dataset(
    "scenes",
    CLASSES,
    PALETTE,
    SMALL_THIN,
    splits={"all": Split("images", "labels")},
    train_size=(384, 384),
    encodings={"": TRAIN_IDS},
)
