"""A network in training, scored on a validation split as `fullres predict` would label it: full resolution
where it has that, else the whole image at once."""

import numpy as np
from torch import nn

from fullres.models.full_resolution.trace import evaluation
from fullres.ops.metrics import confusion_matrix
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.engines import Resources, engine_for, label_image
from fullres.pipeline.review.evaluate import Evaluation
from fullres.pipeline.train.engine import Engine
from fullres.pipeline.train.samples import Frames

_BUDGET = 4 << 30  # bytes, beyond the network's own


def score(network: nn.Module, frames: Frames, engine: Engine, precision: Precision) -> Evaluation:
    """Each process of the engine labels its share of the frames. The network is left as it is. Raises
    BudgetError for an image too large, and what reading raises."""
    known = frames.known
    confusion = np.zeros((len(known.classes),) * 2, np.int64)
    resources = Resources(1, _BUDGET, precision, engine.device.type)
    with evaluation(network):
        how = engine_for(network)
        runner = how.predictor(engine.device, precision)
        for index in range(engine.rank, len(frames), engine.ranks):
            image, labels = frames.read(index)
            found = label_image(how, runner, image, resources)
            confusion += confusion_matrix(found, labels, len(known.classes), known.ignore_index)
    return Evaluation(known, len(frames), engine.total(confusion))
