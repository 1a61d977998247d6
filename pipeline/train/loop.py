"""Training in one process: the loop around a network and its objective, its configuration and checkpoints.

Every step draws from generators seeded by (seed, step), so a run that was stopped goes on exactly as if it
had not been, and the same configuration on the same machine ends with the same weights.
"""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.weights import WeightsInfo, damaged_entry, not_finite, save_weights
from fullres.pipeline.data.files import atomic
from fullres.pipeline.data.images import list_images, read_image
from fullres.pipeline.data.transforms import normalise, random_crop
from fullres.pipeline.datasets import DATASETS, Dataset, dataset
from fullres.pipeline.datasets.dataset import MAX_CLASSES
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.datasets.pairs import pair_with_labels
from fullres.pipeline.train.network import ModelConfig, Section, check_batch, initial_network
from fullres.pipeline.train.objectives import SegmentationLoss


class DataConfig(Section):
    """A folder of images and one of label maps, and what their ids mean: those of a data set, or of "folder",
    which has as many `classes` as are given, 0 and upwards, and 255 for none."""

    dataset: str
    classes: int | None = Field(default=None, ge=2, le=MAX_CLASSES)
    images: Path
    labels: Path
    in_memory: bool = False  # decode every image once and keep it

    @model_validator(mode="after")
    def _known(self) -> "DataConfig":
        if self.dataset not in [*DATASETS, "folder"]:
            raise ValueError(f"dataset is '{self.dataset}': one of {', '.join(DATASETS)}, or folder")
        if (self.dataset == "folder") != (self.classes is not None):
            raise ValueError(f"classes is {self.classes}: needed with dataset 'folder', and with no other")
        return self

    def known(self) -> Dataset:
        return dataset(self.dataset) if self.classes is None else folder(self.classes)


