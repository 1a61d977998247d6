"""Who computes the steps of a training. An engine has the network, its objective and its optimizer; the loop
around it (`loop.py`) does not know how many processes there are.

`PlainEngine` is one process with plain torch, and the reference for all others.
"""

import math
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fullres.models.catalogue import CATALOGUE, build, normalisation
from fullres.models.downsampler import Downsampler
from fullres.ops.normalisation import normalise
from fullres.ops.resample import all_shrunk
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.predict.sampler import load_downsampler, sampler_of
from fullres.pipeline.targets.compute import class_ids
from fullres.pipeline.train.config import ModelConfig, TrainingConfig
from fullres.pipeline.train.loss_scale import LossScale
from fullres.pipeline.train.network import initial_network, learn_to_sample
from fullres.pipeline.train.objectives import SegmentationLoss
from fullres.pipeline.train.optimizer import freeze, optimizer_for, set_learning_rate
from fullres.pipeline.train.samples import Batch


class Diverged(ValueError):
    """The loss, or in fp16 a gradient, is no finite number. Nothing was changed by the step."""


_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine(Protocol):
    """One process of those that train together: all call the same methods in the same order. `rank`: its
    number among `ranks`. `replica`: which of `replicas` parts of every batch it computes."""

    rank: int
    ranks: int
    replica: int
    replicas: int
    device: torch.device

    def step(self, number: int, batch: Batch, rate: float) -> float:
        """One step with this process's part of the batch; the loss of the whole batch. In fp16 a step whose
        loss or gradients overflow changes nothing but the scale of the next ones, while a lower one is left.
        Raises Diverged."""
        ...

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes."""
        ...

    def network(self) -> nn.Module:
        """One with all weights as they are now, for labelling images and for saving. Called by all, as are
        the others."""
        ...

    def state(self) -> dict[str, Any]:
        """ "network" and "optimizer": what `torch.optim` and `nn.Module` call their state dicts, whole, the
        same whatever the engine. "loss_scale": of `LossScale`."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def objective_of(config: TrainingConfig, known: Dataset, begun: bool, drop_head: bool) -> SegmentationLoss:
    """The network as it starts, with what trains it, in training mode on the CPU. `begun`: a checkpoint
    holds all weights, and the files of the start may be gone. Raises as `initial_network`."""
    start = config.model
    if begun:
        start = start.model_copy(update={"weights": None, "backbone_weights": None})
    if config.sampling.auxiliary is not None:
        load_downsampler(str(config.sampling.auxiliary), torch.device("cpu"))  # before any work
    torch.manual_seed(config.seed)
    network = initial_network(start, len(known.classes), drop_head)
    options = CATALOGUE[config.model.name].training_options
    for option in options:
        setattr(network, option, getattr(config, option))
    learn_to_sample(network, config.sampling)
    if isinstance(network, Downsampler):
        network.smoothness = config.sampling.smoothness
        network.target_classes = tuple(class_ids(known, config.sampling.target_classes) or ())
    freeze(config, network)
    by_block = config.activation_checkpointing and "activation_checkpointing" not in options
    return SegmentationLoss(
        network, known.ignore_index, checkpointed=by_block, autocast=_AUTOCAST[config.precision]
    )


def begin_part(config: TrainingConfig, number: int, index: int) -> None:
    """Set torch's generator for a part of a step's batch: a step's phases and lattices are those of all its
    parts, as of a batch that is in one; dropout has a pattern in each."""
    once = bool(CATALOGUE[config.model.name].training_options)
    torch.manual_seed((config.seed * 1_000_003 + number) * 1009 + (0 if once else index))


def memory_format_of(model: ModelConfig, device: torch.device) -> torch.memory_format:
    """Channels last, in which convolutions are fastest; but see `_is_written_beyond`."""
    beyond = device.type == "cpu" and _is_written_beyond(model.name, model.width)
    return torch.contiguous_format if beyond else torch.channels_last


@cache
def _is_written_beyond(name: str, width: float) -> bool:
    """Whether oneDNN, as of torch 2.13, would damage memory: with channels last, on CPUs that have AVX2 but
    not AVX-512, it writes beyond the gradient of a strided 1 x 1 convolution of fewer than 8 channels, as the
    shortcuts of a ResNet of width 1/16 are."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    with torch.device("meta"):
        modules = list(build(name, 2, width).modules())
    return any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 8
        for m in modules
    )


def part_of(config: TrainingConfig, index: int, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, normalised, and labels of a part of a step's batch, as an objective takes them: sampled if the
    configuration says so, and the points do not move with the training. Images of a downsampler are as small
    as it makes them."""
    part = batch.part(index, config.accumulation)
    images, labels = part.images.to(device), part.labels.to(device)
    if config.sampling.size is not None and config.sampling.joint is None:
        sampler = sampler_of(config.sampling.size, config.sampling.auxiliary, device)
        images, labels = sampler.both(images, labels)
    if not CATALOGUE[config.model.name].segments:
        images = all_shrunk(images, config.input_size)
    images = normalise(images, torch.float32, normalisation(config.model.like))
    return images.contiguous(memory_format=memory_format_of(config.model, device)), labels.long()


def check_loss(config: TrainingConfig, number: int, loss: float, batch: Batch, scale: LossScale) -> None:
    """Before a step. Raises Diverged where no lower scale is left to try."""
    if scale.least and not math.isfinite(loss):
        raise _diverged(config, number, f"loss is {loss}", batch)


def settle(config: TrainingConfig, number: int, batch: Batch, scale: LossScale, finite: bool) -> None:
    """After a step, which was skipped where gradients are not finite. Raises as `check_loss`."""
    if scale.least and not finite:
        raise _diverged(config, number, "gradients are no finite numbers", batch)
    scale.update(finite)


def _diverged(config: TrainingConfig, number: int, what: str, batch: Batch) -> Diverged:
    return Diverged(
        f"{what} at step {number}: lower learning_rate (now {config.learning_rate}); its batch: "
        + ", ".join(batch.files)
    )


class PlainEngine:
    """See `Engine`. Batch norm sees each of the `accumulation` parts of a batch by itself."""

    rank, ranks = 0, 1
    replica, replicas = 0, 1

    def __init__(self, config: TrainingConfig, objective: SegmentationLoss, device: torch.device) -> None:
        self.config, self.device = config, device
        format = memory_format_of(config.model, device)
        self.objective = objective.to(device, memory_format=format)  # type: ignore[call-overload]
        self.optimizer = optimizer_for(config, objective.network)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scale = LossScale(config.precision, device)

    def step(self, number: int, batch: Batch, rate: float) -> float:
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        parts, total = self.config.accumulation, 0.0
        for index in range(parts):
            begin_part(self.config, number, index)
            images, labels = part_of(self.config, index, batch, self.device)
            loss = self.objective(images, labels) / parts
            (loss * self.scale.scale).backward()
            total += loss.item()
        check_loss(self.config, number, total, batch, self.scale)
        if finite := self.scale.unscale(self.trained):
            if self.config.gradient_clipping is not None:
                nn.utils.clip_grad_norm_(self.trained, self.config.gradient_clipping)
            self.optimizer.step()
        settle(self.config, number, batch, self.scale, finite)
        return total

    def total(self, values: np.ndarray) -> np.ndarray:
        return values

    def network(self) -> nn.Module:
        return self.objective.network

    def state(self) -> dict[str, Any]:
        return {
            "network": self.objective.network.state_dict(), "optimizer": self.optimizer.state_dict(),
            "loss_scale": self.scale.state(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.objective.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scale.load_state(state["loss_scale"])
