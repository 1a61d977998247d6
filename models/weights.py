"""Weights in files: the project's own `.safetensors` and published checkpoints (see `models.checkpoints`).

A file of the project carries what it is in its metadata (model, width, classes), so that `--model` and the
file can be held against each other; of any other, names and shapes say it (see `models.publishers`). Whatever
does not fit is one error that names the first keys.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fullres.models.backbones.hrnet import HRNet
from fullres.models.backbones.mobilenet import MobileNetV2
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import CATALOGUE, Publisher, build, check
from fullres.models.checkpoints import Checkpoint, WeightsError, listed, read_checkpoint
from fullres.models.publishers import (
    HRNETS,
    Recognised,
    backbone_names,
    own_names,
    recognise,
    semseg_names,
)
from fullres.models.publishers.mmsegmentation import aligned, other_settings
from fullres.models.publishers.names import UnknownNames
from fullres.models.spgnet import Stemless


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself; of a foreign file, what its names and shapes say. `like`: whose
    network of that name it is, if not its authors'."""

    model: str | None
    width: float
    num_classes: int
    dataset: str | None = None
    like: Publisher | None = None


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
    said = {name: value for name, value in vars(info).items() if name != "like" or value is not None}
    return save(tensors, metadata={"fullres": json.dumps(said)})


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The first tensor with NaN or infinity in it."""
    return next((name for name, t in state.items() if not t.isfinite().all()), None)


def read_state(path: Path) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    """All tensors of a file, and its own metadata if it is the project's. Raises WeightsError."""
    checkpoint = read_checkpoint(path)
    return checkpoint.tensors, own_info(path, checkpoint)


def own_info(path: Path, checkpoint: Checkpoint) -> WeightsInfo | None:
    """What a file of the project says of itself. Raises WeightsError where it can't be read."""
    try:
        own = checkpoint.meta.get("fullres") if path.suffix == ".safetensors" else None
        return None if own is None else _own_info(own)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"weights {path}: its metadata are not of this version ({error})") from error


def _own_info(metadata: str) -> WeightsInfo:
    """Raises TypeError or ValueError where it is no such thing."""
    info = WeightsInfo(**json.loads(metadata))
    if not (isinstance(info.width, int | float) and 0 < info.width < math.inf):
        raise ValueError(f"width is {info.width!r}, not a number above 0")
    if not (isinstance(info.num_classes, int) and info.num_classes > 0):
        raise ValueError(f"num_classes is {info.num_classes!r}, not a whole number above 0")
    if info.like not in (None, *get_args(Publisher)):
        raise ValueError(f"like is {info.like!r}, not one of {', '.join(get_args(Publisher))}")
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
        f"{title}: {listed(names)}"
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
    state = dict(network.state_dict())
    if CATALOGUE[model].family == "pspnet":
        state = semseg_names(state)
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


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

    Those are torchvision's (ResNet, MobileNetV2), hszhao/semseg's and mmsegmentation's (ResNet with the deep
    stem) and the HRNet authors' (ImageNet or segmentation). What belongs to the classifier or a segmentation
    head (`not_features` of the class) is left out; the rest must fit. Raises WeightsError.
    """
    state = backbone_names(read_state(path)[0])
    state = {n: t for n, t in state.items() if not n.startswith(backbone.not_features)}
    load_state(backbone, state, f"backbone weights {path}")


def load_network(model: str, path: Path, like: Publisher | None = None) -> tuple[nn.Module, WeightsInfo]:
    """The network of that name with the weights of a file, in evaluation mode, fp32.

    Width and class count are the file's: what its metadata say, else what its shapes say. So is whose network
    it is, by metadata or names; `like` is for a file that does not tell. Raises WeightsError if the file is
    another network's or somebody else's, ValueError for an unknown name.
    """
    check(model, like)
    state, info = _read_for(model, path, like)
    if like not in (None, info.like):
        raise WeightsError(f"weights {path}: like is {_quoted(info.like)}, not {_quoted(like)}")
    return _filled(model, state, info, path), info


def load_own_network(path: Path) -> tuple[nn.Module, str]:
    """The network of a file of the project, as `load_network`, and its name in the catalogue. Raises
    WeightsError, also for a file that does not say which network it is of."""
    state, info = read_state(path)
    if info is None or info.model is None:
        raise WeightsError(f"weights {path}: they do not say which network they are of")
    check(info.model, None)
    state = own_names(state, _shapes(info.model, 1, 1.0, info.like))
    return _filled(info.model, state, info, path), info.model


def _filled(model: str, state: dict[str, Tensor], info: WeightsInfo, path: Path) -> nn.Module:
    network = build(model, info.num_classes, info.width, info.like)
    load_state(network, state, f"weights {path}")
    return network.eval()


def load_pretrained(
    network: nn.Module, model: str, path: Path, drop_head: bool = False, like: Publisher | None = None
) -> None:
    """Fill `network`, built by `catalogue.build(model, ..., like)`, from a file of the same network and
    width.

    With `drop_head`, what depends on the class count stays as it is, whatever count the file has. Raises
    WeightsError, without `drop_head` also for a file of another class count.
    """
    own = network.state_dict()
    state, info = _read_for(model, path, like, own)
    if info.like != like:
        raise WeightsError(
            f"weights {path}: like is {_quoted(info.like)}, of the network {_quoted(like)}: in a training's "
            f"configuration it stands under [model]"
        )
    classes = _class_count(model, own, like)
    assert classes is not None  # it has its classifiers
    width, needed = _width(model, info.num_classes, state, like), _width(model, classes, own, like)
    if width not in (0, needed):
        raise WeightsError(f"weights {path}: of width {width:g}, the network has {needed:g}")
    if drop_head:
        state |= {name: own[name] for name in _class_axes(model, like)}
    elif info.num_classes != classes:
        raise WeightsError(
            f"weights {path}: {info.num_classes} classes, the network has {classes}; "
            "a start that drops the head takes all but what depends on their count"
        )
    load_state(network, state, f"weights {path}")


def _quoted(like: str | None) -> str:
    return "none" if like is None else f"'{like}'"


def _read_for(
    model: str, path: Path, like: Publisher | None, own: Collection[str] = ()
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The tensors of a file under the names `own` of a network, those of evaluation unless given, and what
    the file is: `like` if it does not say."""
    checkpoint = read_checkpoint(path)
    state, info = checkpoint.tensors, own_info(path, checkpoint)
    if info is not None:
        if info.model != model:
            raise WeightsError(f"weights {path}: of model {info.model}, not of {model}")
        return own_names(state, own or _shapes(model, 1, 1.0, info.like)), info
    found = recognised(path, checkpoint, like)
    if found.publisher is not None:
        entry = CATALOGUE[model]
        if found.family not in (None, entry.family) or found.like not in (None, *entry.publishers):
            settings = f" like {found.like}" if found.family == entry.family else ""
            raise WeightsError(
                f"weights {path}: {found.publisher}'s {found.family}{settings}, not of {model}"
            )
        like = found.like
    check(model, like)
    own = own or _shapes(model, 1, 1.0, like)
    state = own_names(found.state, own)
    classes = _class_count(model, state, like)
    if classes is None:
        backbone = any(name in own for name in state)
        raise WeightsError(
            f"weights {path}: not of {model}: no convolution {' or '.join(_classifiers(model, like))}"
            + (" (a backbone's checkpoint starts a training, it labels nothing)" if backbone else "")
        )
    return state, WeightsInfo(None, _width(model, classes, state, like), classes, like=like)


