"""Weights in files: the project's own `.safetensors` and published `.pth` / `.pt` checkpoints.

A file of the project carries what it is in its metadata (model, width, classes), so that `--model` and the
file can be held against each other; of any other, names and shapes say it. Whatever does not fit is one error
that lists every key.
"""

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fullres.models.backbones.hrnet import HRNet
from fullres.models.backbones.mobilenet import MobileNetV2
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import CATALOGUE, build
from fullres.models.spgnet import Stemless
from fullres.ops.errors import FullresError


class WeightsError(FullresError, ValueError):
    """A weights file that can't be read or is not of this network. One line, but for the list of keys."""


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself; of a foreign file, what its shapes say."""

    model: str | None
    width: float
    num_classes: int
    dataset: str | None = None


def shipped_weights() -> dict[tuple[str, str], Path]:
    """The files that come with the project, by the data set that they are trained on and the network."""
    files = (Path(__file__).parent / "shipped").glob("*/*.safetensors")
    return {(path.parent.name, path.stem): path for path in sorted(files)}


def save_weights(
    network: nn.Module, path: Path, info: WeightsInfo, dtype: torch.dtype = torch.float32
) -> None:
    """Write what `weights_file` returns of the network's state dict. Not atomic. Raises WeightsError, and
    writes nothing, as it does."""
    path.write_bytes(weights_file(network.state_dict(), info, dtype))


def weights_file(state: Mapping[str, Tensor], info: WeightsInfo, dtype: torch.dtype = torch.float32) -> bytes:
    """A `.safetensors` file of a network's state dict, floating-point tensors in `dtype`, with `info` as
    metadata. Raises WeightsError where a value is no finite number in `dtype`."""
    tensors = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype).contiguous()
        for name, t in state.items()
        if not name.endswith("num_batches_tracked")
    }
    if (name := not_finite(tensors)) is not None:
        raise WeightsError(f"{name} holds values that are no finite numbers in {str(dtype)[6:]}: not saved")
    return save(tensors, metadata={"fullres": json.dumps(vars(info))})


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first tensor with NaN or infinity in it."""
    return next((name for name, t in state.items() if not t.isfinite().all()), None)


def damaged_entry(file: Path | IO[bytes]) -> str | None:
    """The first entry of a torch checkpoint that its checksum does not fit: torch's reader doesn't look. None
    for a sound one, and for what is no zip archive."""
    if not zipfile.is_zipfile(file):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        return str(error)


def read_state(path: Path) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    """All tensors of a file, and its own metadata if it is the project's. Raises WeightsError.

    `.pth` and `.pt` are read without unpickling code; a `state_dict` or `model` entry and the prefixes
    `module.` and `model.` that training frameworks put in front are taken off, and the loss's own tensors
    (`loss.criterion.weight` in HRNet's checkpoints) left out.
    """
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"weights {path}: not a safetensors file ({error})") from error
        try:
            return state, _own_info(metadata["fullres"]) if "fullres" in metadata else None
        except (TypeError, ValueError) as error:
            raise WeightsError(f"weights {path}: its metadata are not of this version ({error})") from error
    if path.suffix not in (".pth", ".pt"):
        raise WeightsError(f"weights {path}: '{path.suffix}' is not read; .safetensors, .pth and .pt are")
    if (entry := damaged_entry(path)) is not None:
        raise WeightsError(f"weights {path}: damaged: {entry}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(
            f"weights {path}: not a torch checkpoint ({(str(error) or 'empty').splitlines()[0]})"
        ) from error
    except Exception as error:  # anything: bytes that are no pickle are taken for instructions
        raise WeightsError(f"weights {path}: not a torch checkpoint ({type(error).__name__})") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise WeightsError(f"weights {path}: holds no state dict of tensors")
    loaded = {name: t for name, t in loaded.items() if not name.startswith("loss.")}
    for prefix in ("module.", "model."):
        if loaded and all(name.startswith(prefix) for name in loaded):
            loaded = {name.removeprefix(prefix): t for name, t in loaded.items()}
    return loaded, None


