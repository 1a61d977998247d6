"""The networks by name: what `--model` takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from fullres.models.fcn import FCN8s, FCN32s
from fullres.models.resnet import ResNet
from fullres.models.smp import SMP, subsampling_resnet

Network = SMP | FCN32s | FCN8s


@dataclass(frozen=True)
class Entry:
    """A network of the catalogue. `build(num_classes, width)`."""

    name: str
    build: Callable[..., Network]
    paper: str


def _smp(depth: int, num_classes: int, width: float = 1.0) -> SMP:
    return SMP(subsampling_resnet(depth, width), num_classes)


def _fcn32s(depth: int, num_classes: int, width: float = 1.0) -> FCN32s:
    return FCN32s(ResNet(depth, width), num_classes)


def _fcn8s(depth: int, num_classes: int, width: float = 1.0) -> FCN8s:
    return FCN8s(ResNet(depth, width), num_classes)


_DEPTHS = (18, 34, 50, 101, 152)

CATALOGUE: dict[str, Entry] = {
    f"{family}{depth}": Entry(f"{family}{depth}", partial(build, depth), "Split-Merge Pooling")
    for family, build in (("smp", _smp), ("fcn32s", _fcn32s), ("fcn8s", _fcn8s))
    for depth in _DEPTHS
}


def build(name: str, num_classes: int, width: float = 1.0) -> Network:
    """A network with fresh parameters. Raises ValueError that lists the names."""
    if name not in CATALOGUE:
        raise ValueError(f"model is '{name}': one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name].build(num_classes, width=width)


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
