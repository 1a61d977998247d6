"""A network in training, scored on a validation split as `fullres predict` would label it: full resolution
where it has that, else the whole image at once."""

import numpy as np
import torch
from torch import nn

from fullres.models.full_resolution.trace import evaluation
from fullres.ops.metrics import confusion_matrix
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.engines import Resources, engine_for, label_image
from fullres.pipeline.review.evaluate import Evaluation
from fullres.pipeline.train.samples import Frames

_BUDGET = 4 << 30  # bytes, beyond the network's own


def score(network: nn.Module, frames: Frames, device: torch.device, precision: Precision) -> Evaluation:
    """The network is left as it is. Raises BudgetError for an image too large, and what reading
    raises."""
    known = frames.known
    confusion = np.zeros((len(known.classes),) * 2, np.int64)
    resources = Resources(1, _BUDGET, precision, device.type)
    with evaluation(network):
        engine = engine_for(network)
        runner = engine.predictor(device, precision)
        for index in range(len(frames)):
            image, labels = frames.read(index)
            found = label_image(engine, runner, image, resources)
            confusion += confusion_matrix(found, labels, len(known.classes), known.ignore_index)
    return Evaluation(known, len(frames), confusion)
