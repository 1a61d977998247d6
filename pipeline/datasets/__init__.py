"""The data sets the project knows, by name. A new one is a small file here and a row below."""

from fullres.pipeline.datasets.ade20k import ADE20K
from fullres.pipeline.datasets.apolloscape import APOLLOSCAPE
from fullres.pipeline.datasets.camvid import CAMVID
from fullres.pipeline.datasets.cityscapes import CITYSCAPES, GTA5, SCENES
from fullres.pipeline.datasets.cwfid import CWFID
from fullres.pipeline.datasets.dataset import Dataset
from fullres.pipeline.datasets.mapillary import MAPILLARY
from fullres.pipeline.datasets.nyu import NYU
from fullres.pipeline.datasets.supervisely import SUPERVISELY
from fullres.pipeline.datasets.synthia import SYNTHIA, SYNTHIA16
from fullres.pipeline.datasets.voc import CONTEXT59, CONTEXT60, PERSON_PART, VOC2012

__all__ = ["DATASETS", "Dataset", "dataset"]

DATASETS: dict[str, Dataset] = {
    known.name: known
    for known in (
        CITYSCAPES, CAMVID, GTA5, SCENES, APOLLOSCAPE, MAPILLARY, SYNTHIA, SYNTHIA16, ADE20K, VOC2012,
        CONTEXT59, CONTEXT60, PERSON_PART, NYU, SUPERVISELY, CWFID,
    )
}  # fmt: skip


def dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ValueError: no such data set; lists those there are.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]
