"""The weights that come with the project: which of them labels the classes of a data set."""

from pathlib import Path

from fullres.models.weights import WeightsError, shipped_weights
from fullres.pipeline.datasets import dataset


def shipped_for(model: str, name: str | None = None) -> Path | None:
    """The file of a network for the classes of the data set `name`; None where none comes with the project.

    Without a name, and for a folder, whose classes are one's own: that for the drawn street scenes, whose
    classes are Cityscapes'. Raises ValueError for an unknown data set.
    """
    classes = dataset("scenes" if name is None or name == "folder" else name).classes
    for (trained_on, network), path in shipped_weights().items():
        if network == model and dataset(trained_on).classes == classes:
            return path
    return None


def needed_weights(model: str, name: str | None = None) -> Path:
    """As `shipped_for`. Raises WeightsError where there is none, and says which there are."""
    path = shipped_for(model, name)
    if path is None:
        asked = model if name is None else f"{model} for {name}"
        there = ", ".join(f"{network} for {trained_on}" for trained_on, network in shipped_weights())
        raise WeightsError(f"no weights come with {asked}, name a file (there are some of {there})")
    return path
