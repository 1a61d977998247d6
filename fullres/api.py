"""The public functions: networks by name or file, and labels of images, without a command line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.weights import load_network, load_own_network
from fullres.ops.errors import FullresError
from fullres.ops.normalisation import Normalisation
from fullres.pipeline.data.images import read_channels
from fullres.pipeline.datasets import DATASETS, Dataset
from fullres.pipeline.datasets import dataset as named_dataset
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.engines import Engine, Resources, engine_for, label_image
from fullres.pipeline.predict.execute import native_precision
from fullres.pipeline.predict.published import local_weights
from fullres.pipeline.predict.shipped import needed_weights
from fullres.pipeline.targets.compute import TargetSpec, targets_of

Image = np.ndarray | str | Path


class ArgumentError(FullresError, ValueError):
    """An argument that is not possible; the message names it, its value and what is."""


def load(model: str | Path, dataset: str | None = None) -> nn.Module:
    """A network of the catalogue in evaluation mode, fp32, on the CPU: by its name with the weights that come
    with the project, by the name of published weights (`fullres weights` lists them), which are fetched, or
    from a `.safetensors` file that `fullres train` or `fullres convert` wrote, here or at an address,
    `https://...` or `hf://...`.

    Args:
        dataset: by a network's name alone: whose classes it is to label. "camvid": photographs; the drawn
            street scenes if none is given.

    Raises ArgumentError for an unknown data set, WeightsError for a name without weights or a file that
    can't be read, FetchError.
    """
    if str(model) in CATALOGUE:
        if dataset not in (None, *DATASETS):
            raise ArgumentError(f"dataset is '{dataset}': one of {', '.join(DATASETS)}")
        return load_network(str(model), needed_weights(str(model), dataset))[0]
    if dataset is not None:
        raise ArgumentError(f"dataset is '{dataset}': a file says by itself what it labels; leave it out")
    path, row = local_weights(str(model))
    if row is not None:
        return load_network(row.model, path, row.like)[0]
    if not path.is_file():
        raise ArgumentError(f"model is '{model}': no such file, and none of {', '.join(CATALOGUE)}")
    return load_own_network(path)[0]


def predict(
    images: Image | Sequence[Image],
    network: nn.Module,
    *,
    workers: int | None = None,
    memory_budget: int = 4 << 30,
    address: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    precision: Literal["fp32", "bf16", "auto"] = "auto",
    scores: bool = False,
    normalisation: Normalisation | None = None,
    bands: Sequence[int] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Every pixel's class, computed within `memory_budget` bytes (of each worker) beyond the network's own.

    SMP, FCN32s, FCN8s and what `split_merge` returns are computed at full resolution, exactly. Any other
    network is run on the whole image and must return logits N x classes x H x W of the size of what it reads.
    The network itself is not changed.

    Args:
        images: H x W x channels uint8 arrays (RGB, where there are three) or paths, one or several.
        workers: how many Ray workers; without it everything happens in this process.
        address: of the cluster with the workers ('auto', 'host:port'). That which this process is connected
            to, or else one of this machine's own, if none is given.
        device: "cpu" or "cuda"; a GPU where there is one.
        precision: "fp32", "bf16" or "auto": bf16 where the hardware computes it natively.
        scores: return scores (probabilities for networks run on the whole image) in place of classes.
        normalisation: how the network reads images. Without it what its attribute `normalisation` says, or
            else ImageNet's mean and standard deviation of RGB, as those of the catalogue do.
        bands: of TIFF files, by their numbers from 1: for red, green and blue, or as many as are read.

    Returns:
        H x W uint8 class ids, or classes x H x W float32 or float16 scores; a list for several images.

    Raises:
        FullresError: an image that can't be read, a budget too small, an impossible argument.
    """
    several = isinstance(images, Sequence) and not isinstance(images, str)
    listed: list[Image] = list(images) if several else [images]  # type: ignore[arg-type, list-item]
    if precision not in ("fp32", "bf16", "auto"):
        raise ArgumentError(f"precision is '{precision}': fp32, bf16 or auto")
    if device not in (None, "cpu", "cuda"):
        raise ArgumentError(f"device is '{device}': cpu or cuda")
    if workers is not None and workers < 1:
        raise ArgumentError(f"workers is {workers}: 1 or more, or None for this process alone")
    if workers is None and address is not None:
        raise ArgumentError(f"address is '{address}': say how many workers there are to be")
    engine = engine_for(network, normalisation=normalisation)

    def pixels(index: int) -> np.ndarray:
        return _pixels(listed[index], engine.normalisation.channels, bands)

    how = (memory_budget, device, precision, scores)
    if workers is None:
        results = [_in_this_process(engine, pixels(i), *how) for i in range(len(listed))]
    else:
        results = _on_workers(engine, pixels, len(listed), workers, address, *how)
    return results if several else results[0]


