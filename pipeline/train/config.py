"""The configuration of a training: what a file says, with the values that are possible."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from fullres.models.catalogue import CATALOGUE, Loss, Publisher, build, check
from fullres.models.downsampler import Downsampler
from fullres.ops.pooling import shares_of_phases
from fullres.pipeline.datasets import DATASETS, Dataset, dataset
from fullres.pipeline.datasets.dataset import MAX_CLASSES
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.train.layout import ParallelConfig, Section

Precision = Literal["fp32", "bf16", "fp16"]


@cache
def _small_image_of(name: str) -> tuple[int, int] | None:
    """Height and width of what a downsampler looks at, None of another network."""
    if CATALOGUE[name].segments:
        return None
    with torch.device("meta"):
        network = build(name, 2)
    assert isinstance(network, Downsampler)
    return network.small


class ModelConfig(Section):
    """The network, and how it starts: from a trained network's weights, from ImageNet weights of its backbone
    (a published `.pth`), or from scratch.

    `weights`: a file, a published name or an address, as `--weights` of other commands takes them; fetched by
    each process that starts, unless it is in its cache.

    `auxiliary`: what its auxiliary heads learn, where it has some, or "none" of them. `auxiliary_stages`:
    behind which of the backbone's features they are, 0 the finest of four. By default with "cross_entropy"
    one behind feature 2 (PSPNet's fourth stage, Sec. 4), none for OCRNet, whose soft regions are that; with
    "class_probability" one behind each (SeeThroughNet, Sec. 4.1). `loss`: what the prediction itself is
    trained by, its paper's where none is named. `backbone_weights`: one file for all of an SPGNet's encoders,
    or as many as it has. `freeze`: what keeps its values. `like`: whose network of that name it is, if not
    its authors'; weights that a publisher trained start no other.
    """

    name: str
    width: float = Field(default=1.0, gt=0)
    like: Publisher | None = None
    auxiliary: Literal["cross_entropy", "class_probability", "none"] = "cross_entropy"
    auxiliary_stages: tuple[int, ...] | None = None
    loss: Loss | None = None
    weights: str | Path | None = None
    backbone_weights: Path | tuple[Path, ...] | None = None
    freeze: tuple[Literal["batch_norm", "backbone"], ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> "ModelConfig":
        if self.name not in CATALOGUE:
            raise ValueError(f"name is '{self.name}': one of {', '.join(CATALOGUE)}")
        check(self.name, self.like)
        files = self.backbone_weights
        said = ", ".join(map(str, files)) if isinstance(files, tuple) else str(files)
        if self.weights is not None and files is not None:
            raise ValueError(f"weights is '{self.weights}', backbone_weights is '{said}': one of them")
        encoders = CATALOGUE[self.name].encoders
        if isinstance(files, tuple) and len(files) != len(encoders):
            raise ValueError(
                f"backbone_weights is '{said}': one file, or as many as {self.name} has backbones,"
                f" {len(encoders)}"
            )
        losses = CATALOGUE[self.name].losses
        if self.loss is not None and self.loss not in losses:
            raise ValueError(f"loss is '{self.loss}': {self.name} has {' or '.join(losses)}")
        stages = self.auxiliary_stages
        if stages is not None and (self.auxiliary == "none" or not _are_stages(stages)):
            raise ValueError(
                f"auxiliary_stages is {list(stages)}: some of 0, 1, 2, 3, each once and in order; not with"
                " auxiliary = 'none'"
            )
        if "backbone" in self.freeze and not encoders:
            raise ValueError(f"freeze is {list(self.freeze)}: {self.name} has no backbone of its own")
        return self


def _are_stages(stages: tuple[int, ...]) -> bool:
    return len(stages) > 0 and set(stages) <= {0, 1, 2, 3} and sorted(set(stages)) == list(stages)


class DataConfig(Section):
    """What is trained on: a split of a data set below `root`, a local folder or one in an object store, or a
    folder of `images` and one of `labels`. What label ids mean is said by `dataset`: that of a data set, or
    "folder", which has as many `classes` as are given, 0 and upwards, and 255 for none.

    `validation`: the split that the network is scored on. `targets`: a folder that `fullres targets` wrote of
    the split, local or in an object store; frames that have none there are left out. `in_memory`: decode
    every image once and keep it. `workers`: processes that read and augment beside the training; 0: the
    training itself does.
    """

    dataset: str
    classes: int | None = Field(default=None, ge=2, le=MAX_CLASSES)
    root: str | None = None
    split: str = "train"
    validation: str | None = None
    images: Path | None = None
    labels: Path | None = None
    targets: str | None = None
    in_memory: bool = False
    workers: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _known(self) -> "DataConfig":
        if self.dataset not in [*DATASETS, "folder"]:
            raise ValueError(f"dataset is '{self.dataset}': one of {', '.join(DATASETS)}, or folder")
        if (self.dataset == "folder") != (self.classes is not None):
            raise ValueError(f"classes is {self.classes}: needed with dataset 'folder', and with no other")
        folders = [self.images, self.labels]
        if folders.count(None) != (0 if self.root is None else 2):
            raise ValueError(
                f"root is {self.root}, images is {self.images}, labels is {self.labels}: root, or both others"
            )
        if self.validation is not None and self.root is None:
            raise ValueError(f"validation is '{self.validation}': a split of a data set that has a root")
        if self.targets is not None and self.root is None:
            raise ValueError(f"targets is '{self.targets}': of a data set that has a root")
        for name, split in (("split", self.split), ("validation", self.validation)):
            splits = self.known().splits
            if self.root is not None and split is not None and split not in splits:
                raise ValueError(f"{name} is '{split}': {self.dataset} has {', '.join(splits)}")
        return self

    def known(self) -> Dataset:
        return dataset(self.dataset) if self.classes is None else folder(self.classes)


class Augmentation(Section):
    """How each sample is changed at random before its crop; what is not given is not done.

    scale: a factor drawn evenly between the two; with `scale_step` in steps of so much. rotation: of half of
    the samples, by up to so many degrees either way. mirror: half of the samples. blur: of half of the
    samples, Gaussian, its standard deviation in pixels between the two. colour: brightness, contrast and
    saturation by a factor of 1 and up to so much more or less, hue by up to so much of the colour circle.
    salt_and_pepper: this share of the pixels becomes black or white.
    class_uniform: this share of the samples is drawn by class and not by image: a class, each as often, and a
    place where it is, which the crop covers.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    scale_step: float = Field(default=0.0, ge=0)
    rotation: float = Field(default=0.0, ge=0, le=180)
    mirror: bool = True
    blur: tuple[float, float] | None = None
    colour: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    salt_and_pepper: float = Field(default=0.0, ge=0, le=1)
    class_uniform: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _possible(self) -> "Augmentation":
        for name, pair in (("scale", self.scale), ("blur", self.blur)):
            if pair is not None and not 0 < pair[0] <= pair[1] < 100:
                raise ValueError(f"{name} is {list(pair)}: the least and the most, above 0 and below 100")
        if not all(0 <= value <= 1 for value in self.colour) or self.colour[3] > 0.5:
            raise ValueError(f"colour is {list(self.colour)}: each 0 to 1, the hue's to 0.5")
        return self


class SamplingConfig(Section):
    """Adaptive downsampling ("Learning Downsampling Near Semantic Boundaries").

    `size`: h x w points at which each crop and its label map are sampled, and whole frames in evaluation;
    without it they are as they are. `auxiliary`: the weights of a downsampler that says where, as for
    `model.weights`; without them at a uniform grid. `joint`: that downsampler goes on learning beside the
    network, from its loss and so many times its own. Of a downsampler's own training `smoothness` is lambda
    of Eq. 2, and `target_classes` are those whose boundaries count, all if none is named.
    """

    size: tuple[int, int] | None = None
    auxiliary: str | Path | None = None
    joint: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    smoothness: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    target_classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> "SamplingConfig":
        if self.size is not None and min(self.size) < 2:
            raise ValueError(f"size is {list(self.size)}: at least 2 points a side")
        if self.auxiliary is not None and self.size is None:
            raise ValueError(f"auxiliary is '{self.auxiliary}': of a training with a size")
        if self.joint is not None and self.auxiliary is None:
            raise ValueError(f"joint is {self.joint}: of a training with an auxiliary, which learns too")
        return self


class TrainingConfig(Section):
    """The values of "Split-Merge Pooling", Sec. 4.2, by default.

    `out`: what the training leaves goes there, a local folder or one in an object store, as `Storage` takes.
    `batch_size`: samples of a step, computed `accumulation` parts after each other. `phases`: split batches
    kept of each of the network's splits (SMP only). `loss_stride`: interpolate on a random lattice of this
    stride (FCN32s and FCN8s only). "sgd" has a momentum of 0.9. `head_rate`: the learning rate of all but the
    backbone is so many times higher. `decay_norms`: whether weight decay is for batch norm and biases too.
    `schedule`: "poly" falls to zero with power 0.9, "exponential" to `final_share` of the learning rate;
    before that it rises for `warm_up` steps. `gradient_clipping`: the largest norm of all gradients.
    `report_every`: steps whose mean loss is a line of the metrics. `checkpoint_every`: steps after which a
    checkpoint is written; the last `keep_checkpoints` stay, and that of the best evaluation.
    `evaluate_every`: steps after which the validation split is scored. `precision`: what layers compute in
    where they can; parameters and optimizer are fp32. `activation_checkpointing`: keep what blocks of the
    network read alone, and compute them once more for the gradients.
    """

    model: ModelConfig
    data: DataConfig
    augmentation: Augmentation = Augmentation()
    sampling: SamplingConfig = SamplingConfig()
    parallel: ParallelConfig = ParallelConfig()
    out: str
    steps: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=10, gt=0)
    accumulation: int = Field(default=1, gt=0)
    crop: tuple[int, int] = (512, 512)
    phases: tuple[int, int, int, int] = (1, 1, 1, 1)
    loss_stride: int = Field(default=1, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-5, gt=0)
    head_rate: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_norms: bool = True
    schedule: Literal["constant", "poly", "exponential"] = "constant"
    final_share: float = Field(default=0.01, gt=0, le=1)
    warm_up: int = Field(default=0, ge=0)
    gradient_clipping: float | None = Field(default=None, gt=0)
    precision: Precision = "fp32"
    activation_checkpointing: bool = False
    report_every: int = Field(default=20, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    evaluate_every: int | None = Field(default=None, gt=0)
    save_as: Literal["fp32", "fp16"] = "fp32"

    @field_validator("out", mode="before")
    @classmethod
    def _location(cls, out: Any) -> Any:
        return str(out) if isinstance(out, Path) else out

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
        self._check_sampling()
        if (split := self.parallel.split) > 1:
            if "phases" not in options:
                raise ValueError(f"parallel.split is {split}: only an SMP splits, not {self.model.name}")
            shares_of_phases(self.phases, split)
        if CATALOGUE[self.model.name].splits and (split > 1 or self.parallel.pipeline > 1):
            # All split batches of a level are of one size then.
            stride, name = CATALOGUE[self.model.name].output_stride, "split" if split > 1 else "pipeline"
            if any(side % stride for side in self.crop):
                raise ValueError(f"crop is {self.crop}: with parallel.{name} multiples of {stride}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation is {self.accumulation}: batch_size, {self.batch_size}, is no multiple of it"
            )
        if self.warm_up >= self.steps:
            raise ValueError(f"warm_up is {self.warm_up}: fewer than the {self.steps} steps")
        if self.head_rate != 1 and not CATALOGUE[self.model.name].encoders:
            raise ValueError(f"head_rate is {self.head_rate}: {self.model.name} has no backbone of its own")
        if (self.evaluate_every is None) != (self.data.validation is None):
            raise ValueError(
                f"evaluate_every is {self.evaluate_every}, data.validation is {self.data.validation}: both or"
                " neither"
            )
        return self

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of what the network reads in a step: a crop, what is sampled from one, or, of a downsampler,
        what a crop is shrunk to."""
        small = _small_image_of(self.model.name)
        if small is not None and all(a <= b for a, b in zip(small, self.crop, strict=True)):
            return small
        return self.sampling.size or self.crop

    def _check_sampling(self) -> None:
        name, sampling = self.model.name, self.sampling
        if CATALOGUE[name].segments:
            if sampling.smoothness != 1 or sampling.target_classes:
                raise ValueError(
                    f"sampling.smoothness is {sampling.smoothness}, target_classes are "
                    f"{list(sampling.target_classes)}: of a downsampler's training, not of {name}'s"
                )
        elif sampling.size is not None:
            raise ValueError(f"sampling.size is {list(sampling.size)}: {name} samples nothing, it says where")
        if sampling.joint is not None and self.parallel.pipeline > 1:
            raise ValueError(
                f"sampling.joint is {sampling.joint}: without parallel.pipeline, now {self.parallel.pipeline}"
            )
        known = self.data.known()
        for target in sampling.target_classes:
            if target not in known.classes:
                raise ValueError(
                    f"sampling.target_classes: '{target}' is no class of {known.name}: "
                    + ", ".join(known.classes)
                )

    def worker_counts(self) -> list[int]:
        """The numbers of workers that `parallel` allows and that divide a batch, from the least to the most.
        Raises ValueError where there is none."""
        most = self.parallel.data or 1
        least, together = self.parallel.least or most, self.parallel.together
        part = self.batch_size // self.accumulation
        if counts := [data * together for data in range(least, most + 1) if part % data == 0]:
            return counts
        kind = "workers" if together == 1 else f"groups of {together} workers"
        raise ValueError(
            f"batch_size is {self.batch_size}: no multiple of "
            + (f"{most} {kind}" if least == most else f"any number of {kind} from {least} to {most}")
            + (f" times accumulation {self.accumulation}" if self.accumulation > 1 else "")
        )

    def on(self, workers: int) -> "TrainingConfig":
        """As it is on so many of them."""
        data = workers // self.parallel.together
        parallel = self.parallel.model_copy(update={"data": data, "least": None})
        return self.model_copy(update={"parallel": parallel})

    def identity(self) -> str:
        """What must agree for a checkpoint to be gone on from."""
        free = {
            "out", "report_every", "checkpoint_every", "keep_checkpoints", "evaluate_every", "save_as",
            "data", "parallel", "activation_checkpointing",
        }  # fmt: skip
        data = self.data.model_dump(mode="json", exclude={"in_memory", "workers", "validation"})
        said = self.model_dump(mode="json", exclude=free)
        if self.model.like is None:
            del said["model"]["like"]  # as before there was such a field
        if self.sampling == SamplingConfig():
            del said["sampling"]
        if self.augmentation.salt_and_pepper == 0:
            del said["augmentation"]["salt_and_pepper"]
        return json.dumps({**said, "data": data}, sort_keys=True)


def extended(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A file's values over those of the file that it extends, section by section."""
    merged = dict(base)
    for name, value in own.items():
        section = merged.get(name)
        both = isinstance(section, Mapping) and isinstance(value, Mapping)
        merged[name] = extended(section, value) if both else value  # type: ignore[arg-type]
    return merged
