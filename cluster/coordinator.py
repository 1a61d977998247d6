"""A stream of images over many workers: hands out grains, merges results as they arrive, survives lost
workers.

Grains of all images in flight wait in one queue; each worker holds at most two of them, so faster workers
take more and none waits for the network. The next image is read, and planned, when the queue runs low: its
grains start before the last image's end. Only the uint8 image (the part that a tile needs, or what was
sampled) goes out and only class ids, or scores if asked, come back. A grain whose worker died goes back to
the head of the queue, to run without others behind it; Ray restarts the worker.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from fullres.cluster.connection import first_line
from fullres.cluster.crew import Crew
from fullres.cluster.memory import release_store
from fullres.cluster.reading import Read, ReadAhead, Ready
from fullres.cluster.stream import Options, Progress, Task, WorkerState
from fullres.cluster.workers import Done, WorkerRestarted
from fullres.models.full_resolution.steps import Pair
from fullres.ops.errors import NetworkError
from fullres.pipeline.data.images import ImageError, naming
from fullres.pipeline.predict.engines import Engine, GrainOfWork, Merger, PlanOfWork
from fullres.pipeline.predict.schedule import BudgetError

# Two: one runs while the next one's image is on its way.
_HELD = 2
# A grain that so many workers died of is the cause, not the victim.
_ATTEMPTS = 10
# Bytes of a part that travels inside its grain's call; a larger one lies in the object store, once a node.
_INLINE = 64 << 10
# Bytes of results that stay resident here after they are read. Releasing takes a millisecond.
_RELEASED = 64 << 20


@dataclass
class _Job:
    """An image in flight."""

    task: Task
    plan: PlanOfWork
    image: np.ndarray
    parts: list[Any]  # of each tile, or a reference to it
    part_bytes: list[int]
    merger: Merger
    sent: set[tuple[int, str]] = field(default_factory=set)  # which tile's part which node has
    failed: bool = False


@dataclass
class _Work:
    job: _Job
    grain: GrainOfWork
    attempts: int = 0
    alone: bool = False  # it was held by a worker that died, and may be why


Write = Callable[[Task, np.ndarray, np.ndarray], None]


class Coordinator:
    """Runs one network over many images on the workers of the connected Ray cluster."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine, self.options = engine, options
        self.plans: dict[Pair, PlanOfWork] = {}
        self.progress = Progress(images=0)
        self.queue: deque[_Work] = deque()
        self.running: dict[Any, tuple[WorkerState, _Work]] = {}
        self.crew = Crew(engine, options, self.progress)

    def run(
        self,
        tasks: Sequence[Task],
        read: Read,
        write: Write,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> Progress:
        """Label every image: `write(task, image, result)` gets H x W uint8 class ids, or classes x H x W
        scores.

        `read` and `write` run in threads of this process. An image that `read` refuses with ImageError, that
        no plan fits, that ten workers died of or whose `write` meets an OSError is left out and listed in the
        progress with its reason; `strict` raises instead.
        `report` is called about ten times a second. Raises WorkersLost.
        """
        self.progress.images = len(tasks)
        writes: dict[Future[None], Task] = {}
        with (
            closing(ReadAhead(self.engine, self.options, read, tasks, self.plans)) as reads,
            ThreadPoolExecutor(reads.threads) as writers,
        ):
            while reads or self.queue or self.running or writes:
                workers = max(1, len(self.progress.workers))
                low = _HELD * workers  # grains: the queue runs low below it
                reads.start(low, workers)
                # Results that wait to be written hold memory.
                while (
                    reads and len(self.queue) < low and len(writes) < 2 * reads.ahead(low)
                    and (reads.is_ready() or not self.running)
                ):  # fmt: skip
                    self._admit(*reads.take())
                    reads.start(low, workers)
                self._hand_out()
                for job in self._collect():
                    assert job.merger.result is not None
                    writes[writers.submit(write, job.task, job.image, job.merger.result)] = job.task
                for future in [f for f in writes if f.done()]:
                    task = writes.pop(future)
                    self.progress.in_flight -= 1
                    try:
                        future.result()
                        self.progress.done += 1
                    except OSError as error:
                        self._fail(task, f"its results can't be written: {error}")
                self.crew.watch()
                self.progress.elapsed = time.monotonic() - self.progress.begun
                report(self.progress)
        return self.progress

    def wait_for_workers(self) -> None:
        """Until every one has loaded the network."""
        self.crew.wait()

    def close(self) -> None:
        """End the workers; their places are free for others."""
        self.crew.close()

    def _admit(self, task: Task, future: "Future[Ready]") -> None:
        try:
            image, plan, parts = future.result()
        except (ImageError, BudgetError, NetworkError) as error:
            self._fail(task, str(error))
            return
        part_bytes = [part.nbytes for part in parts]
        sent = [part if part.nbytes <= _INLINE else _stored(part) for part in parts]
        self.progress.image_bytes += image.nbytes
        job = _Job(task, plan, image, sent, part_bytes, self.engine.merger(plan, self.options.scores))
        self.queue.extend(_Work(job, grain) for grain in plan.grains)
        self.progress.grains += len(plan.grains)
        self.progress.in_flight += 1

    def _hand_out(self) -> None:
        """Grains to the workers that hold fewest. What may have killed a worker gets one of its own."""
        while self.queue:
            if self.queue[0].job.failed:
                self.queue.popleft()
                continue
            free = [
                w
                for w in self.progress.workers
                if w.info is not None
                and len(w.held) < (1 if self.queue[0].alone else _HELD)
                and not any(work.alone for work in w.held.values())
            ]
            if not free:
                return
            worker = min(free, key=lambda w: len(w.held))
            work = self.queue.popleft()
            tile = work.grain.tile
            reference = worker.handle.run.remote(
                work.job.plan.schedule, work.grain, work.job.parts[tile], self.options.scores
            )
            assert worker.info is not None
            key, size = (tile, worker.info.node), work.job.part_bytes[tile]
            if key not in work.job.sent or size <= _INLINE:  # the workers of a node share one in the store
                work.job.sent.add(key)
                self.progress.bytes_out += size
            worker.held[reference] = work
            self.running[reference] = (worker, work)

    def _collect(self) -> Iterator[_Job]:
        """Wait a moment for results; yields the images that are complete."""
        references = [*self.running, *self.crew.loading]
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0) if references else ([], [])
        if not ready:
            if not references:
                time.sleep(0.01)
                return
            ready, _ = ray.wait(references, num_returns=1, timeout=0.1)
        for reference in ready:  # in the order of `references`: what a worker got first comes first
            if reference in self.crew.loading:
                self.crew.welcome(reference)
                continue
            worker, work = self.running.pop(reference)
            running = next(iter(worker.held.values()))
            del worker.held[reference]
            try:
                done: Done = ray.get(reference)
            except RayTaskError as error:
                if isinstance(error.cause, WorkerRestarted):
                    self._lost(worker, work, running)
                else:
                    self._abandon(work, first_line(error.cause))
                continue
            except (RayActorError, ObjectLostError):  # or the node died that held its result
                self._lost(worker, work, running)
                continue
            if self._merge(worker, work, done):
                yield work.job

    def _merge(self, worker: WorkerState, work: _Work, done: Done) -> bool:
        progress, job = self.progress, work.job
        progress.first_grain = progress.first_grain or time.monotonic()
        worker.busy += done.busy
        worker.grains += 1
        worker.peak_bytes = max(worker.peak_bytes, done.peak_bytes)
        progress.grains_done += 1
        progress.macs_done += work.grain.macs
        unread = progress.bytes_back % _RELEASED + done.result.nbytes
        progress.bytes_back += done.result.nbytes
        complete = not job.failed and job.merger.add(work.grain, done.result)
        if unread >= _RELEASED:
            release_store()
        return complete

    def _lost(self, worker: WorkerState, work: _Work, running: _Work) -> None:
        """A worker died with a grain in hand: the grain goes back to the head of the queue.

        Of the grains that it held the oldest was running, whichever is reported lost first, unless the one
        before was done and its result lost on the way: so each runs alone now, and the next death is its own.
        """
        work.alone = True
        running.attempts += self.crew.lost(worker)
        if work.attempts == _ATTEMPTS:
            self._abandon(work, f"{_ATTEMPTS} workers died of it")
        else:
            self.progress.grains_rerun += 1
            self.queue.appendleft(work)

    def _abandon(self, work: _Work, reason: str) -> None:
        """A grain cannot be computed: its image is left out."""
        if not work.job.failed:
            work.job.failed = True
            self.progress.in_flight -= 1
            self._fail(work.job.task, f"grain {work.grain.index}: {reason}")

    def _fail(self, task: Task, reason: str) -> None:
        if self.options.strict:
            raise ImageError(naming(task.path, reason))
        self.progress.failures[str(task.path)] = reason


def _stored(part: Any) -> Any:
    """A reference. Pixels are contiguous there: workers read them where they lie, and copy others."""
    return ray.put(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
