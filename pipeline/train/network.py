"""The network that a training starts from: its parts for training alone, and its first weights."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.catalogue import CATALOGUE, build
from fullres.models.weights import WeightsError, load_backbone, load_pretrained
from fullres.pipeline.predict.published import local_weights
from fullres.pipeline.predict.sampler import load_downsampler
from fullres.pipeline.train.config import ModelConfig, SamplingConfig
from fullres.pipeline.train.learning_sampler import LearningSampler

# Where the downsampler's weights lie in the state dict of a network that it learns beside.
SAMPLER = "sampler.downsampler."


def initial_network(config: ModelConfig, num_classes: int, drop_head: bool = False) -> nn.Module:
    """In training mode, on the CPU, with fresh parameters where no file has them.

    `drop_head`: leave out what depends on the class count, so that weights of other classes are a start.
    Raises ValueError for class probabilities of a network without auxiliary heads, WeightsError.
    """
    network = build(config.name, num_classes, config.width, config.like)
    if config.weights is not None:
        path, row = local_weights(str(config.weights))
        if row is not None and (row.model, row.like) != (config.name, config.like):
            raise WeightsError(f"weights {row.name}: {_as_said(row.model, row.like)} under [model]")
        load_pretrained(network, config.name, path, drop_head, config.like)
    if config.backbone_weights is not None:
        _load_backbones(network, config.name, config.backbone_weights)
    # Behind the weights: files are read without auxiliary heads.
    usual = CATALOGUE[config.name].auxiliary
    if usual is not None:
        network.auxiliary = _heads(network.backbone.channels, usual, config, num_classes)  # type: ignore[union-attr, arg-type, assignment]
    elif config.auxiliary == "class_probability" or config.auxiliary_stages:
        raise ValueError(f"auxiliary is '{config.auxiliary}': {config.name} has no auxiliary heads")
    network.loss = config.loss  # type: ignore[assignment]  # what `SegmentationLoss` trains it by
    return network.train()


def learn_to_sample(network: nn.Module, sampling: SamplingConfig) -> None:
    """Attach what learns where to sample beside the network, if the configuration says so. Raises
    WeightsError."""
    if sampling.joint is None:
        return
    assert sampling.size is not None
    downsampler = copy.deepcopy(load_downsampler(str(sampling.auxiliary), torch.device("cpu")))
    downsampler.requires_grad_(True)
    network.sampler = LearningSampler(downsampler, sampling.size, sampling.joint).train()


def without_training_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict without what it has in training alone."""
    return {name: t for name, t in state.items() if not name.startswith(("auxiliary.", SAMPLER))}


def _as_said(name: str, like: str | None) -> str:
    return f"name = '{name}'" + ("" if like is None else f", like = '{like}'")


def _heads(
    channels: Sequence[int], usual: tuple[int, ...], config: ModelConfig, num_classes: int
) -> AuxiliaryHeads | None:
    by_kind = {"cross_entropy": usual, "class_probability": (0, 1, 2, 3), "none": ()}
    stages = config.auxiliary_stages or by_kind[config.auxiliary]
    if not stages:
        return None
    outputs = num_classes + (config.auxiliary == "class_probability")
    return AuxiliaryHeads(channels, outputs, stages, max(8, int(256 * config.width)))


def _load_backbones(network: nn.Module, name: str, files: Path | tuple[Path, ...]) -> None:
    """Raises WeightsError, also for a network without a backbone that published checkpoints fit."""
    encoders: list[Any] = [network.get_submodule(where) for where in CATALOGUE[name].encoders]
    if not encoders:
        raise WeightsError(
            f"backbone_weights is '{files}': {name} has no backbone that is read (HRNet, MobileNetV2, ResNet)"
        )
    paths = files if isinstance(files, tuple) else (files,) * len(encoders)
    for encoder, path in zip(encoders, paths, strict=True):
        load_backbone(encoder, path)


def check_batch(config: ModelConfig, batch_size: int, size: tuple[int, int]) -> None:
    """Raise ValueError where a batch norm would have one value a channel, and nothing to learn from.

    Only a single image, of `size` (H, W) as the network reads it, can have such a layer. Nothing is computed:
    the network runs without data.
    """
    if batch_size > 1:
        return
    read = size
    with torch.device("meta"):
        network = build(config.name, 2, config.width, config.like).train()
        try:
            if CATALOGUE[config.name].splits:
                # Shrink pooling leaves what strides leave, of the last phases the least.
                network, stride = network.strided().train(), CATALOGUE[config.name].output_stride  # type: ignore[operator]
                read = (size[0] // stride * stride, size[1] // stride * stride)
            network(torch.empty(1, 3, *read))
        except ValueError as error:
            raise ValueError(
                f"batch_size is 1: {config.name} has a batch norm with one value a channel at "
                f"{size[1]}x{size[0]} pixels; 2 or more"
            ) from error
