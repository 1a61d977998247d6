"""A network in training, scored on a validation split as `fullres predict` would label it: full resolution
where it has that, else the whole image at once."""

import numpy as np
from torch import nn

from fullres.models.full_resolution.trace import evaluation
from fullres.ops.metrics import confusion_matrix
from fullres.pipeline.data.pictures import colour, shrunk, stacked
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.engines import Resources, engine_for, label_image
from fullres.pipeline.review.evaluate import Evaluation
from fullres.pipeline.train.engine import Engine
from fullres.pipeline.train.samples import Frames

_BUDGET = 4 << 30  # bytes, beyond the network's own
_SHOWN, _PANEL = 4, 480  # frames in a picture, and pixels along the longer side of each


def score(
    network: nn.Module, frames: Frames, engine: Engine, precision: Precision
) -> tuple[Evaluation, np.ndarray]:
    """The scores, and a picture of a few frames, always the same: image, truth and prediction side by side,
    a row each. Each process of the engine labels its share of the frames. The network is left as it is.
    Raises BudgetError for an image too large, and what reading raises.
    """
    known = frames.known
    confusion = np.zeros((len(known.classes),) * 2, np.int64)
    resources = Resources(1, _BUDGET, precision, engine.device.type)
    count = min(_SHOWN, len(frames))
    shown = [row * len(frames) // count for row in range(count)]
    rows: dict[int, np.ndarray] = {}
    with evaluation(network):
        how = engine_for(network)
        runner = how.predictor(engine.device, precision)
        for index in range(engine.rank, len(frames), engine.ranks):
            image, labels = frames.read(index)
            found = label_image(how, runner, image, resources)
            confusion += confusion_matrix(found, labels, len(known.classes), known.ignore_index)
            if index in shown:
                panels = (image, colour(labels, known.palette), colour(found, known.palette))
                rows[shown.index(index)] = np.hstack([shrunk(panel, _PANEL) for panel in panels])
    picture = stacked(_of_all(engine, rows, count))
    return Evaluation(known, len(frames), engine.total(confusion)), picture


def _of_all(engine: Engine, rows: dict[int, np.ndarray], count: int) -> list[np.ndarray]:
    """Pictures of which each process has some: what the others have adds nothing to them."""
    sizes = np.zeros((count, 3), np.int64)
    for row, picture in rows.items():
        sizes[row] = picture.shape
    sizes = engine.total(sizes)
    return [engine.total(rows.get(row, np.zeros(sizes[row], np.uint8))) for row in range(count)]