class TrainingConfig(Section):
    """The values of "Split-Merge Pooling", Sec. 4.2, by default. `phases`: split batches kept of each of the
    network's splits (SMP only). `loss_stride`: interpolate on a random lattice of this stride (FCN32s and
    FCN8s only). "sgd" has a momentum of 0.9."""

    model: ModelConfig
    data: DataConfig
    out: Path
    steps: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=10, gt=0)
    crop: tuple[int, int] = (512, 512)
    phases: tuple[int, int, int, int] = (1, 1, 1, 1)
    loss_stride: int = Field(default=1, ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["constant", "poly"] = "constant"
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = Field(default=500, gt=0)
    save_as: Literal["fp32", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _possible(self) -> "TrainingConfig":
        if not all(1 <= n <= most for n, most in zip(self.phases, (16, 4, 4, 4), strict=True)):
            raise ValueError(f"phases are {self.phases}: 1 to 16 of the first, 1 to 4 of each other split")
        if any(side < 32 for side in self.crop):
            raise ValueError(f"crop is {self.crop}: at least 32 x 32, one element of the last features")
        options = CATALOGUE[self.model.name].training_options
        if self.phases != (1, 1, 1, 1) and "phases" not in options:
            raise ValueError(f"phases are {self.phases}: only an SMP splits, not {self.model.name}")
        if self.loss_stride != 1 and "loss_stride" not in options:
            raise ValueError(
                f"loss_stride is {self.loss_stride}: only FCN32s and FCN8s have one, not {self.model.name}"
            )
        return self


@dataclass(frozen=True)
class StepReport:
    """What `fit` tells after a step; `loss` is the mean since the last report."""

    step: int
    steps: int
    loss: float


class Samples:
    """Random crops of a folder of images and their label maps."""

    def __init__(self, config: DataConfig, known: Dataset) -> None:
        self.known = known
        self.pairs = pair_with_labels(list_images([config.images]), config.labels, known, "image")
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if config.in_memory else None

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        image_path, label_path = self.pairs[index]
        image, labels = read_image(image_path), self.known.read(label_path)
        if image.shape[:2] != labels.shape:
            raise ValueError(f"{image_path} is {image.shape[:2]}, its labels {label_path} are {labels.shape}")
        if self._kept is not None:
            self._kept[index] = image, labels
        return image, labels

    def batch(self, count: int, crop: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`count` crops: images N x h x w x 3 uint8, labels N x h x w int64."""
        drawn = [
            random_crop(*self._read(i), crop, self.known.ignore_index, rng)
            for i in rng.integers(len(self.pairs), size=count)
        ]
        images, labels = (np.stack(part) for part in zip(*drawn, strict=True))
        return torch.from_numpy(images), torch.from_numpy(labels).long()


def fit(
    config: TrainingConfig,
    device: torch.device,
    progress: Callable[[StepReport], None] = lambda report: None,
    drop_head: bool = False,
) -> Path:
    """Train to the end, from the last checkpoint in `config.out` if there is one; returns the weights' path.

    Writes `checkpoint.pt` now and then and `weights.safetensors`, without auxiliary heads, at the end.
    `drop_head`: see `initial_network`. Raises ValueError if the folder holds a checkpoint of another
    configuration, if the network can't be trained on such batches, OSError if it can't write there, and what
    reading data and weights raises.
    """
    known = config.data.known()
    check_batch(config.model, config.batch_size, config.crop)
    samples = Samples(config.data, known)
    torch.manual_seed(config.seed)
    checkpoint = config.out / "checkpoint.pt"
    resumed, start = checkpoint.exists(), config.model
    if resumed:  # it has all weights: the files of the start may be gone
        start = start.model_copy(update={"weights": None, "backbone_weights": None})
    network = initial_network(start, len(known.classes), drop_head)
    for option in CATALOGUE[config.model.name].training_options:
        setattr(network, option, getattr(config, option))
    loss_of = SegmentationLoss(network, known.ignore_index)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(config, network)
    first = _resume(checkpoint, config, network, optimizer) if resumed else 0
    _check_space(config, network, optimizer)
    bf16 = config.precision == "bf16"
    losses = []
    for step in range(first, config.steps):
        images, labels = samples.batch(
            config.batch_size, config.crop, np.random.default_rng((config.seed, step))
        )
        torch.manual_seed(config.seed * 1_000_003 + step)  # this step's phases and dropout
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        inputs = normalise(images.to(device), torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(inputs, labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"loss is {losses[-1]} at step {step}: lower learning_rate (now {config.learning_rate})"
            )
        if (step + 1) % 20 == 0 or step + 1 == config.steps:
            progress(StepReport(step + 1, config.steps, sum(losses) / len(losses)))
            losses.clear()
        if (step + 1) % config.checkpoint_every == 0:
            _save(checkpoint, step + 1, config, network, optimizer)
    network.auxiliary = None  # type: ignore[assignment]  # heads are for training alone
    weights = config.out / "weights.safetensors"
    info = WeightsInfo(config.model.name, config.model.width, len(known.classes), known.name)
    with atomic(weights) as temporary:
        save_weights(network, temporary, info, torch.float16 if config.save_as == "fp16" else torch.float32)
    return weights


def _optimizer(config: TrainingConfig, network: nn.Module) -> torch.optim.Optimizer:
    parameters, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
    return torch.optim.Adam(parameters, rate, weight_decay=decay)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Constant, or "poly": falling to zero with power 0.9."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (1 - step / config.steps) ** 0.9


def _identity(config: TrainingConfig) -> str:
    """What must agree for a checkpoint to be gone on from."""
    return json.dumps(
        config.model_dump(mode="json", exclude={"out", "checkpoint_every", "save_as"}), sort_keys=True
    )


def _check_space(config: TrainingConfig, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make the folder. Raise OSError now where a checkpoint would not fit beside the last one."""
    config.out.mkdir(parents=True, exist_ok=True)
    moments = {torch.optim.Adam: 2, torch.optim.SGD: 1}[type(optimizer)]
    trained = sum(p.nbytes for p in network.parameters())
    needed = trained * (1 + moments) + sum(b.nbytes for b in network.buffers())
    free = shutil.disk_usage(config.out).free
    if free < needed:
        raise OSError(
            f"{config.out}: a checkpoint takes {needed >> 20} MiB, the disk has {free >> 20} MiB free"
        )


def _save(
    path: Path, step: int, config: TrainingConfig, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    if (name := not_finite(network.state_dict())) is not None:
        raise ValueError(
            f"{name} holds values that are no finite numbers at step {step}: lower learning_rate "
            f"(now {config.learning_rate})"
        )
    state = {
        "step": step,
        "config": _identity(config),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's word for what the file refuses
            raise OSError(
                f"{path}: can't be written, the disk may be full; the last checkpoint stays"
            ) from error


def _resume(path: Path, config: TrainingConfig, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if (entry := damaged_entry(path)) is not None:
        raise ValueError(f"{path} is damaged ({entry}); remove it to start afresh")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError):
        state = None
    if not isinstance(state, dict) or state.keys() != {"step", "config", "network", "optimizer"}:
        raise ValueError(f"{path} is no checkpoint of a training; remove it to start afresh")
    if state["config"] != _identity(config):
        raise ValueError(f"{path} is of another configuration; give another `out` or remove it")
    try:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is of another network; remove it to start afresh") from error
    return state["step"]
