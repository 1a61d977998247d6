"""The data sets the project knows, by name. A new one is a small file here and a row below."""

from fullres.pipeline.datasets.camvid import CAMVID
from fullres.pipeline.datasets.cityscapes import CITYSCAPES, GTA5, SCENES
from fullres.pipeline.datasets.dataset import Dataset

__all__ = ["DATASETS", "Dataset", "dataset"]

DATASETS: dict[str, Dataset] = {known.name: known for known in (CITYSCAPES, CAMVID, GTA5, SCENES)}


def dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ValueError: no such data set; lists those there are.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]
