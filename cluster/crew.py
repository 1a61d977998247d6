"""The workers of a stream: started, given the network, asked again after a restart, joined by those of new
nodes."""

import time
from collections import deque
from itertools import count
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from fullres.cluster.connection import first_line
from fullres.cluster.stream import Options, Progress, WorkerState
from fullres.cluster.workers import packed, places, start_worker, waiting_for
from fullres.ops.errors import FullresError
from fullres.pipeline.predict.engines import Engine

_RESTART_POLL = 0.2  # seconds until a worker that is being restarted is asked again
_CLUSTER_POLL = 5.0  # seconds between looks for new nodes
_PATIENCE = 20.0  # seconds without a worker until that is said


class WorkersLost(FullresError, RuntimeError):
    """No worker could be started, or none can load the network."""


class Crew:
    """Ray restarts a worker that died; then it has no network, and is given it again. What is known of each
    worker stands in `progress.workers`. `loading`: of each that is, the reference by which it will answer."""

    def __init__(self, engine: Engine, options: Options, progress: Progress) -> None:
        self.options, self.progress = options, progress
        self.sent_engine = ray.put(packed(engine))
        self.loading: dict[Any, WorkerState] = {}
        self.restarting: deque[tuple[float, WorkerState]] = deque()
        self.polled = time.monotonic()
        self.names = (f"w{i}" for i in count())
        for _ in range(options.workers or max(1, places(options.device))):
            self._add()

    def wait(self) -> None:
        """Until every worker has loaded the network."""
        while self.loading or self.restarting:
            ready, _ = ray.wait(list(self.loading), num_returns=1, timeout=0.1) if self.loading else ([], [])
            for reference in ready:
                self.welcome(reference)
            self.watch()

    def close(self) -> None:
        """End the workers; their places are free for others."""
        for worker in self.progress.workers:
            ray.kill(worker.handle)

    def lost(self, worker: WorkerState) -> bool:
        """It died: have it load the network as soon as it is back. False: that was known."""
        if worker.info is None:
            return False
        worker.info = None
        self._count_loss(worker)
        self._load(worker)
        return True

    def welcome(self, reference: Any) -> None:
        """A worker that was loading has answered: it is there (again), or will never be. Raises
        WorkersLost."""
        worker = self.loading.pop(reference)
        try:
            worker.info = ray.get(reference)
            worker.started = worker.started or time.monotonic()
            worker.lost = False
        except ActorUnavailableError:  # died while loading, or is being restarted: then it answers so at once
            self._count_loss(worker)
            self.restarting.append((time.monotonic() + _RESTART_POLL, worker))
        except RayActorError as error:
            self._leave_out(worker, "no worker could be started", error)
        except RayTaskError as error:
            self._leave_out(worker, "no worker can load the network", error.cause)

    def watch(self) -> None:
        """Ask again those that restart; add workers for nodes that have joined."""
        while self.restarting and self.restarting[0][0] < time.monotonic():
            self._load(self.restarting.popleft()[1])
        self._watch_for_places()
        if self.options.workers is not None or time.monotonic() - self.polled < _CLUSTER_POLL:
            return
        self.polled = time.monotonic()
        taken = len(self.progress.workers) + len(self.progress.left_out)
        for _ in range(places(self.options.device) - taken):
            self._add()

    def _add(self) -> None:
        handle = start_worker(self.options.precision, self.options.device, self.options.memory_budget)
        worker = WorkerState(next(self.names), handle)
        self.progress.workers.append(worker)
        self._load(worker)

    def _load(self, worker: WorkerState) -> None:
        self.loading[worker.handle.load.remote(self.sent_engine)] = worker

    def _count_loss(self, worker: WorkerState) -> None:
        """Once until it is back, however often it is asked meanwhile."""
        worker.restarts += not worker.lost
        worker.lost = True

    def _leave_out(self, worker: WorkerState, what: str, error: BaseException) -> None:
        """Another node may lack a library, or memory: the rest goes on without it while there is one."""
        ray.kill(worker.handle)
        self.progress.workers.remove(worker)
        self.progress.left_out[worker.name] = first_line(error)
        if not self.progress.workers:
            raise WorkersLost(f"{what}: {first_line(error)}") from error

    def _watch_for_places(self) -> None:
        """Ray lets actors wait for nodes to join, for ever: say what they wait for."""
        if any(w.started for w in self.progress.workers):
            self.progress.waiting = ""
        elif not self.progress.waiting and time.monotonic() - self.progress.begun > _PATIENCE:
            self.progress.waiting = waiting_for(len(self.progress.workers), self.options.device)
