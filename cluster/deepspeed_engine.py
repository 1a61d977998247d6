"""A training's engine on DeepSpeed: replicas that each take their part of a batch, with gradients, batch
norm's statistics and the losses' counts of all of it.

Needs `torch.distributed` to be set up, by Ray Train or whoever starts the processes; gloo on CPUs, NCCL on
GPUs. Raises what `pipeline.train.engine` raises.
"""

import os
from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fullres.cluster.zero import fill_state, read_state, whole_weights
from fullres.models.catalogue import CATALOGUE
from fullres.ops.replicas import shared
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import begin_part, check_loss, memory_format_of, part_of, settle
from fullres.pipeline.train.loss_scale import LossScale
from fullres.pipeline.train.objectives import SegmentationLoss
from fullres.pipeline.train.optimizer import optimizer_for, set_learning_rate, trained_names
from fullres.pipeline.train.samples import Batch


class DeepSpeedEngine:
    """See `pipeline.train.engine.Engine`. Processes of one `split` follow each other by rank."""

    def __init__(self, config: TrainingConfig, objective: SegmentationLoss, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        split = config.parallel.split
        self.replica, self.replicas = self.rank // split, self.ranks // split
        self.scale = LossScale(config.precision, device)
        self._plain = deepcopy(objective.network)
        self._objective = objective
        everyone = dist.group.WORLD
        if self.ranks > 1 and everyone is not None:
            objective.group = everyone
            shared(objective.network, everyone)
        if CATALOGUE[config.model.name].splits:
            objective.network.full_resolution()  # type: ignore[operator]  # before there are hooks
        if split > 1:
            objective.network.share_phases(self.rank % split, split)  # type: ignore[operator]

    @cached_property
    def _engine(self) -> Any:
        """Made when it is needed: the weights of a checkpoint come before."""
        deepspeed = deepspeed_on(self.device)
        self.optimizer = optimizer_for(self.config, self._objective.network)
        engine, *_ = deepspeed.initialize(
            model=self._objective.to(self.device), optimizer=self.optimizer,
            config=settings_of(self.config, self.ranks, self.replicas, self._trained),
            dist_init_required=False,
        )  # fmt: skip
        if self.config.parallel.zero == 0:
            # Not before: it fails. With ZeRO parameters are parts of one flat tensor, and stay as they are.
            format = memory_format_of(self.config.model, self.device)
            self._objective.to(memory_format=format)  # type: ignore[call-overload]
        if self.config.parallel.zero == 3 and CATALOGUE[self.config.model.name].splits:
            # Its tree reads convolutions' weights past their hooks: the whole network gathers them.
            network = self._objective.network
            for parameter in network.parameters():
                deepspeed.runtime.zero.register_external_parameter(network, parameter)
        return engine

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        """In the order of the optimizer's groups, as it is in plain torch."""
        by_name = dict(self._objective.network.named_parameters())
        return [by_name[name] for name in trained_names(self.config, self._plain)]

    def step(self, number: int, batch: Batch, rate: float) -> float:
        engine, zero = self._engine, self.config.parallel.zero
        set_learning_rate(self.optimizer, rate)
        if zero and self.scale.fp16:
            engine.optimizer.override_loss_scale(self.scale.scale)
        parts, total = self.config.accumulation, torch.zeros((), dtype=torch.float64, device=self.device)
        for index in range(parts):
            begin_part(self.config, number, index)
            loss = engine(*part_of(self.config, index, batch, self.device))
            total += loss.detach() / parts
            # ZeRO scales losses itself.
            engine.backward(loss if zero else loss * self.scale.scale)
            if index + 1 == parts:
                dist.all_reduce(total)
                check_loss(self.config, number, total.item() / self.ranks, batch, self.scale)
                finite = zero > 0 or self._finish()
            engine.step()
        settle(self.config, number, batch, self.scale, not engine.optimizer.overflow if zero else finite)
        return total.item() / self.ranks

    def _finish(self) -> bool:
        """Without ZeRO: what is done to gradients before the optimizer's step, as in plain torch. Without
        gradients it does nothing."""
        parameters = self._trained
        finite = self.scale.unscale(parameters)
        if not finite:
            self._engine.zero_grad()
        elif self.config.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(parameters, self.config.gradient_clipping)
        return finite

    def total(self, values: np.ndarray) -> np.ndarray:
        return total_over_all(values, self.device)

    def network(self) -> nn.Module:
        self._plain.load_state_dict(whole_weights(self._engine.module.network))
        return self._plain

    def state(self) -> dict[str, Any]:
        weights = whole_weights(self._engine.module.network)
        if not self.config.parallel.zero:
            optimizer = self.optimizer.state_dict()
            return {"network": weights, "optimizer": optimizer, "loss_scale": self.scale.state()}
        moments = read_state(self._engine.optimizer, self._trained)
        plain = optimizer_for(self.config, self._plain).state_dict()
        optimizer = plain | {"state": moments}
        return {"network": weights, "optimizer": optimizer, "loss_scale": self.scale.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._objective.network.load_state_dict(state["network"])
        self.scale.load_state(state["loss_scale"])
        engine = self._engine
        if self.config.parallel.zero:
            fill_state(engine.optimizer, self._trained, state["optimizer"]["state"])
        else:
            self.optimizer.load_state_dict(state["optimizer"])


def total_over_all(values: np.ndarray, device: torch.device) -> np.ndarray:
    """The sum over all processes."""
    sums = torch.from_numpy(values).to(device)
    dist.all_reduce(sums)
    return sums.cpu().numpy()


def deepspeed_on(device: torch.device) -> Any:
    """DeepSpeed asks the environment which accelerator there is when it is imported, and would compile a
    library for shared memory on CPUs, which takes minutes and a compiler."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False, verbose=False)
    return deepspeed


def settings_of(
    config: TrainingConfig, ranks: int, replicas: int, trained: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """`trained`: the parameters that a process computes gradients of."""
    part = config.batch_size // replicas // config.accumulation
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    # DeepSpeed's tensor for gradients takes 2 GB, whatever the network's size.
    elements = min(500_000_000, sum(p.numel() for p in trained))
    zero: dict[str, Any] = {"stage": config.parallel.zero, "reduce_bucket_size": elements}
    if config.parallel.offload:
        zero["offload_optimizer"] = host
        if config.parallel.zero == 3:
            zero["offload_param"] = host
    return {
        # DeepSpeed counts all processes; those that share phases have the same images.
        "train_batch_size": part * ranks * config.accumulation,
        "train_micro_batch_size_per_gpu": part,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": (config.gradient_clipping or 0.0) if config.parallel.zero else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
