"""What a step changes, and by how much: parameter groups, the learning rate's course, what is frozen."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fullres.models.catalogue import CATALOGUE
from fullres.pipeline.train.config import TrainingConfig

_MOMENTUM = 0.9
MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}  # tensors of the size of a parameter that an optimizer keeps


def optimizer_for(config: TrainingConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Over the parameters that are not frozen, in groups of their own learning rate and weight decay. A
    group's `share` is that of the step's learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            share = 1.0 if of_backbone(config, name) else config.head_rate
            decay = config.weight_decay if config.decay_norms or parameter.dim() > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
    parameters = [{"params": p, "weight_decay": d, "share": s} for (s, d), p in groups.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.learning_rate, momentum=_MOMENTUM)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, config.learning_rate)


def trained_names(config: TrainingConfig, network: nn.Module) -> list[str]:
    """Of the parameters that are trained, as the optimizer's groups have them one after the other."""
    names = {id(p): name for name, p in network.named_parameters()}
    groups = optimizer_for(config, network).param_groups
    return [names[id(p)] for group in groups for p in group["params"]]


def of_backbone(config: TrainingConfig, name: str) -> bool:
    return any(name.startswith(f"{encoder}.") for encoder in CATALOGUE[config.model.name].encoders)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """That of step `step`, counted from 0."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    done = step / config.steps
    match config.schedule:
        case "poly":
            return config.learning_rate * (1 - done) ** 0.9
        case "exponential":
            return config.learning_rate * config.final_share**done
        case _:
            return config.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def freeze(config: TrainingConfig, network: nn.Module) -> None:
    """Take gradients from what is frozen, and training mode from its batch norms; call it again after
    `network.train()`."""
    for module in frozen_modules(config, network):
        module.eval()
        module.requires_grad_(False)


def frozen_modules(config: TrainingConfig, network: nn.Module) -> Iterator[nn.Module]:
    for name, module in network.named_modules():
        whole = "backbone" in config.model.freeze and name in CATALOGUE[config.model.name].encoders
        if whole or ("batch_norm" in config.model.freeze and isinstance(module, _BatchNorm)):
            yield module