def targets(
    labels: Image | Sequence[Image], dataset: str | Dataset, **spec: Any
) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
    """Training targets of label maps, computed in this process; `fullres targets` writes those of whole data
    sets.

    Args:
        labels: H x W uint8 arrays of trainIds, or paths of label files as the data set stores them; one or
            several.
        dataset: its name ("cityscapes"), or a `Dataset`.
        spec: the fields of `pipeline.targets.compute.TargetSpec`: grid, smoothness, target_classes, metric,
            cpp, boundary, distance. `target_classes` is the data set's own if it isn't given.

    Returns:
        "phi", the sampling tensor, and what else is asked for, as `pipeline.targets.compute.targets_of` says;
        a list for several label maps.

    Raises:
        FullresError: a label map that can't be read or has other ids, an impossible argument.
    """
    several = isinstance(labels, Sequence) and not isinstance(labels, str)
    listed: list[Image] = list(labels) if several else [labels]  # type: ignore[arg-type, list-item]
    try:
        known = named_dataset(dataset) if isinstance(dataset, str) else dataset
        asked = TargetSpec(**{"target_classes": known.target_classes or None, **spec})
        asked.check(known)
        results = []
        for each in listed:
            ids = each if isinstance(each, np.ndarray) else known.read(each)
            if ids.ndim != 2 or ids.dtype != np.uint8 or 0 in ids.shape:
                raise ArgumentError(f"labels are {ids.dtype} of shape {ids.shape}: uint8 H x W is read")
            wrong = sorted(set(np.unique(ids).tolist()) - {*range(len(known.classes)), known.ignore_index})
            if wrong:
                raise ArgumentError(f"labels: ids {wrong} are no trainIds of {known.name}")
            results.append(targets_of(ids, known, asked))
    except (TypeError, ValueError) as error:
        if isinstance(error, FullresError):
            raise
        raise ArgumentError(str(error)) from error
    return results if several else results[0]


def _pixels(image: Image, channels: int, bands: Sequence[int] | None) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_channels(image, channels, bands)
    if image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8 or 0 in image.shape:
        raise ArgumentError(
            f"image is {image.dtype} of shape {image.shape}: uint8 H x W x {channels} is read"
        )
    return image


def _in_this_process(
    engine: Engine, image: np.ndarray, memory_budget: int, device: str | None, precision: str, scores: bool
) -> np.ndarray:
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = _precision(precision, where)
    resources = Resources(1, memory_budget, chosen, where.type)
    return label_image(engine, engine.predictor(where, chosen), image, resources, scores)


def _on_workers(
    engine: Engine,
    pixels: Callable[[int], np.ndarray],
    images: int,
    workers: int,
    address: str | None,
    memory_budget: int,
    device: Literal["cpu", "cuda"] | None,
    precision: str,
    scores: bool,
) -> list[np.ndarray]:
    # Ray is imported where it is needed: alone it takes a second.
    from fullres.cluster.connection import ray_cluster
    from fullres.cluster.coordinator import Coordinator
    from fullres.cluster.stream import Options, Task
    from fullres.cluster.workers import cluster_device

    results: dict[str, np.ndarray] = {}
    tasks = [Task(Path(str(i)), Path(str(i))) for i in range(images)]
    with ray_cluster(address, workers):
        where = device or cluster_device()
        chosen = _precision(precision, torch.device(where))
        coordinator = Coordinator(engine, Options(chosen, memory_budget, workers, where, scores, strict=True))
        try:
            coordinator.run(
                tasks,
                lambda path: pixels(int(path.name)),
                lambda task, image, result: results.update({task.stem.name: result}),
            )
        finally:
            coordinator.close()
    return [results[task.stem.name] for task in tasks]


def _precision(asked: str, device: torch.device) -> Precision:
    return native_precision(device) if asked == "auto" else asked  # type: ignore[return-value]
