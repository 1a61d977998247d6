"""Whether a network's full-resolution form is right, judged by the network alone.

It is compared with the network run without subsampling, and with the network as it is, at a shifted lattice:
there it is the network on the image without its first rows and columns, as far from the borders as the
network reads. That needs no knowledge at all of what the network consists of.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path

from fullres.models.full_resolution.dilated import Dilated
from fullres.models.full_resolution.operations import is_resize
from fullres.models.full_resolution.split_merge import FullResolution, split_merge
from fullres.models.full_resolution.steps import IMAGE, Pair, Step
from fullres.models.full_resolution.trace import evaluation, path_of, unwrapped
from fullres.ops.errors import NetworkError

_PHASES = 64  # at most


@dataclass(frozen=True)
class Comparison:
    """Of the full-resolution form: the largest difference, at any pixel, from the network run without
    subsampling, and from the network as it is; the largest output; and the share of the pixels that the
    network as it is could be asked for."""

    difference: float
    difference_as_it_is: float
    largest: float
    compared_as_it_is: float


@torch.inference_mode(False)
@torch.no_grad()
def check(
    network: nn.Module,
    size: Pair,
    *,
    in_channels: int | None = None,
    output: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares `split_merge(network)` with the network itself on a random image of `size` (H, W).

    With the network run without subsampling every pixel is compared. With the network as it is, every phase,
    or 64 drawn ones, as far from the borders as an output reads; the first phase also at the upper and left
    border, and at the others where strides leave no rest of `size`. The other arguments are those of
    `split_merge`.

    Raises UnsupportedModule, and NetworkError where several outputs are to be compared.
    """
    tree = split_merge(network, in_channels=in_channels, output=output)
    if len(tree.outputs) != 1:
        raise NetworkError(f"the network has {len(tree.outputs)} outputs: choose one with output=")
    random = torch.Generator().manual_seed(seed)
    like = next(iter(network.parameters()), torch.empty(0))
    image = torch.randn((1, tree.in_channels, *size), generator=random).to(like)
    phases = list(product(range(tree.stride[0]), range(tree.stride[1])))
    drawn = torch.randperm(len(phases), generator=random)[:_PHASES].tolist()
    fields = [field_of(tree, axis) for axis in (0, 1)]
    no_rest = [_keeps_length(tree, axis, size[axis]) for axis in (0, 1)]
    as_it_is, compared = 0.0, 0
    own = unwrapped(network)
    with evaluation(own):
        full = tree(image)
        with Dilated(image):
            dilated = _chosen(own(image), output)
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
                slice(0, None)
                if (y, x)[a] == 0 and no_rest[a]
                else _inside(fields[a], (y, x)[a], tree.stride[a], ends[a], alone.shape[2 + a])
                for a in (0, 1)
            )
            one, other = lattice[:, :, rows, columns], alone[:, :, rows, columns]
            if one.numel():
                as_it_is = max(as_it_is, (one - other).abs().max().item())
                compared += one.shape[2] * one.shape[3]
    return Comparison(
        (full - dilated).abs().max().item(),
        as_it_is,
        dilated.abs().max().item(),
        compared / (size[0] * size[1]),
    )


def field_of(tree: FullResolution, axis: int) -> Pair:
    """First and last pixel that an output reads along an axis, relative to its own."""
    steps = [step for level in tree.levels for step in level.steps]
    stride = {s.name: s.stride[axis] for s in steps} | {IMAGE: 1}
    needed = dict.fromkeys(tree.outputs, (0, 0))
    for step in reversed(steps):
        begin, end = needed[step.name]
        for index, name in enumerate(step.inputs):
            first, last = step.sliding_of(index, axis).receptive_field
            low, high = needed.get(name, (0, 0))
            needed[name] = (min(low, begin + first * stride[name]), max(high, end + last * stride[name]))
    return needed[IMAGE]


def _inside(field: Pair, phase: int, stride: int, end: int, outputs: int) -> slice:
    """The outputs of a shifted run that read neither before its first pixel nor behind its last."""
    first = -(field[0] // stride) if phase else 0
    last = (end - 1 - field[1] - phase) // stride
    return slice(first, max(first, min(last + 1, outputs)))


def _keeps_length(tree: FullResolution, axis: int, size: int) -> bool:
    """Whether every step of the network makes one element a stride of `size` pixels, neither more nor fewer:
    it is the first phase then, at both borders."""
    if size % tree.stride[axis]:
        return False
    steps = [step for level in tree.levels for step in level.steps]
    length = {s.name: size // s.stride[axis] for s in steps} | {IMAGE: size}
    stride = {s.name: s.stride[axis] for s in steps} | {IMAGE: 1}

    def made(step: Step) -> int:
        name, slides = step.inputs[0], step.sliding[axis]
        window = slides.dilation * (slides.kernel - 1)
        # A step whose readers skip elements makes only those.
        along = step.stride[axis] // stride[name]
        return (length[name] + 2 * slides.padding - window - 1) // along + 1

    return all(made(step) == length[step.name] for step in steps)


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
        return args[0] if is_resize(function) and result.shape[2:] == self.size else result
