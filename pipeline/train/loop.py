"""Training in one process: the loop around a network and its objective.

Every step draws from generators seeded by (seed, step), so a run that was stopped goes on exactly as if it
had not been, and the same configuration on the same machine ends with the same weights.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.files import atomic, write_bytes_atomically
from fullres.pipeline.data.transforms import normalise
from fullres.pipeline.train import checkpoint
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.network import check_batch, initial_network
from fullres.pipeline.train.objectives import SegmentationLoss
from fullres.pipeline.train.optimizer import freeze, learning_rate, optimizer_for, set_learning_rate
from fullres.pipeline.train.records import Records
from fullres.pipeline.train.samples import Batch, Frames, Samples, class_places
from fullres.pipeline.train.scoring import score

_EVERY = 20  # steps between two reports


@dataclass(frozen=True)
class StepReport:
    """What `fit` tells now and then; means since the last report.

    `images_per_second`; `waiting`: the share of the time that went by until batches were there; `mean_iou`:
    of the last evaluation.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    waiting: float
    mean_iou: float | None


def fit(
    config: TrainingConfig,
    device: torch.device,
    progress: Callable[[StepReport], None] = lambda report: None,
    drop_head: bool = False,
) -> Path:
    """Train to the end, from the last checkpoint in `config.out` if there is one; returns the weights' path.

    Writes into that folder now and then `checkpoint.pt`, `metrics.jsonl` and TensorBoard's files,
    `best.safetensors` when the validation split has a higher mean IoU than before, and at the end
    `weights.safetensors` and `summary.json`. Weights are without auxiliary heads. `drop_head`: see
    `initial_network`.

    Raises ValueError if the folder holds a checkpoint of another configuration, if the network can't be
    trained on such batches or diverges, OSError if it can't write there, and what reading data and weights
    raises.
    """
    check_batch(config.model, config.batch_size // config.accumulation, config.crop)
    samples, validation = _samples(config), None
    if config.data.validation is not None:
        validation = Frames(config.data, config.data.validation)
    torch.manual_seed(config.seed)
    path = config.out / "checkpoint.pt"
    resumed, start = path.exists(), config.model
    if resumed:  # it has all weights: the files of the start may be gone
        start = start.model_copy(update={"weights": None, "backbone_weights": None})
    known = samples.frames.known
    network = initial_network(start, len(known.classes), drop_head)
    for option in CATALOGUE[config.model.name].training_options:
        setattr(network, option, getattr(config, option))
    freeze(config, network)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss_of, optimizer = SegmentationLoss(network, known.ignore_index), optimizer_for(config, network)
    first, course = 0, checkpoint.Course()
    if resumed:
        first, course = checkpoint.load(path, config, network, optimizer)
    checkpoint.check_space(config, network)
    records, meter = Records(config.out, first), _Meter(config)
    batches = samples.batches(config.batch_size, first, config.steps, config.data.workers)
    for step in range(first, config.steps):
        batch = meter.waited_for(batches)
        set_learning_rate(optimizer, learning_rate(config, step))
        course.losses.append(_step(config, step, batch, loss_of, optimizer, device))
        done = step + 1
        ended = done == config.steps
        if validation is not None and config.evaluate_every and (ended or done % config.evaluate_every == 0):
            with meter.standing():
                found = score(network, validation, device, config.precision)
            course.mean_iou = found.mean_iou
            by_class = dict(zip(known.classes, found.to_json()["class_iou"].values(), strict=True))
            records.add(done, {"mean_iou": found.mean_iou, "class_iou": by_class})
            if course.best is None or found.mean_iou > course.best:
                course.best = found.mean_iou
                _write_weights(config, network, config.out / "best.safetensors", known.name)
        if done % _EVERY == 0 or ended:
            report = meter.report(done, course)
            records.add(done, {n: v for n, v in vars(report).items() if n in _RECORDED})
            progress(report)
        if done % config.checkpoint_every == 0 or ended:
            checkpoint.save(path, done, config, network, optimizer, course)
    records.close()
    weights = config.out / "weights.safetensors"
    _write_weights(config, network, weights, known.name)
    summary = {"steps": config.steps, "mean_iou": course.mean_iou, "best_mean_iou": course.best}
    write_bytes_atomically(config.out / "summary.json", json.dumps(summary, indent=1).encode())
    return weights


_RECORDED = {"loss", "learning_rate", "images_per_second", "waiting"}


def _samples(config: TrainingConfig) -> Samples:
    frames, how = Frames(config.data), config.augmentation
    places: list[np.ndarray] = []
    if how.class_uniform:
        places = class_places(frames, min(config.crop))
        if not places:
            raise ValueError(f"class_uniform is {how.class_uniform}: no label map has any class")
    return Samples(frames, how, config.crop, config.seed, config.data.in_memory, places)


def _step(
    config: TrainingConfig,
    step: int,
    batch: Batch,
    loss_of: SegmentationLoss,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> float:
    """One step; its loss. Raises ValueError where that is no finite number, and changes nothing then."""
    torch.manual_seed(config.seed * 1_000_003 + step)  # this step's phases and dropout
    optimizer.zero_grad()
    total = 0.0
    for index in range(config.accumulation):
        part = batch.part(index, config.accumulation)
        inputs = normalise(part.images.to(device), torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = loss_of(inputs, part.labels.to(device).long()) / config.accumulation
        loss.backward()
        total += loss.item()
    if not math.isfinite(total):
        raise ValueError(
            f"loss is {total} at step {step}: lower learning_rate (now {config.learning_rate}); its batch: "
            + ", ".join(batch.files)
        )
    if config.gradient_clipping is not None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, config.gradient_clipping)
    optimizer.step()
    return total


def _write_weights(config: TrainingConfig, network: nn.Module, path: Path, dataset: str) -> None:
    heads, network.auxiliary = getattr(network, "auxiliary", None), None  # type: ignore[assignment]
    try:
        info = WeightsInfo(config.model.name, config.model.width, _classes(config), dataset)
        with atomic(path) as temporary:
            save_weights(
                network, temporary, info, torch.float16 if config.save_as == "fp16" else torch.float32
            )
    finally:
        network.auxiliary = heads  # type: ignore[assignment]


def _classes(config: TrainingConfig) -> int:
    return len(config.data.known().classes)


class _Meter:
    """Times since the last report."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self._start()

    def _start(self) -> None:
        self.images, self.waited, self.begun = 0, 0.0, time.monotonic()

    def waited_for(self, batches: Iterator[Batch]) -> Batch:
        before = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - before
        self.images += len(batch.files)
        return batch

    @contextmanager
    def standing(self) -> Iterator[None]:
        """What happens inside is not of the training's time."""
        before = time.monotonic()
        yield
        self.begun += time.monotonic() - before

    def report(self, done: int, course: checkpoint.Course) -> StepReport:
        """Takes the losses out of `course`."""
        passed = max(1e-9, time.monotonic() - self.begun)
        report = StepReport(
            done, self.config.steps, sum(course.losses) / len(course.losses),
            learning_rate(self.config, done - 1), self.images / passed, self.waited / passed, course.mean_iou,
        )  # fmt: skip
        course.losses.clear()
        self._start()
        return report
