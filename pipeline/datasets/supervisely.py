"""Supervisely Person: 5,711 pictures of people, two classes ("Learning Downsampling", Sec. 4.2).

Published as JSON; this reads what Supervisely's own "Export as masks" makes of it: `ds1/img` and, beside it,
`ds1/masks_machine`. That numbers the data set's classes as its `meta.json` lists them. The order has not been
seen here: people drawn as bitmaps and as polygons are taken for 1 and 2, "neutral" (people who count for
nothing) for 3. Check it with the export's `obj_class_to_machine_color.json`.
"""

from fullres.pipeline.datasets.dataset import Dataset, Split

SUPERVISELY = Dataset(
    "supervisely-person",
    classes=("background", "person"),
    palette=((0, 0, 0), (220, 20, 60)),
    small_thin=(),
    # Paper 004 draws 571 of them at random for testing.
    splits={
        "train": Split("*/img", "*/masks_machine", part=slice(571, None)),
        "test": Split("*/img", "*/masks_machine", part=slice(571)),
    },
    train_size=None,  # pictures of all sizes
    encodings={"": {0: 0, 1: 1, 2: 1, 3: None}},
)
