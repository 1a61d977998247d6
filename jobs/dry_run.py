"""What `fullres train --dry-run` prints: the whole configuration, and what it would train and where."""

import tomli_w
import torch
from rich.table import Table

from fullres.jobs.common import console
from fullres.models.catalogue import build, parameter_count
from fullres.models.stages.partition import Partition
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.memory import memory_of
from fullres.pipeline.train.samples import Frames
from fullres.pipeline.train.stages import described


def describe(config: TrainingConfig, laid_out: TrainingConfig | None) -> None:
    """`laid_out`: the same with its layout as the workers have it; None: in this process."""
    frames = Frames(config.data)
    print(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)), end="")
    with torch.device("meta"):
        of_model, classes = config.model, len(frames.known.classes)
        parameters = parameter_count(build(of_model.name, classes, of_model.width, of_model.like))
    epochs = config.steps * config.batch_size / len(frames)
    console.print(
        f"{config.model.name} with {parameters / 1e6:.2f}M parameters, {len(frames.known.classes)} classes; "
        f"{len(frames)} images, {epochs:.1f} epochs"
    )
    if laid_out is None:
        _describe_memory({"one process": config}, len(frames.known.classes))
        return
    counts, parallel = laid_out.worker_counts(), laid_out.parallel
    phases = f", {parallel.split} share the phases of each" if parallel.split > 1 else ""
    stages = f", {parallel.pipeline} stages" if parallel.pipeline > 1 else ""
    fewer = f" (or {', '.join(map(str, counts[:-1]))})" if len(counts) > 1 else ""
    parts = counts[-1] // parallel.together
    console.print(f"{counts[-1]}{fewer} workers: {parts} parts of every batch{phases}{stages}")
    least = laid_out.on(counts[0])  # of most memory each
    if parallel.pipeline > 1:
        _describe_stages(described(least), config.accumulation)
    else:
        layouts = {f"ZeRO {zero}": _with_zero(least, zero) for zero in (0, 1, 2, 3)}
        _describe_memory(layouts, len(frames.known.classes))


def _describe_stages(found: Partition, parts: int) -> None:
    for stage in range(found.stages):
        first, last = found.ends(stage)
        said = (
            f"stage {stage}: {first} to {last}, {found.parameters(stage) / 1e6:.2f}M parameters, "
            f"{found.macs(stage) / 1e9:.2f} GMACs, {found.nbytes(stage) / 2**20:.1f} MiB of features, "
            f"{found.cost[stage] / sum(found.cost):.0%} of the cost"
        )
        if stage + 1 < found.stages:
            count = len(found.crossing[stage])
            tensors = "a tensor" if count == 1 else f"{count} tensors"
            said += f"; passes on {found.bytes_crossing(stage) / 2**20:.1f} MiB in {tensors}"
        console.print(said, soft_wrap=True)
    waiting = (found.stages - 1) / (parts + found.stages - 1)
    console.print(
        f"of one of {parts} parts of a replica's batch, on the way forward; gradients are as many bytes. "
        f"Stages that take equally long wait for {waiting:.0%} of a step",
        soft_wrap=True,
    )


def _with_zero(config: TrainingConfig, zero: int) -> TrainingConfig:
    layout = config.parallel.model_copy(
        update={"zero": zero, "offload": config.parallel.offload and zero > 0}
    )
    return config.model_copy(update={"parallel": layout})


def _describe_memory(configs: dict[str, TrainingConfig], classes: int) -> None:
    gpu = torch.cuda.is_available()
    table = Table("MiB on a GPU" if gpu else "MiB on a CPU", box=None, pad_edge=False)
    for heading in ("parameters", "optimizer", "step", "(activations)", "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, config in configs.items():
        found = memory_of(config, classes, gpu)
        sizes = (found.parameters, found.optimizer, found.step, found.activations, found.total)
        table.add_row(name, *(f"{size >> 20}" for size in sizes))
    console.print("memory of a worker, an estimate:")
    console.print(table)
