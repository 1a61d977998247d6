"""The network that a training starts from: its parts for training alone, and its first weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.catalogue import CATALOGUE, build
from fullres.models.weights import WeightsError, load_backbone, load_pretrained


class Section(BaseModel):
    """A part of a configuration: no other fields than these."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The network, and how it starts: from a trained network's weights, from ImageNet weights of its backbone
    (a published `.pth`), or from scratch.

    `auxiliary`: what its auxiliary heads learn, where it has some, or "none" of them. `auxiliary_stages`:
    behind which of the backbone's features they are, 0 the finest of four. By default with "cross_entropy"
    one behind feature 2 (PSPNet's fourth stage, Sec. 4), none for OCRNet, whose soft regions are that; with
    "class_probability" one behind each (SeeThroughNet, Sec. 4.1).
    """

    name: str
    width: float = Field(default=1.0, gt=0)
    auxiliary: Literal["cross_entropy", "class_probability", "none"] = "cross_entropy"
    auxiliary_stages: tuple[int, ...] | None = None
    weights: Path | None = None
    backbone_weights: Path | None = None

    @model_validator(mode="after")
    def _possible(self) -> "ModelConfig":
        if self.name not in CATALOGUE:
            raise ValueError(f"name is '{self.name}': one of {', '.join(CATALOGUE)}")
        if self.weights is not None and self.backbone_weights is not None:
            raise ValueError(
                f"weights is '{self.weights}', backbone_weights is '{self.backbone_weights}': one of them"
            )
        stages = self.auxiliary_stages
        if stages is not None and (self.auxiliary == "none" or not _are_stages(stages)):
            raise ValueError(
                f"auxiliary_stages is {list(stages)}: some of 0, 1, 2, 3, each once and in order; not with"
                " auxiliary = 'none'"
            )
        return self


def _are_stages(stages: tuple[int, ...]) -> bool:
    return len(stages) > 0 and set(stages) <= {0, 1, 2, 3} and sorted(set(stages)) == list(stages)


def initial_network(config: ModelConfig, num_classes: int, drop_head: bool = False) -> nn.Module:
    """In training mode, on the CPU, with fresh parameters where no file has them.

    `drop_head`: leave out what depends on the class count, so that weights of other classes are a start.
    Raises ValueError for class probabilities of a network without auxiliary heads, WeightsError.
    """
    network = build(config.name, num_classes, config.width)
    if config.weights is not None:
        load_pretrained(network, config.name, config.weights, drop_head)
    if config.backbone_weights is not None:
        _load_backbones(network, config.name, config.backbone_weights)
    # Behind the weights: files are read without auxiliary heads.
    usual = CATALOGUE[config.name].auxiliary
    if usual is not None:
        network.auxiliary = _heads(network.backbone.channels, usual, config, num_classes)  # type: ignore[union-attr, arg-type, assignment]
    elif config.auxiliary == "class_probability" or config.auxiliary_stages:
        raise ValueError(f"auxiliary is '{config.auxiliary}': {config.name} has no auxiliary heads")
    return network.train()


def _heads(
    channels: Sequence[int], usual: tuple[int, ...], config: ModelConfig, num_classes: int
) -> AuxiliaryHeads | None:
    by_kind = {"cross_entropy": usual, "class_probability": (0, 1, 2, 3), "none": ()}
    stages = config.auxiliary_stages or by_kind[config.auxiliary]
    if not stages:
        return None
    outputs = num_classes + (config.auxiliary == "class_probability")
    return AuxiliaryHeads(channels, outputs, stages, max(8, int(256 * config.width)))


def _load_backbones(network: nn.Module, name: str, path: Path) -> None:
    """Raises WeightsError, also for a network without a backbone that published checkpoints fit."""
    encoders: list[Any] = [network.get_submodule(where) for where in CATALOGUE[name].encoders]
    if not encoders:
        raise WeightsError(
            f"backbone_weights is '{path}': {name} has no backbone that is read (HRNet, MobileNetV2, ResNet)"
        )
    first, *later = encoders
    load_backbone(first, path)
    for encoder in later:  # of the same depth, without the stem
        encoder.load_state_dict(first.state_dict(), strict=False)


def check_batch(config: ModelConfig, batch_size: int, crop: tuple[int, int]) -> None:
    """Raise ValueError where a batch norm would have one value a channel, and nothing to learn from.

    Only a single crop can have such a layer. Nothing is computed: the network runs without data.
    """
    if batch_size > 1:
        return
    with torch.device("meta"):
        network = build(config.name, 2, config.width).train()
        try:
            if CATALOGUE[config.name].splits:
                # Shrink pooling leaves what strides leave, of the last phases the least.
                network, stride = network.strided().train(), CATALOGUE[config.name].output_stride  # type: ignore[operator]
                crop = (crop[0] // stride * stride, crop[1] // stride * stride)
            network(torch.empty(1, 3, *crop))
        except ValueError as error:
            raise ValueError(
                f"batch_size is 1: {config.name} has a batch norm with one value a channel at crop {crop}; "
                f"2 or more"
            ) from error
