"""Checkpoints of a training: whole or not at all, of one configuration.

Each is a file of its step, `checkpoints/step-00000500.pt`, in the training's folder. The newest is gone on
from, and never silently another one.
"""

import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fullres.models.checkpoints import damaged_entry
from fullres.models.weights import WeightsInfo, not_finite, weights_file
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.predict.sampler import load_downsampler
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.network import SAMPLER, without_training_parts
from fullres.pipeline.train.optimizer import MOMENTS

_ENTRIES = {"step", "config", "network", "optimizer", "loss_scale", "course"}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
BEST, WEIGHTS = "best.safetensors", "weights.safetensors"


@dataclass
class Course:
    """What a training remembers beside its weights. losses: since the last report. mean_iou: of the last
    evaluation. best: the highest so far, after `best_step` steps."""

    losses: list[float] = field(default_factory=list)
    mean_iou: float | None = None
    best: float | None = None
    best_step: int | None = None


def name_of(step: int) -> str:
    """The file of a checkpoint in the training's folder."""
    return f"checkpoints/step-{step:08d}.pt"


def saved(out: Storage) -> list[int]:
    """The steps of all checkpoints, rising. Raises OSError."""
    found = (re.fullmatch(r"checkpoints/step-(\d+)\.pt", name) for name in out.names("checkpoints"))
    return sorted(int(match[1]) for match in found if match)


def check_space(config: TrainingConfig, out: Storage, network: nn.Module) -> None:
    """Make the folder. Raise OSError now where the checkpoints would not fit that are there at a time: those
    that are kept and the one that is written."""
    if not out.is_local:
        return
    folder = Path(out.path)
    folder.mkdir(parents=True, exist_ok=True)
    moments = MOMENTS[config.optimizer]
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    needed = sum(t.nbytes for t in network.state_dict().values()) + trained * moments
    count = config.keep_checkpoints + 1 + (config.evaluate_every is not None)
    more = max(1, count - len(saved(out)))
    free = shutil.disk_usage(folder).free
    if free < needed * more:
        raise OSError(
            f"{out.location}: a checkpoint takes {needed >> 20} MiB, {more} more will lie here at a time; the"
            f" disk has {free >> 20} MiB free"
        )


class Writer:
    """Writes checkpoints beside the training, in a thread, each from a copy in the memory of the host. At the
    end of its block all is written.

    What writing raises is raised by the next call, or at the end of the block: ValueError for weights that
    are no finite numbers, OSError where a file cannot be written; the last checkpoint stays.
    """

    def __init__(self, config: TrainingConfig, out: Storage) -> None:
        self.config, self.out = config, out
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.check()

    def check(self) -> None:
        if self._last is not None and self._last.done():
            self._last.result()

    def save(self, step: int, state: dict[str, Any], course: Course) -> None:
        """`state`: an engine's. Waits until the one before is written. Where the evaluation of this step is
        the best, its weights become a file too. Older checkpoints than the configuration keeps go."""
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(self._write, step, _copied(state), deepcopy(course))

    def _write(self, step: int, state: dict[str, Any], course: Course) -> None:
        save(self.out, step, self.config, state, course)
        if course.best_step == step:
            write_weights(self.out, BEST, self.config, state["network"])
        there = saved(self.out)
        for old in set(there) - {*there[-self.config.keep_checkpoints :], course.best_step}:
            self.out.remove(name_of(old))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def save(out: Storage, step: int, config: TrainingConfig, state: dict[str, Any], course: Course) -> None:
    """Raises as `Writer` says."""
    if (name := not_finite(state["network"])) is not None:
        raise ValueError(
            f"{name} holds values that are no finite numbers at step {step}: lower learning_rate "
            f"(now {config.learning_rate})"
        )
    state = {"step": step, "config": config.identity(), "course": vars(course), **state}
    with out.create(name_of(step)) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's word for what the file refuses
            where = out.locate(name_of(step))
            raise OSError(
                f"{where}: can't be written, the disk may be full; the last checkpoint stays"
            ) from error


def write_weights(out: Storage, name: str, config: TrainingConfig, network: Mapping[str, Tensor]) -> None:
    """Of a network's state dict all but auxiliary heads, as a weights file; of a downsampler that learned
    beside it another one before, `sampler-NAME`. Raises WeightsError, OSError."""
    known = config.data.known()
    of_model = config.model
    info = WeightsInfo(of_model.name, of_model.width, len(known.classes), known.name, of_model.like)
    dtype = _DTYPES[config.save_as]
    if learned := {n.removeprefix(SAMPLER): t for n, t in network.items() if n.startswith(SAMPLER)}:
        began = load_downsampler(str(config.sampling.auxiliary), torch.device("cpu"))
        kind, width = f"downsampler{began.grid}", began.channels / 256
        own = WeightsInfo(kind, width, len(known.classes), known.name)
        out.write(f"sampler-{name}", weights_file(learned, own, dtype))
    out.write(name, weights_file(without_training_parts(network), info, dtype))


def load(out: Storage, step: int, config: TrainingConfig, fill: Callable[[dict[str, Any]], None]) -> Course:
    """`fill` an engine; the course of the steps done. Raises ValueError for a file that is damaged, or of
    something else."""
    where, before = out.locate(name_of(step)), [other for other in saved(out) if other < step]
    remedy = "remove it to " + (f"go on from step {before[-1]}" if before else "start afresh")
    with out.fetch(name_of(step)) as file:
        if (entry := damaged_entry(file)) is not None:
            raise ValueError(f"{where} is damaged ({entry}); {remedy}")
        file.seek(0)
        try:
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
        except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError):
            state = None
    if not isinstance(state, dict) or state.keys() != _ENTRIES:
        raise ValueError(f"{where} is no checkpoint of a training; {remedy}")
    if state["config"] != config.identity():
        raise ValueError(f"{where} is of another configuration; give another `out`, or use --from-scratch")
    try:
        fill(state)
        return Course(**state["course"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is of another network; {remedy}") from error


def forget(out: Storage) -> None:
    """Remove what a training left that another would go on from, or be taken for its own. Raises OSError."""
    for name in (BEST, WEIGHTS, "summary.json", *map(name_of, saved(out))):
        out.remove(name)
