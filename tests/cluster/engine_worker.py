"""One of several processes that train: `python -m tests.cluster.engine_worker FOLDER RANK RANKS`, over gloo.

Trains by DeepSpeed what each case asks for, and the first process writes what came out.
"""

import os
import sys
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from fullres.cluster.deepspeed_engine import DeepSpeedEngine
from fullres.cluster.pipeline_engine import PipelineEngine
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.train.config import TrainingConfig, extended
from fullres.pipeline.train.engine import objective_of
from fullres.pipeline.train.optimizer import learning_rate
from fullres.pipeline.train.samples import Batch

CLASSES, BATCH, CROP = 5, 12, 64


def config_of(changes):
    """A narrow network that learns slowly: rounding stays small."""
    given = {
        "model": {"name": "smp18", "width": 0.125}, "steps": 6, "batch_size": BATCH, "crop": (CROP, CROP),
        "data": {"dataset": "folder", "classes": CLASSES, "images": "images", "labels": "labels"},
        "learning_rate": 1e-3, "optimizer": "sgd", "schedule": "poly", "out": "out",
    }  # fmt: skip
    return TrainingConfig(**extended(given, changes))


def batch_of(step):
    """Few labels in some images: counts of the processes differ."""
    random = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, CROP, CROP, 3), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, CLASSES, (BATCH, CROP // 8, CROP // 8), dtype=torch.uint8, generator=random)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[0, 8:] = 255
    return Batch(images, labels, [f"{i}.png" for i in range(BATCH)])


def part_of(batch, config, replica, replicas):
    """As `Samples.batches` deals them: of each accumulated part a share."""
    parts = config.accumulation
    share = BATCH // replicas // parts
    own = [(p * replicas + replica) * share + i for p in range(parts) for i in range(share)]
    return Batch(batch.images[own], batch.labels[own], [batch.files[i] for i in own])


def trained(engine_of, config, first, last, state=None):
    """Losses of steps first to last - 1, and the engine's state behind them."""
    objective = objective_of(config, folder(CLASSES), False, False)
    engine = engine_of(config, objective, torch.device("cpu"))
    if state is not None:
        engine.load_state(deepcopy(state))  # torch goes on in the same tensors
    elif engine.scale.fp16:
        engine.scale.scale = 2.0**10  # each worker's gradients are larger than one's: none overflows
    losses = []
    for step in range(first, last):
        batch = part_of(batch_of(step), config, engine.replica, engine.replicas)
        losses.append(engine.step(step, batch, learning_rate(config, step)))
    state = deepcopy(engine.state())
    network = engine.network().state_dict()
    assert all(torch.equal(network[name], tensor.cpu()) for name, tensor in state["network"].items())
    return losses, state


def main(folder, rank, ranks):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=300), ranks, rank)
    os.environ["LOCAL_RANK"] = str(rank)
    results = []
    for changes, first, last, state in torch.load(folder / "cases.pt", weights_only=False):
        config = config_of(changes)
        config = config.model_copy(update={"parallel": config.parallel.of(ranks)})
        engine = PipelineEngine if config.parallel.pipeline > 1 else DeepSpeedEngine
        results.append(trained(engine, config, first, last, state))
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
