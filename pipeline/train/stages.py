"""How the network of a training is cut into the stages of a pipeline."""

from typing import Any

import torch

from fullres.models.catalogue import CATALOGUE
from fullres.models.stages.calls import calls_of
from fullres.models.stages.partition import Partition, partition
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import objective_of
from fullres.pipeline.train.objectives import SegmentationLoss


def stages_of(config: TrainingConfig, objective: SegmentationLoss, device: torch.device) -> Partition:
    """For parts of a batch as each replica computes them one after the other. The objective's network is on
    `device`, as it starts. Raises ValueError where it has fewer stages, or one of them nothing to train."""
    network: Any = objective.network
    if CATALOGUE[config.model.name].splits:
        network.full_resolution()
        network.activation_checkpointing = False  # stages are, as a whole
    part = config.batch_size // (config.parallel.data or 1) // config.accumulation
    shape = (part, 3, *config.input_size)
    torch.manual_seed(config.seed)
    found = partition(calls_of(network, shape, device, objective.autocast), config.parallel.pipeline)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    for stage in range(found.stages):
        if not trained & found.uses(stage):
            raise ValueError(
                f"parallel.pipeline is {found.stages}: stage {stage} has nothing to train with model.freeze "
                f"{list(config.model.freeze)}"
            )
    return found


def described(config: TrainingConfig) -> Partition:
    """As `stages_of`, before there is a network: weights are not read."""
    objective = objective_of(config, config.data.known(), begun=True, drop_head=False)
    return stages_of(config, objective, torch.device("cpu"))
