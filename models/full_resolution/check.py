"""Whether a network's full-resolution form is right, judged by the network alone.

Split-merge at a shifted lattice is the network on the image without its first rows and columns, as far from
the borders as the network reads. That needs no knowledge of what the network consists of.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path

from fullres.models.full_resolution.split_merge import FullResolution, split_merge
from fullres.models.full_resolution.steps import IMAGE, Pair
from fullres.models.full_resolution.trace import evaluation, path_of, unwrapped
from fullres.ops.errors import NetworkError

_PHASES = 64  # at most


@dataclass(frozen=True)
class Comparison:
    """The largest difference between the full-resolution form and the network, the largest output, and the
    share of the pixels that could be compared."""

    difference: float
    largest: float
    compared: float


@torch.no_grad()
def check(
    network: nn.Module,
    size: Pair,
    *,
    in_channels: int | None = None,
    output: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares `split_merge(network)` with runs of the network itself on a random image of `size` (H, W).

    Every phase is compared, or 64 drawn ones, where the network reads no border; the first phase also at the
    upper and left border. The other arguments are those of `split_merge`.

    Raises UnsupportedModule, and NetworkError for a size below what one output reads.
    """
    tree = split_merge(network, in_channels=in_channels, output=output)
    if len(tree.outputs) != 1:
        raise NetworkError(f"the network has {len(tree.outputs)} outputs: choose one with output=")
    random = torch.Generator().manual_seed(seed)
    like = next(iter(network.parameters()), torch.empty(0))
    image = torch.randn((1, tree.in_channels, *size), generator=random).to(like)
    reach = [field_of(tree, axis) for axis in (0, 1)]
    phases = list(product(range(tree.stride[0]), range(tree.stride[1])))
    drawn = torch.randperm(len(phases), generator=random)[:_PHASES].tolist()
    largest = difference = 0.0
    compared = 0
    own = unwrapped(network)
    with evaluation(own):
        full = tree(image)
        for y, x in dict.fromkeys([(0, 0), *(phases[i] for i in drawn)]):
            # Many networks take only multiples of their stride.
            ends = [p + (n - p) // s * s for p, n, s in zip((y, x), size, tree.stride, strict=True)]
            part = image[:, :, y : ends[0], x : ends[1]].clone()
            if not part.numel():
                continue
            with _WithoutResize(part.shape[2:]):
                alone = _chosen(own(part), output)
            lattice = full[:, :, y :: tree.stride[0], x :: tree.stride[1]]
            rows, columns = (
                _inside(reach[a], (y, x)[a], tree.stride[a], ends[a], alone.shape[2 + a]) for a in (0, 1)
            )
            one, other = lattice[:, :, rows, columns], alone[:, :, rows, columns]
            if one.numel():
                difference = max(difference, (one - other).abs().max().item())
                largest = max(largest, other.abs().max().item())
                compared += one.shape[2] * one.shape[3]
    if not compared:
        least = tuple(last - first + 1 for first, last in reach)
        raise NetworkError(f"size is {size}: an output reads {least} pixels, and at least so many are needed")
    return Comparison(difference, largest, compared / (size[0] * size[1]))


def field_of(tree: FullResolution, axis: int) -> Pair:
    """First and last pixel that an output reads along an axis, relative to its own."""
    steps = [step for level in tree.levels for step in level.steps]
    stride = {s.name: s.stride[axis] for s in steps} | {IMAGE: 1}
    needed = dict.fromkeys(tree.outputs, (0, 0))
    for step in reversed(steps):
        begin, end = needed[step.name]
        for index, name in enumerate(step.inputs):
            first, last = step.reach_of(index, axis).reach
            low, high = needed.get(name, (0, 0))
            needed[name] = (min(low, begin + first * stride[name]), max(high, end + last * stride[name]))
    return needed[IMAGE]


def _inside(reach: Pair, phase: int, stride: int, length: int, outputs: int) -> slice:
    """The outputs of a shifted run that read neither before its first pixel nor behind the last."""
    first = -(reach[0] // stride) if phase else 0
    last = (length - 1 - reach[1] - phase) // stride
    return slice(first, max(first, min(last + 1, outputs)))


def _chosen(result: Any, output: str | None) -> Tensor:
    leaves = [(path_of(path), leaf) for path, leaf in tree_flatten_with_path(result)[0]]
    return next(leaf for path, leaf in leaves if isinstance(leaf, Tensor) and output in (None, path))


class _WithoutResize(TorchDispatchMode):
    """Leaves resizes to the image's size out, as `split_merge` does."""

    def __init__(self, size: torch.Size) -> None:
        super().__init__()
        self.size = size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        resizes = function.overloadpacket.__name__.startswith(("upsample_", "_upsample_"))
        return args[0] if resizes and result.shape[2:] == self.size else result
