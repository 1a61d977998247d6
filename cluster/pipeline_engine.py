"""A training's engine on DeepSpeed's pipeline: each process has a stage of the network, and the parts of a
batch (`accumulation`) follow each other through them.

Processes of one stage follow each other by rank, each a replica with its part of every batch. Batch norm sees
each of the `accumulation` parts by itself, over a stage's replicas, as it does in plain torch.
"""

import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fullres.cluster.deepspeed_engine import deepspeed_on, settings_of, total_over_all
from fullres.cluster.zero import fill_state, read_state
from fullres.models.checkpointing import recomputed
from fullres.models.stages.stage import Stage
from fullres.ops.replicas import shared
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import begin_part, check_loss, part_of, settle
from fullres.pipeline.train.loss_scale import LossScale
from fullres.pipeline.train.objectives import SegmentationLoss
from fullres.pipeline.train.optimizer import optimizer_for, set_learning_rate, trained_names
from fullres.pipeline.train.samples import Batch
from fullres.pipeline.train.stages import stages_of


class _Parts(nn.Module):
    """A stage as DeepSpeed runs it: one part of a step after the other."""

    def __init__(self, config: TrainingConfig, stage: Stage, objective: SegmentationLoss) -> None:
        super().__init__()
        self.config, self.stage = config, stage
        self.casting = objective.casting
        self.step = self.part = 0
        self.fillers = nn.ParameterList()

    def forward(self, x: Tensor) -> Any:
        step, part = self.step, self.part
        self.part += 1

        def run(x: Tensor) -> Any:
            begin_part(self.config, step, part)
            with self.casting(x):
                return self.stage(x)

        return recomputed(self.stage, run, x) if self.config.activation_checkpointing else run(x)


class PipelineEngine:
    """See `pipeline.train.engine.Engine`."""

    def __init__(self, config: TrainingConfig, objective: SegmentationLoss, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.stages = config.parallel.pipeline
        self.replicas = self.ranks // self.stages
        self.index, self.replica = divmod(self.rank, self.replicas)
        ranks = np.arange(self.ranks).reshape(self.stages, self.replicas).tolist()
        self._group = [dist.new_group(of_stage) for of_stage in ranks][self.index]
        self._plain = deepcopy(objective.network)
        self._objective = objective.to(device)
        if self.replicas > 1:
            objective.group = self._group
            shared(objective.network, self._group)
        partition = stages_of(config, objective, device)
        self._parts = _Parts(config, Stage(objective.network, partition, self.index), objective)
        self.scale = LossScale(config.precision, device)

    @cached_property
    def _engine(self) -> Any:
        """Made when it is needed: the weights of a checkpoint come before."""
        deepspeed = deepspeed_on(self.device)
        others = [deepspeed.pipe.LayerSpec(nn.Identity)] * (self.stages - 1)
        layers = [*others[: self.index], self._parts, *others[self.index :]]
        # ZeRO 0 clips by the gradients of one stage alone.
        layout = self.config.parallel.model_copy(update={"zero": 1})
        config = self.config.model_copy(update={"parallel": layout})
        self.optimizer = self._optimizer()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        settings = settings_of(config, self.replicas, self.replicas, trained)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            module = deepspeed.pipe.PipelineModule(
                layers, self.stages, loss_fn=self._objective.of, partition_method="uniform"
            )
            engine, *_ = deepspeed.initialize(
                model=module, optimizer=self.optimizer, config=settings, dist_init_required=False
            )
        return engine

    def _optimizer(self) -> torch.optim.Optimizer:
        """With as many groups in all stages, as DeepSpeed sums the norm of gradients group by group: one that
        this stage has no parameters for has a number that nothing reads."""
        optimizer = optimizer_for(self.config, self._objective.network)
        kinds = [(group["share"], group["weight_decay"]) for group in optimizer.param_groups]
        for group in optimizer_for(self.config, self._plain).param_groups:
            if (group["share"], group["weight_decay"]) not in kinds:
                self._parts.fillers.append(nn.Parameter(torch.zeros(1, device=self.device)))
                optimizer.add_param_group({**group, "params": [self._parts.fillers[-1]]})
        return optimizer

    def step(self, number: int, batch: Batch, rate: float) -> float:
        engine = self._engine
        set_learning_rate(self.optimizer, rate)
        if self.scale.fp16:
            engine.optimizer.override_loss_scale(self.scale.scale)
        self._parts.step, self._parts.part = number, 0
        loss = engine.train_batch(self._read(batch)).item()
        check_loss(self.config, number, loss, batch, self.scale)
        settle(self.config, number, batch, self.scale, not engine.optimizer.overflow)
        return loss

    def _read(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(self.config.accumulation):
            yield part_of(self.config, index, batch, self.device)

    def total(self, values: np.ndarray) -> np.ndarray:
        return total_over_all(values, self.device)

    def network(self) -> nn.Module:
        self._plain.load_state_dict(self._weights())
        return self._plain

    def state(self) -> dict[str, Any]:
        own, parameters = self._trained()
        moments = read_state(self._engine.optimizer, parameters, self._group)
        every = self._joined({own[i]: kept for i, kept in moments.items()})
        plain = optimizer_for(self.config, self._plain)
        state = {
            i: every[name] for i, name in enumerate(trained_names(self.config, self._plain)) if name in every
        }
        return {
            "network": self._weights(), "optimizer": plain.state_dict() | {"state": state},
            "loss_scale": self.scale.state(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self._plain.load_state_dict(state["network"])
        for name, tensor in self._objective.network.state_dict().items():
            tensor.copy_(state["network"][name])
        self.scale.load_state(state["loss_scale"])
        order, (own, parameters) = trained_names(self.config, self._plain), self._trained()
        moments = {order[i]: kept for i, kept in state["optimizer"]["state"].items()}
        of_stage = {i: moments[name] for i, name in enumerate(own) if name in moments}
        fill_state(self._engine.optimizer, parameters, of_stage)

    def _trained(self) -> tuple[list[str], list[nn.Parameter]]:
        """Those of this stage, in the order of its optimizer's groups."""
        own = dict(self._objective.network.named_parameters())
        names = [name for name in trained_names(self.config, self._plain) if name in own]
        return names, [own[name] for name in names]

    def _weights(self) -> dict[str, Tensor]:
        # Copies: parameters are parts of one flat tensor, and each would be sent with all of it.
        state = self._objective.network.state_dict()
        own = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
        every = self._joined(own)
        return {name: every.get(name, tensor) for name, tensor in self._plain.state_dict().items()}

    def _joined(self, own: dict[str, Any]) -> dict[str, Any]:
        """Of all stages what their first replicas give."""
        given: list[Any] = [None] * self.ranks
        dist.all_gather_object(given, own if self.replica == 0 else {})
        return {name: value for of_rank in given for name, value in of_rank.items()}
