"""What a stream of images over many workers is asked to do, and what has happened to it so far."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fullres.cluster.workers import Device, WorkerInfo
from fullres.pipeline.predict.schedule import Precision


@dataclass(frozen=True)
class Task:
    """One image to label."""

    path: Path
    stem: Path


@dataclass(frozen=True)
class Options:
    """How to run. `workers` None: as many as the cluster has room for, also when it grows."""

    precision: Precision
    memory_budget: int
    workers: int | None
    device: Device
    scores: bool = False
    strict: bool = False


@dataclass
class WorkerState:
    """One worker as the coordinator sees it."""

    name: str
    handle: Any
    info: WorkerInfo | None = None  # None: starting, or starting again
    started: float = 0.0
    busy: float = 0.0
    grains: int = 0
    restarts: int = 0
    lost: bool = False  # died, and not back yet
    peak_bytes: int = 0
    held: dict[Any, Any] = field(default_factory=dict)  # the work of each reference, oldest first


@dataclass
class Progress:
    """What has happened so far; updated in place."""

    images: int
    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    grains: int = 0
    grains_done: int = 0
    grains_rerun: int = 0
    macs_done: int = 0
    in_flight: int = 0  # images handed out and not complete
    bytes_out: int = 0
    bytes_back: int = 0
    image_bytes: int = 0
    workers: list[WorkerState] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # workers that can't take part, and why
    waiting: str = ""  # why no worker is there yet, where that takes long
    begun: float = field(default_factory=time.monotonic)
    first_grain: float | None = None
    elapsed: float = 0.0
