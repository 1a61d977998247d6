"""`fullres bench memory`: what a worker of a training takes in memory, by ZeRO stage, beside the estimate.

Processes that train together, without Ray and without data to read, take a few steps on noise; new ones for
each stage, and one of plain torch with as large a part of the batch. Of each the most that it had is measured
beyond what it had before its network was made, but after a narrow one was trained: on a GPU what was
allocated there, on a CPU what was resident, with freed memory going back to the system at once. The largest
of the processes counts.
"""

import gc
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing
import typer
from rich.table import Table

from fullres.cluster.deepspeed_engine import DeepSpeedEngine
from fullres.cluster.memory import forget_peak, peak_resident_bytes, resident_bytes
from fullres.jobs.common import check_model, print_table
from fullres.ops.allocator import RETURNING, keep_freed_memory
from fullres.pipeline.train.config import Precision, TrainingConfig
from fullres.pipeline.train.engine import PlainEngine, objective_of
from fullres.pipeline.train.layout import ParallelConfig
from fullres.pipeline.train.memory import memory_of
from fullres.pipeline.train.network import check_batch
from fullres.pipeline.train.samples import Batch

_CLASSES, _STEPS = 19, 3


def memory(
    model: Annotated[str, typer.Option(help="A network of the catalogue.")] = "fcn8s18",
    width: Annotated[float, typer.Option(min=0.01)] = 1.0,
    crop: Annotated[int, typer.Option(min=32)] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], typer.Option()] = "adam",
    precision: Annotated[Precision, typer.Option()] = "fp32",
    workers: Annotated[int, typer.Option(min=1)] = 2,
    activation_checkpointing: Annotated[bool, typer.Option("--activation-checkpointing")] = False,
) -> None:
    """Measure the memory of a training's workers, and compare the estimate of --dry-run."""
    check_model(model)
    if batch_size % workers:
        raise typer.BadParameter(f"batch_size is {batch_size}: no multiple of {workers} workers")
    os.environ.update(RETURNING | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)})  # for processes to be started
    table = Table(box=None, pad_edge=False)
    for heading in ("ZeRO", "estimate, MiB", "measured, MiB", "estimate / measured"):
        table.add_column(heading, no_wrap=True)
    given: dict[str, Any] = {
        "model": {"name": model, "width": width}, "steps": _STEPS,
        "data": {"dataset": "scenes", "images": "none", "labels": "none"}, "out": "none",
        "crop": (crop, crop), "optimizer": optimizer, "precision": precision, "learning_rate": 1e-6,
        "activation_checkpointing": activation_checkpointing,
    }  # fmt: skip
    alone = TrainingConfig(**given, batch_size=batch_size // workers)
    try:
        check_batch(alone.model, alone.batch_size, alone.crop)
    except ValueError as error:
        raise typer.BadParameter(f"a worker's part: {error}") from error
    configs = {"no workers": alone}
    for stage in (0, 1, 2, 3):
        layout = ParallelConfig(data=workers, zero=stage)
        configs[str(stage)] = TrainingConfig(**given, batch_size=batch_size, parallel=layout)
    for name, config in configs.items():
        estimate, measured = memory_of(config, _CLASSES, torch.cuda.is_available()).total, _measured(config)
        table.add_row(
            name, f"{estimate / 2**20:.0f}", f"{measured / 2**20:.0f}", f"{estimate / measured:.2f}"
        )
    print_table(table, 110)


def _measured(config: TrainingConfig) -> int:
    """Bytes of the largest process."""
    workers = config.parallel.workers or 1
    with tempfile.TemporaryDirectory() as name:
        torch.multiprocessing.spawn(_work, (config, workers, Path(name)), workers)
        return max(int((Path(name) / str(rank)).read_text()) for rank in range(workers))


def _work(rank: int, config: TrainingConfig, workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    os.environ["LOCAL_RANK"] = str(rank)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, f"file://{folder}/store", rank=rank, world_size=workers)
    # What libraries load and keep when they are first used is none of a training's.
    narrow = config.model.model_copy(update={"width": 0.25})
    _peak(config.model_copy(update={"model": narrow, "crop": (64, 64)}), rank, workers, device)
    (folder / str(rank)).write_text(str(_peak(config, rank, workers, device)))
    dist.barrier()
    dist.destroy_process_group()


def _peak(config: TrainingConfig, rank: int, workers: int, device: torch.device) -> int:
    """Bytes at the worst moment of a training, beyond what was there before."""
    gc.collect()
    noise = torch.Generator().manual_seed(rank)
    n, (h, w) = config.batch_size // workers, config.crop
    images = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=noise)
    labels = torch.randint(0, _CLASSES, (n, h, w), dtype=torch.uint8, generator=noise)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    keep_freed_memory(False)
    forget_peak()
    before = resident_bytes() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    kind = PlainEngine if config.parallel.workers is None else DeepSpeedEngine
    engine = kind(config, objective_of(config, config.data.known(), False, False), device)
    for number in range(_STEPS):
        engine.step(number, Batch(images, labels, [""] * n), config.learning_rate)
    most = peak_resident_bytes() if device.type == "cpu" else torch.cuda.max_memory_allocated(device)
    return most - before
