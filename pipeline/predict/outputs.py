"""What `predict` leaves for one image, and what is already there."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save

from fullres.ops.errors import FullresError
from fullres.ops.sampling import sample
from fullres.pipeline.data.files import atomic, write_bytes_atomically
from fullres.pipeline.data.images import write_png
from fullres.pipeline.data.pictures import colour, dotted, heat, overlay
from fullres.pipeline.predict.adaptive import FromPoints

Kind = Literal["color", "overlay", "npy", "safetensors", "points"]
# What `write_points` adds to the names of images.
POINTS = ("grid", "sampled", "points")
MANIFEST = "predict.json"
# What the names of the pictures for people add to the image's; see `write_outputs`.
_PICTURES = re.compile("_color|_overlay|_grid|_sampled|_points|_attention_.+")


class OutputsError(FullresError, ValueError):
    """The output folder holds results of other images, or a damaged record."""


def is_done(out: Path, stem: Path) -> bool:
    """Whether an image was finished before: its class ids are written last."""
    return _named(out, stem, ".png").exists()


def is_picture(path: Path) -> bool:
    """Whether a PNG file of an output folder is a picture beside class ids: `sky_color.png` where there is
    `sky.png`, else it holds the class ids of an image of that name."""
    stem = path.stem
    return any(
        _PICTURES.fullmatch(stem, i) and path.with_name(stem[:i] + path.suffix).exists()
        for i in range(1, len(stem))
    )


def write_outputs(
    out: Path,
    stem: Path,
    image: np.ndarray,
    result: np.ndarray,
    palette: Sequence[Sequence[int]],
    kinds: Sequence[Kind],
    attention: Mapping[str, np.ndarray] | None = None,
) -> None:
    """`STEM.png` with class ids and what else is asked, each whole or not at all.

    result: H x W uint8 class ids, or classes x H x W scores where a kind asks for them. `attention`: by class
    a map, H x W in [0, 1], to lay over the image.
    """
    labels = result if result.ndim == 2 else argmax(result)
    if "color" in kinds:
        write_png(_named(out, stem, "_color.png"), colour(labels, palette))
    image = _rgb(image)
    if "overlay" in kinds:
        write_png(_named(out, stem, "_overlay.png"), overlay(image, labels, palette))
    if "npy" in kinds:
        with atomic(_named(out, stem, "_scores.npy")) as temporary:
            np.save(temporary, result)
    if "safetensors" in kinds:
        write_bytes_atomically(
            _named(out, stem, "_scores.safetensors"), save({"scores": torch.from_numpy(result)})
        )
    for name, values in (attention or {}).items():
        write_png(_named(out, stem, f"_attention_{name.replace(' ', '_')}.png"), heat(image, values))
    write_png(_named(out, stem, ".png"), labels)


def write_points(
    out: Path, stem: Path, image: np.ndarray, found: FromPoints, palette: Sequence[Sequence[int]]
) -> None:
    """How an image was labelled from some of its pixels (the paper's Figs. 1 and 7): `STEM_grid.png`, where
    they are; `STEM_sampled.png`, what the network saw; `STEM_points.png`, what it said, each class where it
    was read."""
    image = _rgb(image)
    classes = colour(found.at_points.astype(np.uint8), palette)
    pictures = {
        "grid": dotted(image, found.phi, np.array([255, 40, 40], np.uint8), 1 / 3),
        "sampled": sample(image, found.phi),
        "points": dotted(np.zeros_like(image), found.phi, classes, 0.9),
    }
    for name in POINTS:
        write_png(_named(out, stem, f"_{name}.png"), pictures[name])


def _rgb(image: np.ndarray) -> np.ndarray:
    """Of an image that isn't RGB, what shows best: its first three channels, or the first as grey."""
    return np.ascontiguousarray(image[..., :3]) if image.shape[2] > 2 else np.repeat(image[..., :1], 3, -1)


def argmax(scores: np.ndarray) -> np.ndarray:
    """Class ids of classes x H x W scores, row by row: H x W uint8."""
    labels = np.empty(scores.shape[1:], np.uint8)
    for y in range(0, scores.shape[1], 64):
        labels[y : y + 64] = scores[:, y : y + 64].argmax(0)
    return labels


def _named(out: Path, stem: Path, ending: str) -> Path:
    return out / stem.parent / (stem.name + ending)
