"""How far a training is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """What `loop.fit` tells now and then; means since the last report.

    `images_per_second`; `waiting`: the share of the time that went by until batches were there; `memory`: the
    most that the first process had so far, MiB, of the GPU where there is one; `mean_iou`: of the last
    evaluation, over the target classes of a downsampler that has some.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    waiting: float
    memory: float
    mean_iou: float | None
