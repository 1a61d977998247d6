"""Weights in files: the project's own `.safetensors` and published `.pth` / `.pt` checkpoints.

A file of the project carries what it is in its metadata (model, width, classes), so that `--model` and the
file can be held against each other. Whatever does not fit is one error that lists every key.
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fullres.models.catalogue import CATALOGUE, build
from fullres.models.hrnet import HRNet
from fullres.models.mobilenet import MobileNetV2
from fullres.models.pspnet import published_names
from fullres.models.resnet import ResNet

# What published checkpoints hold beside the features, by prefix of the key.
NOT_FEATURES: dict[type[nn.Module], tuple[str, ...]] = {
    ResNet: ("fc.",),
    MobileNetV2: ("features.18.", "classifier."),
    HRNet: (
        *("incre_modules.", "downsamp_modules.", "final_layer.", "classifier."),  # ImageNet
        *("last_layer.", "aux_head.", "conv3x3_ocr.", "ocr_distri_head.", "cls_head."),  # segmentation
    ),
}


class WeightsError(ValueError):
    """A weights file that can't be read or is not of this network. One line, but for the list of keys."""


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself; of a foreign file, what its shapes say."""

    model: str | None
    width: float
    num_classes: int
    dataset: str | None = None


def save_weights(
    network: nn.Module, path: Path, info: WeightsInfo, dtype: torch.dtype = torch.float32
) -> None:
    """Write the state dict, floating-point tensors in `dtype`, with `info` as metadata. Not atomic."""
    tensors = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype).contiguous()
        for name, t in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path.write_bytes(save(tensors, metadata={"fullres": json.dumps(vars(info))}))


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
            return state, WeightsInfo(**json.loads(metadata["fullres"])) if "fullres" in metadata else None
        except (TypeError, ValueError) as error:
            raise WeightsError(f"weights {path}: its metadata are not of this version ({error})") from error
    if path.suffix not in (".pth", ".pt"):
        raise WeightsError(f"weights {path}: '{path.suffix}' is not read; .safetensors, .pth and .pt are")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(
            f"weights {path}: not a torch checkpoint ({(str(error) or 'empty').splitlines()[0]})"
        ) from error
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
    network.load_state_dict(state, strict=False)


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Fill a ResNet, MobileNetV2 or HRNet from a published checkpoint that has its authors' key names.

    Those are torchvision's (ResNet, MobileNetV2), hszhao/semseg's (ResNet with the deep stem) and the HRNet
    authors' (ImageNet or segmentation). What belongs to the classifier or a segmentation head
    (`NOT_FEATURES`) is left out; the rest must fit. Raises WeightsError.
    """
    state, _ = read_state(path)
    state = {n: t for n, t in state.items() if not n.startswith(NOT_FEATURES[type(backbone)])}
    load_state(backbone, state, f"backbone weights {path}")


def load_published(network: nn.Module, path: Path) -> None:
    """Fill a segmentation network from its authors' checkpoint, where the keys of the backbone stand beside
    those of the head instead of behind `backbone.`. Raises WeightsError."""
    state, _ = read_state(path)
    state = published_names(state)
    own = network.state_dict()
    state = {f"backbone.{n}" if f"backbone.{n}" in own else n: t for n, t in state.items()}
    load_state(network, state, f"weights {path}")


def load_network(model: str, path: Path) -> tuple[nn.Module, WeightsInfo]:
    """The network of that name with the weights of a file, in evaluation mode, fp32.

    Width and class count are the file's. Raises WeightsError if the file is another network's, ValueError for
    an unknown name.
    """
    if model not in CATALOGUE:
        raise ValueError(f"model is '{model}': one of {', '.join(CATALOGUE)}")
    state, info = read_state(path)
    if info is None and not CATALOGUE[model].dense:
        raise WeightsError(
            f"weights {path}: no metadata that say width and classes; {model} is read from the project's own"
        )
    if info is None:
        classifier, stem = state.get("classifier.weight"), state.get("backbone.conv1.weight")
        if classifier is None or stem is None:
            raise WeightsError(
                f"weights {path}: not of {model}: 'classifier.weight' or 'backbone.conv1.weight' is missing"
                + (
                    " (a backbone's checkpoint starts a training, it labels nothing)"
                    if "fc.weight" in state
                    else ""
                )
            )
        info = WeightsInfo(None, stem.shape[0] / 64, classifier.shape[0])
    if info.model is not None and info.model != model:
        raise WeightsError(f"weights {path}: of model {info.model}, not of {model}")
    network = build(model, info.num_classes, info.width)
    load_state(
        network,
        {name: t.float() if t.is_floating_point() else t for name, t in state.items()},
        f"weights {path}",
    )
    return network.eval(), info
