"""Training targets of one label map: what the boundary-aware sampler and CPP losses learn from.

"Efficient Segmentation: Learning Downsampling Near Semantic Boundaries", Sec. 3.1: boundary map, distances to
it, sampling tensor. "SeeThroughNet", Sec. 3.1: class probabilities at coarser resolutions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Literal

import numpy as np

from fullres.ops.boundary import boundary_map
from fullres.ops.class_probability import class_probability_pyramid
from fullres.ops.errors import FullresError
from fullres.ops.nearest import nearest_boundary
from fullres.ops.sampling_solve import sampling_tensor
from fullres.pipeline.datasets import Dataset


class TargetSpecError(FullresError, ValueError):
    """Targets that can't be asked for."""


@dataclass(frozen=True)
class TargetSpec:
    """Which targets, and how. Together with the label maps it determines every value.

    grid: (h, w) of the sampling tensor. smoothness: lambda of Eq. 2, per grid index. target_classes: names of
    the classes whose boundaries count; None: all. metric: "pixels", nearest in pixels as the paper's author
    computes it, or "unit", in the paper's relative coordinates. cpp: scales of the class probabilities.
    """

    grid: tuple[int, int] = (8, 8)
    smoothness: float = 1.0
    target_classes: tuple[str, ...] | None = None
    metric: Literal["pixels", "unit"] = "pixels"
    cpp: tuple[int, ...] = ()
    boundary: bool = False
    distance: bool = False

    def check(self, dataset: Dataset) -> None:
        """Raises TargetSpecError for what is impossible, or not of this data set."""
        if min(self.grid) < 2:
            raise TargetSpecError(f"grid is {self.grid[0]}x{self.grid[1]}: rows x columns, each at least 2")
        if not (isfinite(self.smoothness) and self.smoothness >= 0):
            raise TargetSpecError(f"smoothness is {self.smoothness}: a finite number, 0 or more")
        if self.metric not in ("pixels", "unit"):
            raise TargetSpecError(f"metric is '{self.metric}': pixels or unit")
        for name in self.target_classes or ():
            if name not in dataset.classes:
                raise TargetSpecError(f"'{name}' is no class of {dataset.name}: {', '.join(dataset.classes)}")
        if min(self.cpp, default=1) < 1 or any(b % a or b == a for a, b in pairwise(self.cpp)):
            scales = ",".join(map(str, self.cpp))
            raise TargetSpecError(
                f"cpp is {scales}: each scale must be a multiple of the one before, e.g. 4,8,16"
            )


def targets_of(labels: np.ndarray, dataset: Dataset, spec: TargetSpec) -> dict[str, np.ndarray]:
    """The targets of a label map (H x W uint8 trainIds), by column name.

    "phi": h x w x 2 float32, relative coordinates (row, column) in [0, 1]. "cpp_4" and so on: (K + 1) x
    ceil(H/s) x ceil(W/s) float32, the ignored share as the last channel. "boundary": H x W uint8, 1 on a
    boundary. "distance": H x W float32, to the nearest boundary pixel, in pixels or, with the metric "unit",
    in units of the image's sides; infinite where there is no boundary at all.
    """
    wanted, ignored = class_ids(dataset, spec.target_classes), dataset.ignore_index
    phi = sampling_tensor(labels, spec.grid, spec.smoothness, ignored, wanted, spec.metric)
    targets = {"phi": phi.astype(np.float32)}
    if spec.boundary or spec.distance:
        boundary = boundary_map(labels, ignored, wanted)
        if spec.boundary:
            targets["boundary"] = boundary.view(np.uint8)
        if spec.distance:
            targets["distance"] = (
                nearest_boundary(boundary, spec.metric)[1]
                if boundary.any()
                else np.full(labels.shape, np.inf, np.float32)
            )
    if spec.cpp:
        pyramid = class_probability_pyramid(labels, spec.cpp, len(dataset.classes))
        targets |= {f"cpp_{scale}": probability for scale, probability in zip(spec.cpp, pyramid, strict=True)}
    return targets


def class_ids(dataset: Dataset, names: Sequence[str] | None) -> list[int] | None:
    """trainIds of the classes of these names, each once; None for None, all."""
    return None if names is None else [dataset.classes.index(name) for name in dict.fromkeys(names)]
