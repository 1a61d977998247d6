"""The Ray actor that owns one device and a replica of the network, and how such actors are placed."""

import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch
from ray import cloudpickle

from fullres.cluster.memory import forget_peak, peak_resident_bytes, release_store, resident_bytes
from fullres.ops.allocator import RETURNING, suit_allocator
from fullres.pipeline.predict.engines import Engine, GrainOfWork, Runner
from fullres.pipeline.predict.schedule import Precision

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs. `baseline_bytes`: its memory with the network loaded, before any work: resident,
    or allocated on its GPU."""

    host: str
    node: str
    pid: int
    device: str
    baseline_bytes: int


@dataclass(frozen=True)
class Done:
    """One grain's outcome: its result, which has `nbytes`, and the seconds that the device was busy with
    it."""

    result: Any
    busy: float
    peak_bytes: int


@dataclass(frozen=True)
class Packed:
    """An engine on its way to workers, and the folders that the driver imports from."""

    data: bytes
    folders: list[str]


def packed(engine: Engine) -> Packed:
    """What `Worker.load` takes. Networks whose code lies in the current folder are found there."""
    folders = [os.path.abspath(folder) for folder in sys.path]
    return Packed(cloudpickle.dumps(engine), [*folders, os.getcwd()])


class WorkerRestarted(RuntimeError):
    """A grain reached a worker that Ray has restarted and that has no network yet."""


class Worker:
    """One device. On a CPU one thread: workers, not threads, are what uses the cores, and a grain's bytes do
    not depend on how many there are."""

    def __init__(self, precision: Precision, device: Device, memory_budget: int) -> None:
        torch.set_num_threads(1)
        self.device, self.precision, self.memory_budget = torch.device(device), precision, memory_budget
        self.predictor: Runner | None = None
        self.baseline = 0

    def load(self, engine: "Packed") -> WorkerInfo:
        """Make the network ready, and say where this is. Once after each start."""
        # Behind this installation's own packages: a copy of the project there is not what the driver runs.
        sys.path += [folder for folder in engine.folders if folder not in sys.path]
        self.predictor = cloudpickle.loads(engine.data).predictor(self.device, self.precision)
        del engine
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            self.baseline = torch.cuda.memory_allocated(self.device)
        else:
            name = "CPU"
            self.baseline = resident_bytes()
            forget_peak()
        node = ray.get_runtime_context().get_node_id()
        return WorkerInfo(socket.gethostname(), node, os.getpid(), name, self.baseline)

    def run(self, schedule: Any, grain: GrainOfWork, part: Any, scores: bool) -> Done:
        """One grain, computed from its tile's `part`, as the engine has it. Raises WorkerRestarted before
        `load`."""
        if self.predictor is None:
            raise WorkerRestarted
        start = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            release_store()  # the last image's pages, and the last result's
            suit_allocator(schedule.peak_bytes, self.memory_budget)
        result = self.predictor.run(schedule, grain, part, scores)
        busy = time.perf_counter() - start
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = peak_resident_bytes()
        return Done(result, busy, max(0, peak - self.baseline))


def cluster_device() -> Device:
    """CUDA where the cluster has GPUs, else the CPUs."""
    return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"


def places(device: Device) -> int:
    """How many workers the cluster has room for: one a GPU, or one a CPU."""
    return int(ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))


def waiting_for(workers: int, device: Device) -> str:
    """What is asked for and what is there, where no worker has found a place."""
    kind = "GPU" if device == "cuda" else "CPU"
    there, free = (
        int(resources.get(kind, 0)) for resources in (ray.cluster_resources(), ray.available_resources())
    )
    asked = f"{workers} wait for a {kind} each"
    return f"no worker has a place yet: {asked}, the cluster has {there}, {free} free"


def start_worker(precision: Precision, device: Device, memory_budget: int) -> Any:
    """An actor handle. Ray restarts the process when it dies, on another node if it must; whoever waits for a
    grain of it is told (`ray.exceptions.RayActorError`) and gives it to somebody else. It has no network
    before `load`, after a restart neither."""
    options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if device == "cuda" else {"num_cpus": 1}
    options["runtime_env"] = {"env_vars": RETURNING}
    actor = ray.remote(max_restarts=-1, max_task_retries=0, **options)(Worker)
    return actor.remote(precision, device, memory_budget)