def _own_info(metadata: str) -> WeightsInfo:
    """Raises TypeError or ValueError where it is no such thing."""
    info = WeightsInfo(**json.loads(metadata))
    if not (isinstance(info.width, int | float) and 0 < info.width < math.inf):
        raise ValueError(f"width is {info.width!r}, not a number above 0")
    if not (isinstance(info.num_classes, int) and info.num_classes > 0):
        raise ValueError(f"num_classes is {info.num_classes!r}, not a whole number above 0")
    return info


def load_state(network: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Fill every parameter and buffer of `network` from `state`.

    Raises WeightsError that lists missing and unexpected keys and differing shapes; the network is then as it
    was. (`num_batches_tracked`, which inference never reads, may be absent.)
    """
    own = network.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - counters)
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the network has {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    problems = [
        f"{title}: {', '.join(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("shapes", sorted(shapes)))
        if names
    ]
    if problems:
        raise WeightsError(f"{what} do not fit the network. " + "; ".join(problems))
    if (name := not_finite(state)) is not None:
        raise WeightsError(f"{what}: {name} holds values that are no finite numbers")
    network.load_state_dict(state, strict=False)


def published_state(model: str, network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network of the catalogue under the names that its authors' checkpoints have: the
    backbone's without `backbone.`. `load_network` reads them."""
    theirs = {ours: theirs for theirs, ours in CATALOGUE[model].authors_names.items()}
    state = {}
    for name, tensor in network.state_dict().items():
        start = next((start for start in theirs if name.startswith(start)), "backbone.")
        if name.startswith(start):
            name = theirs.get(start, "") + name.removeprefix(start)
        state[name] = tensor
    return state


def published_backbone(model: str, network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network's encoder as its authors publish it, without classifier: what
    `load_backbone` reads. Of several encoders the first: the others have no stem. Raises WeightsError for a
    network whose backbone has no published form."""
    encoders = CATALOGUE[model].encoders
    if not encoders:
        raise WeightsError(
            f"{model} has no backbone that is published by itself (HRNet, MobileNetV2, ResNet)"
        )
    return network.get_submodule(encoders[0]).state_dict()


def load_backbone(backbone: ResNet | Stemless | MobileNetV2 | HRNet, path: Path) -> None:
    """Fill a ResNet (with or without its stem), MobileNetV2 or HRNet from a published checkpoint that has its
    authors' key names.

    Those are torchvision's (ResNet, MobileNetV2), hszhao/semseg's (ResNet with the deep stem) and the HRNet
    authors' (ImageNet or segmentation). What belongs to the classifier or a segmentation head
    (`not_features` of the class) is left out; the rest must fit. Raises WeightsError.
    """
    state, _ = read_state(path)
    state = {n: t for n, t in state.items() if not n.startswith(backbone.not_features)}
    load_state(backbone, state, f"backbone weights {path}")


def load_network(model: str, path: Path) -> tuple[nn.Module, WeightsInfo]:
    """The network of that name with the weights of a file, in evaluation mode, fp32.

    Width and class count are the file's: what its metadata say, else what its shapes say. Raises WeightsError
    if the file is another network's, ValueError for an unknown name.
    """
    if model not in CATALOGUE:
        raise ValueError(f"model is '{model}': one of {', '.join(CATALOGUE)}")
    state, info = _read_for(model, path, _shapes(model, 1, 1.0))
    network = build(model, info.num_classes, info.width)
    load_state(network, state, f"weights {path}")
    return network.eval(), info


def load_pretrained(network: nn.Module, model: str, path: Path, drop_head: bool = False) -> None:
    """Fill `network`, built by `catalogue.build(model, ...)`, from a file of the same network and width.

    With `drop_head`, what depends on the class count stays as it is, whatever count the file has. Raises
    WeightsError, without `drop_head` also for a file of another class count.
    """
    own = network.state_dict()
    state, info = _read_for(model, path, own)
    classes = _class_count(model, own)
    assert classes is not None  # it has its classifiers
    width, needed = _width(model, info.num_classes, state), _width(model, classes, own)
    if width not in (0, needed):
        raise WeightsError(f"weights {path}: of width {width:g}, the network has {needed:g}")
    if drop_head:
        state |= {name: own[name] for name in _class_axes(model)}
    elif info.num_classes != classes:
        raise WeightsError(
            f"weights {path}: {info.num_classes} classes, the network has {classes}; "
            "a start that drops the head takes all but what depends on their count"
        )
    load_state(network, state, f"weights {path}")


def _read_for(model: str, path: Path, own: Collection[str]) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The tensors of a file under the names `own` of a network, and what the file is."""
    state, info = read_state(path)
    state = _own_names(state, own, CATALOGUE[model].authors_names)
    if info is None:
        classes = _class_count(model, state)
        if classes is None:
            backbone = any(name in own for name in state)
            raise WeightsError(
                f"weights {path}: not of {model}: no convolution {' or '.join(_classifiers(model))}"
                + (" (a backbone's checkpoint starts a training, it labels nothing)" if backbone else "")
            )
        info = WeightsInfo(None, _width(model, classes, state), classes)
    elif info.model != model:
        raise WeightsError(f"weights {path}: of model {info.model}, not of {model}")
    return state, info


def _own_names(
    state: Mapping[str, Tensor], own: Collection[str], authors: Mapping[str, str]
) -> dict[str, Tensor]:
    """Authors' names changed to those of a network with the names `own`. Auxiliary heads are left out where
    it has none: they serve training alone."""
    named = {}
    for name, tensor in state.items():
        for theirs, ours in authors.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        if f"backbone.{name}" in own:
            name = f"backbone.{name}"
        if name in own or not name.startswith("auxiliary."):
            named[name] = tensor
    return named


@cache
def _shapes(model: str, num_classes: int, width: float) -> dict[str, torch.Size]:
    """Of all tensors of a network of the catalogue."""
    with torch.device("meta"):
        return {name: t.shape for name, t in build(model, num_classes, width).state_dict().items()}


def _class_axes(model: str) -> dict[str, int]:
    """The tensors whose shape depends on the class count, and along which axis."""
    one, two = _shapes(model, 1, 1.0), _shapes(model, 2, 1.0)
    return {
        name: axis
        for name in one
        for axis, (n, m) in enumerate(zip(one[name], two[name], strict=True))
        if n != m
    }


def _classifiers(model: str) -> dict[str, int]:
    """The convolutions that put out classes, and how many channels more (SeeThroughNet's ignored pixels)."""
    one = _shapes(model, 1, 1.0)
    axes = _class_axes(model).items()
    return {name: one[name][0] - 1 for name, axis in axes if axis == 0 and len(one[name]) == 4}


def _class_count(model: str, state: Mapping[str, Tensor]) -> int | None:
    """What the shapes of a network's tensors say, None where it has no such classifier."""
    for name, more in _classifiers(model).items():
        if name in state and state[name].dim() == 4:  # or it is of a backbone that classifies images
            return state[name].shape[0] - more
    return None


def _width(model: str, num_classes: int, state: Mapping[str, Tensor]) -> float:
    """The one with which most convolutions have the shapes of `state`. Layers round their channels in
    different ways, so that the stem does not always tell: every layer proposes one. 0 without any of its
    convolutions."""
    full = _shapes(model, num_classes, 1.0)
    shapes = {name: t.shape for name, t in state.items() if name in full and t.dim() == 4}

    def fitting(width: float) -> int:
        narrow = _shapes(model, num_classes, width)
        return sum(narrow[name] == shape for name, shape in shapes.items())

    return max({shape[0] / full[name][0] for name, shape in shapes.items()}, key=fitting, default=0.0)
