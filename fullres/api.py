"""The public functions: networks by name or file, and labels of images, without a command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.fcn import FCN8s, FCN32s
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.smp import SMP
from fullres.models.weights import WeightsError, load_network, read_state, shipped_weights
from fullres.ops.errors import FullresError
from fullres.pipeline.data.images import read_image
from fullres.pipeline.predict.engines import Engine, Resources, SplitMerge, Windows
from fullres.pipeline.predict.execute import native_precision
from fullres.pipeline.predict.windows import WindowSpec

Image = np.ndarray | str | Path


class ArgumentError(FullresError, ValueError):
    """An argument that is not possible; the message names it, its value and what is."""


def load(model: str | Path) -> nn.Module:
    """A network of the catalogue in evaluation mode, fp32, on the CPU: by its name with the weights that come
    with the project, or from a `.safetensors` file that `fullres train` wrote.

    Raises ArgumentError for a name without weights, WeightsError for a file that can't be read.
    """
    if str(model) in CATALOGUE:
        weights = shipped_weights(str(model))
        if not weights.exists():
            raise ArgumentError(f"model is '{model}': no weights come with it; give the path of a file")
        return load_network(str(model), weights)[0]
    path = Path(model)
    if not path.is_file():
        raise ArgumentError(f"model is '{model}': no such file, and none of {', '.join(CATALOGUE)}")
    info = read_state(path)[1]
    if info is None or info.model is None:
        raise WeightsError(f"weights {path}: they do not say which network they are of")
    return load_network(info.model, path)[0]


def predict(
    images: Image | Sequence[Image],
    network: nn.Module,
    *,
    memory_budget: int = 4 << 30,
    device: str | None = None,
    precision: Literal["fp32", "bf16", "auto"] = "auto",
    scores: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Every pixel's class, computed in this process within `memory_budget` bytes beyond the network's own.

    SMP, FCN32s, FCN8s and what `split_merge` returns are computed at full resolution, exactly. Any other
    network is run on the whole image and must return logits N x classes x H x W of the size of what it reads.
    The network itself is not changed.

    Args:
        images: H x W x 3 uint8 RGB arrays or paths, one or several. Networks read them normalised with
            ImageNet's mean and standard deviation, as those of the catalogue do.
        device: "cpu" or "cuda"; a GPU where there is one.
        precision: "fp32", "bf16" or "auto": bf16 where the hardware computes it natively.
        scores: return scores (probabilities for networks run on the whole image) in place of classes.

    Returns:
        H x W uint8 class ids, or classes x H x W float32 or float16 scores; a list for several images.

    Raises:
        FullresError: an image that can't be read, a budget too small, an impossible argument.
    """
    several = isinstance(images, Sequence) and not isinstance(images, str)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = native_precision(where) if precision == "auto" else precision
    if chosen not in ("fp32", "bf16"):
        raise ArgumentError(f"precision is '{precision}': fp32, bf16 or auto")
    engine = _engine(network)
    predictor = engine.predictor(where, chosen)
    results = []
    for image in images if several else [images]:  # type: ignore[union-attr]
        pixels = image if isinstance(image, np.ndarray) else read_image(image)  # type: ignore[arg-type]
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise ArgumentError(f"image is {pixels.dtype} of shape {pixels.shape}: uint8 H x W x 3 is read")
        size = (pixels.shape[0], pixels.shape[1])
        plan = engine.plan(size, Resources(1, memory_budget, chosen, where.type), scores)
        parts = engine.parts(plan)
        merger = engine.merger(plan, scores)
        for grain in plan.grains:
            rows, columns = parts[grain.tile]
            part = pixels[rows.start : rows.stop, columns.start : columns.stop]
            merger.add(grain, predictor.run(plan.schedule, grain, part, scores))
        results.append(merger.result)
    return results if several else results[0]


def _engine(network: nn.Module) -> Engine:
    if isinstance(network, SMP | FCN32s | FCN8s | FullResolution):
        return SplitMerge(network)
    return Windows(network, WindowSpec())
