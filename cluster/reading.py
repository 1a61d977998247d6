"""Images on their way to workers: read, planned and cut into parts by threads, before they are asked for."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch

from fullres.cluster.stream import Options, Task
from fullres.models.full_resolution.steps import Pair
from fullres.pipeline.predict.engines import Engine, PlanOfWork, Resources

Read = Callable[[Path], np.ndarray]


class Ready(NamedTuple):
    """An image with its plan, and of each tile what its grains are computed from (`Engine.parts`)."""

    image: np.ndarray
    plan: PlanOfWork
    parts: Sequence[Any]


class ReadAhead:
    """Reads `tasks` in their order. `plans`: by image size, kept from one stream to the next."""

    def __init__(
        self,
        engine: Engine,
        options: Options,
        read: Read,
        tasks: Sequence[Task],
        plans: dict[Pair, PlanOfWork],
    ) -> None:
        self.engine, self.options, self.read, self.plans = engine, options, read, plans
        self.images, self.waiting = len(tasks), deque(tasks)
        self.reading: deque[tuple[Task, Future[Ready]]] = deque()
        self.planning = Lock()
        self.threads = max(2, os.cpu_count() or 1)
        # Engines compute with what they read: each thread alone, as there may be one a core.
        one_thread = partial(torch.set_num_threads, 1)
        self.pool = ThreadPoolExecutor(self.threads, initializer=one_thread)

    def __bool__(self) -> bool:
        """Whether there are images yet."""
        return bool(self.waiting or self.reading)

    def ahead(self, grains: int) -> int:
        """How many images have so many grains, two or more: of large images few are held in memory."""
        an_image = max((len(plan.grains) for plan in list(self.plans.values())), default=grains)
        return min(max(2, grains // an_image), self.threads)

    def start(self, grains: int, workers: int) -> None:
        """Begin to read what so many grains take, for so many workers."""
        while self.waiting and len(self.reading) < self.ahead(grains):
            task = self.waiting.popleft()
            self.reading.append((task, self.pool.submit(self._ready, task.path, workers)))

    def is_ready(self) -> bool:
        """Whether `take` need not wait."""
        return bool(self.reading) and self.reading[0][1].done()

    def take(self) -> tuple[Task, Future[Ready]]:
        """The next image, of those that were started."""
        return self.reading.popleft()

    def close(self) -> None:
        """Read no more."""
        self.pool.shutdown(cancel_futures=True)

    def _ready(self, path: Path, workers: int) -> Ready:
        image = self.read(path)
        size = (image.shape[0], image.shape[1])
        with self.planning:
            if size not in self.plans:
                options = self.options
                resources = Resources(
                    workers, options.memory_budget, options.precision, options.device, self.images
                )
                self.plans[size] = self.engine.plan(size, resources, options.scores)
        plan = self.plans[size]
        return Ready(image, plan, self.engine.parts(plan, image))