def recognised(path: Path, checkpoint: Checkpoint, like: Publisher | None = None) -> Recognised:
    """`publishers.recognise`, of a file. `like` tells what names do not: which of a publisher's settings.
    Raises WeightsError, also for a network that can't be built."""
    try:
        found = recognise(checkpoint.tensors)
    except UnknownNames as error:
        raise WeightsError(
            f"weights {path}: {error.publisher}'s, with names that no network here has: {listed(error.names)}"
        ) from error
    if found.publisher == HRNETS and like == "hrnet-aligned":
        return replace(found, like=like)
    if found.like != "mmseg":
        return found
    if (other := other_settings(checkpoint.meta)) is not None:
        raise WeightsError(
            f"weights {path}: {found.publisher}'s {found.family} with {other}, which is not built"
        )
    says = aligned(checkpoint.meta)
    if says or (says is None and like == "mmseg-aligned"):
        return replace(found, like="mmseg-aligned")
    return found


@cache
def _shapes(model: str, num_classes: int, width: float, like: Publisher | None) -> dict[str, torch.Size]:
    """Of all tensors of a network of the catalogue."""
    with torch.device("meta"):
        return {name: t.shape for name, t in build(model, num_classes, width, like).state_dict().items()}


def _class_axes(model: str, like: Publisher | None) -> dict[str, int]:
    """The tensors whose shape depends on the class count, and along which axis."""
    one, two = _shapes(model, 1, 1.0, like), _shapes(model, 2, 1.0, like)
    return {
        name: axis
        for name in one
        for axis, (n, m) in enumerate(zip(one[name], two[name], strict=True))
        if n != m
    }


def _classifiers(model: str, like: Publisher | None) -> dict[str, int]:
    """The convolutions that put out classes, and how many channels more (SeeThroughNet's ignored pixels)."""
    one = _shapes(model, 1, 1.0, like)
    axes = _class_axes(model, like).items()
    return {name: one[name][0] - 1 for name, axis in axes if axis == 0 and len(one[name]) == 4}


def _class_count(model: str, state: Mapping[str, Tensor], like: Publisher | None) -> int | None:
    """What the shapes of a network's tensors say, None where it has no such classifier."""
    for name, more in _classifiers(model, like).items():
        if name in state and state[name].dim() == 4:  # or it is of a backbone that classifies images
            return state[name].shape[0] - more
    return None


def _width(model: str, num_classes: int, state: Mapping[str, Tensor], like: Publisher | None) -> float:
    """The one with which most convolutions have the shapes of `state`. Layers round their channels in
    different ways, so that the stem does not always tell: every layer proposes one. 0 without any of its
    convolutions."""
    full = _shapes(model, num_classes, 1.0, like)
    shapes = {name: t.shape for name, t in state.items() if name in full and t.dim() == 4}

    def fitting(width: float) -> int:
        narrow = _shapes(model, num_classes, width, like)
        return sum(narrow[name] == shape for name, shape in shapes.items())

    return max({shape[0] / full[name][0] for name, shape in shapes.items()}, key=fitting, default=0.0)
