"""Checkpoints of a training: whole or not at all, of one configuration."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fullres.models.weights import damaged_entry, not_finite
from fullres.pipeline.data.files import atomic
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.optimizer import MOMENTS

_ENTRIES = {"step", "config", "network", "optimizer", "loss_scale", "course"}


@dataclass
class Course:
    """What a training remembers beside its weights. losses: since the last report. mean_iou: of the last
    evaluation. best: the highest so far."""

    losses: list[float] = field(default_factory=list)
    mean_iou: float | None = None
    best: float | None = None


def check_space(config: TrainingConfig, network: nn.Module) -> None:
    """Make the folder. Raise OSError now where a checkpoint would not fit beside the last one."""
    config.out.mkdir(parents=True, exist_ok=True)
    moments = MOMENTS[config.optimizer]
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    needed = sum(t.nbytes for t in network.state_dict().values()) + trained * moments
    free = shutil.disk_usage(config.out).free
    if free < needed:
        raise OSError(
            f"{config.out}: a checkpoint takes {needed >> 20} MiB, the disk has {free >> 20} MiB free"
        )


def save(path: Path, step: int, config: TrainingConfig, state: dict[str, Any], course: Course) -> None:
    """`state`: an engine's. Raises ValueError for weights that are no finite numbers, OSError where it cannot
    be written; the last checkpoint stays."""
    if (name := not_finite(state["network"])) is not None:
        raise ValueError(
            f"{name} holds values that are no finite numbers at step {step}: lower learning_rate "
            f"(now {config.learning_rate})"
        )
    state = {"step": step, "config": config.identity(), "course": vars(course), **state}
    with atomic(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's word for what the file refuses
            raise OSError(
                f"{path}: can't be written, the disk may be full; the last checkpoint stays"
            ) from error


def load(path: Path, config: TrainingConfig, fill: Callable[[dict[str, Any]], None]) -> tuple[int, Course]:
    """`fill` an engine; the steps done and their course. Raises ValueError for a file that is damaged, or of
    something else."""
    if (entry := damaged_entry(path)) is not None:
        raise ValueError(f"{path} is damaged ({entry}); remove it to start afresh")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError):
        state = None
    if not isinstance(state, dict) or state.keys() != _ENTRIES:
        raise ValueError(f"{path} is no checkpoint of a training; remove it to start afresh")
    if state["config"] != config.identity():
        raise ValueError(f"{path} is of another configuration; give another `out` or remove it")
    try:
        fill(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is of another network; remove it to start afresh") from error
    return state["step"], Course(**state["course"])
