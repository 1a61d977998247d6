"""The loop of a training, around an engine that computes its steps.

Every step draws from generators seeded by (seed, step), so a run that was stopped goes on exactly as if it
had not been, and the same configuration on the same machine ends with the same weights.
"""

import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np
import torch

from fullres.ops.allocator import keep_freed_memory
from fullres.ops.metrics import mean_score
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.targets.compute import class_ids
from fullres.pipeline.train import checkpoint
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import Engine, PlainEngine, objective_of
from fullres.pipeline.train.network import check_batch
from fullres.pipeline.train.optimizer import learning_rate
from fullres.pipeline.train.ownership import OwnFolder
from fullres.pipeline.train.places import kept_places
from fullres.pipeline.train.records import Records
from fullres.pipeline.train.report import StepReport
from fullres.pipeline.train.samples import Batch, Frames, Samples
from fullres.pipeline.train.scoring import score

_RECORDED = {"loss", "learning_rate", "images_per_second", "waiting", "memory"}


def fit(
    config: TrainingConfig,
    device: torch.device,
    progress: Callable[[StepReport], None] = lambda report: None,
    drop_head: bool = False,
    from_scratch: bool = False,
) -> str:
    """Train in this process to the end, as `run` says. `drop_head`: see `initial_network`. `from_scratch`:
    nothing of the training before stays, once all that this one starts from is there."""
    goes_on = begun(config) > 0 and not from_scratch
    check_batch(config.model, config.batch_size // config.accumulation, config.input_size)
    samples = samples_of(config)
    objective = objective_of(config, samples.frames.known, goes_on, drop_head)
    out = OwnFolder(config.out)
    if from_scratch:
        checkpoint.forget(out)
    return run(config, samples, PlainEngine(config, objective, device), out, begun(config), progress)


def begun(config: TrainingConfig) -> int:
    """The steps done of the checkpoint that a run goes on from; 0: there is none."""
    return max(checkpoint.saved(Storage(config.out)), default=0)


def samples_of(config: TrainingConfig) -> Samples:
    """Raises what reading the data raises, and ValueError where no label map has any class to be drawn."""
    frames, how = Frames(config.data), config.augmentation
    places = places_of(config, frames)
    return Samples(frames, how, config.crop, config.seed, config.data.in_memory, places)


def places_of(config: TrainingConfig, frames: Frames) -> list[np.ndarray]:
    """By class where it is, if samples are drawn by class. Found once, and kept in `config.out`."""
    share = config.augmentation.class_uniform
    if not share:
        return []
    places = kept_places(frames, min(config.crop), Storage(config.out))
    if not places:
        raise ValueError(f"class_uniform is {share}: no label map has any class")
    return places


def run(
    config: TrainingConfig,
    samples: Samples,
    engine: Engine,
    out: Storage,
    first: int,
    progress: Callable[[StepReport], None] = lambda report: None,
) -> str:
    """All steps from `first`, which has a checkpoint in `out` if it is not 0; returns where the weights are.

    Writes into that folder now and then a checkpoint, `metrics.jsonl` and TensorBoard's files, `pictures` and
    `best.safetensors` with the checkpoint of an evaluation that has a higher mean IoU than those before, and
    at the end `weights.safetensors` and `summary.json`. Weights are without auxiliary heads. Of several
    processes the first writes, to whom the folder belongs (`OwnFolder`).

    Raises what `OwnFolder` raises, ValueError if the folder holds a checkpoint of another configuration or
    the network diverges, OSError if it can't write there, and what reading data raises.
    """
    if engine.device.type == "cpu":
        keep_freed_memory(True)
    validation = Frames(config.data, config.data.validation) if config.data.validation is not None else None
    course = checkpoint.Course()
    if first:
        course = checkpoint.load(out, first, config, engine.load_state)
    leads, network = engine.rank == 0, engine.network()
    if leads:
        checkpoint.check_space(config, out, network)
        out.sweep("checkpoints", "step-")
        if course.best_step == first > 0:  # its process may have died before it wrote them
            checkpoint.write_weights(out, checkpoint.BEST, config, network.state_dict())
    records = Records(out, first) if leads else None
    meter = _Meter(config)
    batches = samples.batches(
        config.batch_size,
        first,
        config.steps,
        config.data.workers,
        engine.replica,
        engine.replicas,
        config.accumulation,
    )
    with closing(batches), checkpoint.Writer(config, out) as writer:  # the former ends processes that read
        for step in range(first, config.steps):
            batch = meter.waited_for(batches)
            course.losses.append(engine.step(step, batch, learning_rate(config, step)))
            done, ended = step + 1, step + 1 == config.steps
            if validation is not None and (ended or done % (config.evaluate_every or 1) == 0):
                with meter.standing():
                    _evaluate(config, done, engine, validation, course, records)
            if done % config.report_every == 0 or ended:
                report = meter.report(done, course)
                if records is not None:
                    records.add(done, {n: v for n, v in vars(report).items() if n in _RECORDED})
                    progress(report)
            if done % config.checkpoint_every == 0 or ended or course.best_step == done:
                state = engine.state()
                if records is not None:
                    records.hand_over(done)
                    writer.save(done, state, course)
            writer.check()
    network = engine.network()
    if records is not None:
        records.close()
        checkpoint.write_weights(out, checkpoint.WEIGHTS, config, network.state_dict())
        summary = {"steps": config.steps, "mean_iou": course.mean_iou, "best_mean_iou": course.best}
        out.write("summary.json", json.dumps(summary, indent=1).encode())
    return out.locate(checkpoint.WEIGHTS)


def _evaluate(
    config: TrainingConfig,
    done: int,
    engine: Engine,
    validation: Frames,
    course: checkpoint.Course,
    records: Records | None,
) -> None:
    """The mean IoU, of a downsampler's target classes where it has some, goes into `course`; where none was
    better, the step too."""
    precision: Precision = "bf16" if config.precision == "bf16" else "fp32"
    found, picture = score(engine.network(), validation, engine, precision, config.sampling)
    wanted = class_ids(found.dataset, config.sampling.target_classes or None)
    course.mean_iou = mean_score(found.class_iou, wanted)
    if course.best is None or course.mean_iou > course.best:
        course.best, course.best_step = course.mean_iou, done
    if records is not None:
        records.add(done, {"mean_iou": course.mean_iou, "class_iou": found.to_json()["class_iou"]})
        records.show(done, picture)


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _mean(losses: list[float]) -> float:
    """Without those that overflowed in fp16, whose steps were skipped."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan


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
        self.images += self.config.batch_size
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
            done, self.config.steps, _mean(course.losses),
            learning_rate(self.config, done - 1), self.images / passed, self.waited / passed,
            _memory(), course.mean_iou,
        )  # fmt: skip
        course.losses.clear()
        self._start()
        return report
