"""A training's engine on DeepSpeed: replicas that each take their part of a batch, with gradients, batch
norm's statistics and the losses' counts of all of it.

Needs `torch.distributed` to be set up, by Ray Train or whoever starts the processes; gloo on CPUs, NCCL on
GPUs. Raises what `pipeline.train.engine` raises.
"""

import os
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fullres.ops.replicas import shared
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import begin_part, check_loss
from fullres.pipeline.train.objectives import SegmentationLoss
from fullres.pipeline.train.optimizer import optimizer_for, set_learning_rate
from fullres.pipeline.train.samples import Batch


class DeepSpeedEngine:
    """See `pipeline.train.engine.Engine`."""

    def __init__(self, config: TrainingConfig, objective: SegmentationLoss, device: torch.device) -> None:
        deepspeed = _deepspeed(device)
        self.config, self.device = config, device
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._plain = deepcopy(objective.network)
        everyone = dist.group.WORLD
        if self.ranks > 1 and everyone is not None:
            objective.group = everyone
            shared(objective.network, everyone)
        self.optimizer = optimizer_for(config, objective.network)
        self._engine, *_ = deepspeed.initialize(
            model=objective.to(device), optimizer=self.optimizer, config=_settings(config, self.ranks),
            dist_init_required=False,
        )  # fmt: skip
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not before: it fails

    @property
    def _network(self) -> nn.Module:
        return self._engine.module.network

    def step(self, number: int, batch: Batch, rate: float) -> float:
        set_learning_rate(self.optimizer, rate)
        parts, total = self.config.accumulation, torch.zeros((), dtype=torch.float64, device=self.device)
        for index in range(parts):
            loss = self._engine(*begin_part(self.config, number, index, batch, self.device))
            total += loss.detach() / parts
            self._engine.backward(loss)
            if index + 1 == parts:
                dist.all_reduce(total)
                check_loss(self.config, number, total.item() / self.ranks, batch)
            self._engine.step()
        return total.item() / self.ranks

    def total(self, values: np.ndarray) -> np.ndarray:
        sums = torch.from_numpy(values).to(self.device)
        dist.all_reduce(sums)
        return sums.cpu().numpy()

    def network(self) -> nn.Module:
        self._plain.load_state_dict(self._network.state_dict())
        return self._plain

    def state(self) -> dict[str, Any]:
        return {"network": self._network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed asks the environment which accelerator there is when it is imported, and would compile a
    library for shared memory on CPUs, which takes minutes and a compiler."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False, verbose=False)
    return deepspeed


def _settings(config: TrainingConfig, ranks: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // ranks // config.accumulation,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clipping or 0.0,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return settings
