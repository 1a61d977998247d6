"""Training on a Ray cluster: Ray Train places the processes, joins them and starts them again when one dies;
each goes on from the last checkpoint.

The driver watches through an actor, the board, on which the first process writes its reports, and any process
what ended the training, a mistake in the data for one: then nothing is started again.
"""

import os
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import FailureConfig, RunConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from fullres.cluster.board import Board
from fullres.cluster.connection import first_line
from fullres.cluster.deepspeed_engine import DeepSpeedEngine
from fullres.cluster.elastic import ElasticTrainer
from fullres.cluster.pipeline_engine import PipelineEngine
from fullres.cluster.workers import cluster_device, places
from fullres.ops.allocator import KEEPING
from fullres.ops.errors import FullresError
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.train.checkpoint import WEIGHTS, forget
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import objective_of
from fullres.pipeline.train.loop import begun, places_of, run, samples_of
from fullres.pipeline.train.network import check_batch
from fullres.pipeline.train.ownership import OwnFolder
from fullres.pipeline.train.report import StepReport
from fullres.pipeline.train.samples import Frames
from fullres.pipeline.train.stages import described

_LOOKS = 0.25  # seconds between two looks at the board
# Ray Train's own: how often it asks whether its processes live, how long it waits for a place for them.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}  # fmt: skip


class TrainingError(FullresError):
    """The training cannot go on; one line."""


def fit(
    config: TrainingConfig,
    workers: int | None,
    progress: Callable[[StepReport], None] = lambda report: None,
    drop_head: bool = False,
    from_scratch: bool = False,
) -> str:
    """Train on the connected Ray cluster with so many processes, one a GPU or one a CPU, or None: as many as
    `config.parallel` says; returns where the weights are. As `pipeline.train.loop.run`, whose files all
    processes must reach. `from_scratch`: nothing of the training before stays, after all checks.

    Raises ValueError for what is not possible, TrainingError, and what reading the data raises.
    """
    device = cluster_device()
    config = config.model_copy(update={"parallel": config.parallel.of(workers)})
    counts = config.worker_counts()
    if counts[0] > (there := places(device)):
        kind = "GPU" if device == "cuda" else "CPU"
        raise ValueError(f"workers is {counts[0]}: each takes a {kind}, the cluster has {there}")
    check_batch(config.model, config.batch_size // config.accumulation, config.input_size)
    if config.parallel.pipeline > 1:
        for count in counts:
            described(config.on(count))
    # What is not there, or does not fit, is said before any work; workers do both again for themselves.
    frames = Frames(config.data)
    places_of(config, frames)
    objective_of(config, frames.known, begun(config) > 0 and not from_scratch, drop_head)
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    training = uuid.uuid4().hex
    if from_scratch:
        forget(OwnFolder(config.out, training))
    # On the driver's own node: whichever other is lost, what was told stays.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    board: Any = ray.remote(num_cpus=0, label_selector=here)(Board).remote()
    resources: dict[str, float] = {"GPU": 1} if device == "cuda" else {"CPU": 1}
    out = Storage(config.out)
    config = config.model_copy(update={"out": out.anywhere})
    trainer = ElasticTrainer(
        _work,
        counts=counts,
        ended=partial(_has_failed, board),
        train_loop_config={
            "config": config,
            "drop_head": drop_head,
            "board": board,
            "training": training,
            "device": device,
            "folder": Path.cwd(),
        },
        use_gpu=device == "cuda",
        resources_per_worker=resources,
        run_config=RunConfig(
            name="ray",
            storage_path=out.path,
            storage_filesystem=out.files,
            failure_config=FailureConfig(max_failures=-1),
            # A training runs in a thread of its process: `keep_freed_memory` comes too late for it.
            worker_runtime_env={"env_vars": KEEPING} if device == "cpu" else {},
        ),
        torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
    )
    ended: list[BaseException | None] = []
    thread = Thread(target=_fit, args=(trainer, ended), daemon=True)
    thread.start()
    shown, failure = None, None
    while True:
        alive = thread.is_alive()
        report, failure = ray.get(board.told.remote())
        if report is not None and report != shown:
            shown = report
            progress(report)
        if not alive or failure is not None:
            break
        time.sleep(_LOOKS)
    thread.join(60)
    ray.kill(board)
    if failure is not None:
        raise TrainingError(failure)
    if ended and ended[0] is not None:
        raise TrainingError(_in_one_line(ended[0])) from ended[0]
    return out.locate(WEIGHTS)


def _has_failed(board: Any) -> bool:
    """Whether it was told what ended the training."""
    return ray.get(board.told.remote())[1] is not None


def _fit(trainer: ElasticTrainer, ended: list[BaseException | None]) -> None:
    try:
        trainer.fit()
        ended.append(None)
    except BaseException as error:
        ended.append(error)


def _in_one_line(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None)
    if isinstance(error, TrainingFailedError) and failures:
        rank, cause = min(failures.items())
        return f"worker {rank}: {first_line(cause)}"
    return first_line(getattr(error, "controller_failure", error))  # its own first line says nothing


def _work(settings: dict[str, Any]) -> None:
    """One process of a training."""
    config, board = settings["config"], settings["board"]
    if settings["folder"].is_dir():  # Ray Train leaves it, and paths in the configuration may be relative
        os.chdir(settings["folder"])
    config = config.on(dist.get_world_size())  # as many as Ray Train found room for
    torch.set_num_threads(1)
    device = torch.device(settings["device"])
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    group = _of_first(lambda: ray.get(board.begin.remote(begun(config), dist.get_world_size())))
    if _has_failed(board):
        return
    try:
        out, done = _begin(config, settings["training"])
        samples = samples_of(config)
        objective = objective_of(config, samples.frames.known, done > 0, settings["drop_head"])
        kind = PipelineEngine if config.parallel.pipeline > 1 else DeepSpeedEngine
        engine = kind(config, objective, device)

        def report(report: StepReport) -> None:
            board.write.remote(group, report)

        run(config, samples, engine, out, done, report)
    except (FullresError, OSError, ValueError) as error:
        ray.get(board.fail.remote(group, first_line(error)))
        raise
    except Exception as error:
        ray.get(board.note.remote(group, first_line(error)))
        raise
    dist.barrier()


def _begin(config: TrainingConfig, training: str) -> tuple[Storage, int]:
    """The folder, and the steps done. Those who wrote there before are shut out first: all go on from the
    same checkpoint, and find it there."""
    out = OwnFolder(config.out, training) if dist.get_rank() == 0 else Storage(config.out)
    return out, _of_first(lambda: begun(config))


def _of_first(value: Callable[[], int]) -> int:
    """What the first process finds, for all."""
    told = [value() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told)
    return told[0]  # type: ignore[return-value]
