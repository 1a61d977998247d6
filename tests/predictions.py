"""Imperfect predictions of labelled frames, as files, to be scored by the project and by others."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fullres.pipeline.data.images import read_labels, write_png
from fullres.pipeline.datasets import dataset
from fullres.pipeline.predict.outputs import write_outputs
from tests.scenes import render_scene
from tests.shared import DATA

CAMVID = DATA / "camvid/valannot"
SIZES = ((96, 160), (131, 97), (64, 250), (200, 120))
BUS, TRAIN, MOTORCYCLE, BICYCLE = 15, 16, 17, 18


@dataclass(frozen=True)
class Predicted:
    """Files of the same names in two folders. `ignored`: what label files hold where there is no class."""

    dataset: str
    classes: int
    ignored: int
    predictions: Path
    labels: Path

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.labels.iterdir())


def camvid(folder: Path) -> Predicted:
    """All 101 frames of CamVid val; the labels are the data set's files."""
    for seed, path in enumerate(sorted(CAMVID.iterdir())):
        _write(folder, path.stem, imperfect(read_labels(path), list(range(11)), 11, seed), "camvid")
    return Predicted("camvid", 11, 11, folder, CAMVID)


def scenes(folder: Path) -> Predicted:
    """Drawn scenes of several sizes, in which pixels of four classes have none: of those BUS is predicted
    elsewhere, TRAIN only there, and MOTORCYCLE and BICYCLE never."""
    for seed, size in enumerate(SIZES):
        label = render_scene(seed, *size)[1]
        label[np.isin(label, (BUS, TRAIN, MOTORCYCLE, BICYCLE))] = 255
        prediction = imperfect(label, list(range(BUS)), 255, seed)
        prediction[10:20, 10:20][label[10:20, 10:20] < 255] = BUS
        prediction[label == 255] = TRAIN
        write_png(folder / f"labels/scene{seed}.png", label)
        _write(folder / "predictions", f"scene{seed}", prediction, "scenes")
    return Predicted("scenes", 19, 255, folder / "predictions", folder / "labels")


def imperfect(label: np.ndarray, classes: list[int], ignored: int, seed: int) -> np.ndarray:
    """The label map, some pixels off, with blocks of other classes, and one where there is none."""
    rng = np.random.default_rng(seed)
    prediction = np.roll(label, rng.integers(-4, 5, 2), (0, 1))
    prediction[prediction == ignored] = rng.choice(classes)
    for _ in range(8):
        top, left = rng.integers(0, label.shape)
        height, width = rng.integers(5, 40, 2)
        prediction[top : top + height, left : left + width] = rng.choice(classes)
    return prediction


def _write(folder: Path, name: str, prediction: np.ndarray, known: str) -> None:
    image = np.zeros((*prediction.shape, 3), np.uint8)
    write_outputs(folder, Path(name), image, prediction, dataset(known).palette, ["color"])
