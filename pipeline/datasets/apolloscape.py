"""ApolloScape's scene parsing: 3384x2710 frames, 22 classes ("Learning Downsampling", Sec. 4.2).

The archives unpack to `road01_ins/ColorImage/Record001/Camera 5/...jpg` and, beside it, `Label/..._bin.png`;
the image lists go into the root, a line having the paths of image and label map with a tab between. Lists are
published for the first three roads. Their lines have not been seen here, only public code that reads them.
"""

from fullres.pipeline.datasets.dataset import Dataset, Split

_GROUP = 128  # added to the id where several objects could not be told apart

_TABLE = (  # trainId order: name, class id, colour
    ("sky", 17, (70, 130, 180)),
    ("car", 33, (0, 0, 142)),
    ("motorbicycle", 34, (0, 0, 230)),
    ("bicycle", 35, (119, 11, 32)),
    ("person", 36, (0, 128, 192)),
    ("rider", 37, (128, 64, 128)),
    ("truck", 38, (128, 0, 192)),
    ("bus", 39, (192, 0, 64)),
    ("tricycle", 40, (128, 128, 192)),
    ("road", 49, (192, 128, 192)),
    ("sidewalk", 50, (192, 128, 64)),
    ("traffic cone", 65, (0, 0, 64)),
    ("road pile", 66, (0, 0, 192)),
    ("fence", 67, (64, 64, 128)),
    ("traffic light", 81, (192, 64, 128)),
    ("pole", 82, (192, 128, 128)),
    ("traffic sign", 83, (0, 64, 64)),
    ("wall", 84, (192, 192, 128)),
    ("dustbin", 85, (64, 0, 192)),
    ("billboard", 86, (192, 0, 192)),
    ("building", 97, (192, 0, 128)),
    ("vegetation", 113, (128, 128, 64)),
)
# The classes whose annotation is good ("Learning Downsampling", Sec. 4.2).
_TARGETS = ("car", "motorbicycle", "bicycle", "person", "rider", "truck", "bus", "tricycle")
# others, rover, bridge, tunnel, overpass, unlabeled
_IGNORED = (0, 1, 98, 99, 100, 255)

APOLLOSCAPE = Dataset(
    "apolloscape",
    classes=tuple(name for name, _, _ in _TABLE),
    palette=tuple(rgb for _, _, rgb in _TABLE),
    small_thin=("pole", "traffic light", "traffic sign", "person", "rider", "motorbicycle", "bicycle"),
    splits={name: Split("*/ColorImage", "*/Label", f"*_{name}.lst") for name in ("train", "val")},
    train_size=(2710, 2710),  # "Learning Downsampling", Sec. 4.1: the largest square
    encodings={
        "_bin": {
            **dict.fromkeys(_IGNORED),
            **{class_id: i for i, (_, class_id, _) in enumerate(_TABLE)},
            **{class_id + _GROUP: i for i, (name, class_id, _) in enumerate(_TABLE) if name in _TARGETS},
        }
    },
    target_classes=_TARGETS,
)
