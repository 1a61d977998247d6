"""CamVid in SegNet's edition: 480x360 frames, eleven classes, void stored as 11."""

from fullres.pipeline.datasets.dataset import Dataset, Split, train_id_encoding

_TABLE = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("signsymbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

CAMVID = Dataset(
    "camvid",
    classes=tuple(name for name, _ in _TABLE),
    palette=tuple(rgb for _, rgb in _TABLE),
    small_thin=("pole", "signsymbol", "pedestrian", "bicyclist"),
    splits={name: Split(name, f"{name}annot") for name in ("train", "val", "test")},
    train_size=(360, 480),  # whole frames
    encodings={"": train_id_encoding(len(_TABLE), 11)},
)
