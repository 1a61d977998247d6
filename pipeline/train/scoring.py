"""A network in training, scored on a validation split as `fullres predict` would label it: full resolution
where it has that, else the whole image at once, or from the points at which it is trained.

A downsampler is scored by what sampling leaves of the truth: label maps sampled where it says, at four times
its grid's points a side, and interpolated back."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fullres.models.downsampler import Downsampler
from fullres.models.full_resolution.trace import evaluation
from fullres.ops.metrics import confusion_matrix
from fullres.pipeline.data.pictures import colour, shrunk, stacked
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.predict.adaptive import adaptive_engine
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.engines import Resources, engine_for, label_image
from fullres.pipeline.predict.sampler import Sampler, sampled_and_back, sampler_of
from fullres.pipeline.review.evaluate import Evaluation
from fullres.pipeline.train.config import SamplingConfig
from fullres.pipeline.train.engine import Engine
from fullres.pipeline.train.learning_sampler import LearningSampler
from fullres.pipeline.train.samples import Frames

_BUDGET = 4 << 30  # bytes, beyond the network's own
_SHOWN, _PANEL = 4, 480  # frames in a picture, and pixels along the longer side of each


def score(
    network: nn.Module,
    frames: Frames,
    engine: Engine,
    precision: Precision,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
) -> tuple[Evaluation, np.ndarray]:
    """The scores, and a picture of a few frames, always the same: image, truth and prediction side by side,
    a row each. Each process of the engine labels its share of the frames. The network is left as it is.
    Raises BudgetError for an image too large, and what reading raises.
    """
    known = frames.known
    confusion = np.zeros((len(known.classes),) * 2, np.int64)
    count = min(_SHOWN, len(frames))
    shown = [row * len(frames) // count for row in range(count)]
    rows: dict[int, np.ndarray] = {}
    with evaluation(network):
        label = _labeller(network, sampling, known, engine.device, precision)
        for index in range(engine.rank, len(frames), engine.ranks):
            image, labels = frames.read(index)
            found = label(image, labels)
            confusion += confusion_matrix(found, labels, len(known.classes), known.ignore_index)
            if index in shown:
                panels = (image, colour(labels, known.palette), colour(found, known.palette))
                rows[shown.index(index)] = np.hstack([shrunk(panel, _PANEL) for panel in panels])
    picture = stacked(_of_all(engine, rows, count))
    return Evaluation(known, len(frames), engine.total(confusion)), picture


def _labeller(
    network: nn.Module,
    sampling: SamplingConfig,
    known: Dataset,
    device: torch.device,
    precision: Precision,
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """From an image and its labels to the labels that are scored."""
    if isinstance(network, Downsampler):
        sampler = Sampler(network.small, network)
        return lambda image, labels: sampled_and_back(labels, sampler.at(image), len(known.classes))
    where = _sampler(network, sampling)
    how = engine_for(network) if where is None else adaptive_engine(network, where)
    runner, resources = how.predictor(device, precision), Resources(1, _BUDGET, precision, device.type)
    return lambda image, labels: label_image(how, runner, image, resources)


def _sampler(network: nn.Module, sampling: SamplingConfig) -> Sampler | None:
    """What labels are read through: with the downsampler as it is now, where that learns too."""
    if sampling.size is None:
        return None
    learning = getattr(network, "sampler", None)
    if isinstance(learning, LearningSampler):
        return Sampler(sampling.size, copy.deepcopy(learning.downsampler).to("cpu").eval())
    return sampler_of(sampling.size, sampling.auxiliary, torch.device("cpu"))


def _of_all(engine: Engine, rows: dict[int, np.ndarray], count: int) -> list[np.ndarray]:
    """Pictures of which each process has some: what the others have adds nothing to them."""
    sizes = np.zeros((count, 3), np.int64)
    for row, picture in rows.items():
        sizes[row] = picture.shape
    sizes = engine.total(sizes)
    return [engine.total(rows.get(row, np.zeros(sizes[row], np.uint8))) for row in range(count)]
