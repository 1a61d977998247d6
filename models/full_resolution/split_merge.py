"""Any strided network in its full-resolution form ("Split-Merge Pooling", Sec. 3.1).

"Convolve at stride 1, then take split batch (k, l)" is "convolve at stride 2 on the grid shifted by (k, l)".
So one split batch at the end of the network (a *leaf*) is the ordinary strided network on a shifted lattice,
and the leaves share prefixes: the work is a tree. Level i of the tree holds the features at the i-th output
stride of the network; a *node* is one split batch there, named by its offset (y, x) in the image; its
children are the phases of the next split. Merging is a strided write. The result is, at every pixel, what the
same weights would give with no subsampling and dilation in its place (zero padding), for any height and
width.

`split_merge(network)` builds the tree's levels. Its `forward` runs the whole tree; `run_level` is the one
operation from which `pipeline.execute` builds plans that fit a memory budget. A level can be run for a part
of the image (rows and columns of its lattice): what it reads is clipped at the borders of the image only, so
parts fit together exactly.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.checkpointing import recomputed
from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.levels import Region, build_levels, needed_regions, with_trunk
from fullres.models.full_resolution.steps import IMAGE, Pair, Pointwise, Step, UnsupportedModule
from fullres.models.full_resolution.trace import trace
from fullres.ops.convolution import Convolution
from fullres.ops.errors import NetworkError
from fullres.ops.pooling import draw_phases, lattice_length, phases_of


@dataclass(frozen=True)
class Piece:
    """Features of a batch of nodes of one level: `tensor` (nodes, C, rows.length, columns.length) covers
    `region` of their lattices. All lattices of a batch have one size; `offsets` are theirs in the image, in
    batch order."""

    tensor: Tensor
    region: Region
    offsets: Sequence[Pair]
    stride: Pair

    def leaves(self, images: int) -> Iterator[tuple[Pair, Tensor]]:
        """Node by node of so many images: its offset and its features (images, C, rows, columns)."""
        for i in range(0, len(self.offsets), images):
            yield self.offsets[i], self.tensor[i : i + images]

    def crop(self, region: Region) -> Tensor:
        (top, bottom), (left, right) = region
        y, x = self.region[0].start, self.region[1].start
        return self.tensor[:, :, top - y : bottom - y, left - x : right - x]


class Source(Protocol):
    """What a level reads: a `Piece`, or an image that is prepared while it is read."""

    @property
    def offsets(self) -> Sequence[Pair]: ...
    @property
    def stride(self) -> Pair: ...
    def crop(self, region: Region) -> Tensor: ...


@runtime_checkable
class HasFullResolution(Protocol):
    """A network that is labelled by split-merge; `strided` is it with its subsampling."""

    def strided(self) -> nn.Module: ...
    def full_resolution(self) -> "FullResolution": ...


class FullResolution(nn.Module):
    """The full-resolution form of a network; made by `split_merge`. `forward`: N x 3 x H x W to N x C x H x
    W."""

    def __init__(
        self,
        network: nn.Module,
        steps: Sequence[Step],
        outputs: Sequence[str],
        in_channels: int = 3,
        computed: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        # What is called and isn't part of the network moves with it to devices and precisions too.
        own = {id(module) for module in network.modules()}
        called = {id(s.call): s.call for s in steps if isinstance(s.call, nn.Module)}
        self.calls = nn.ModuleList([call for key, call in called.items() if key not in own])
        self.in_channels = in_channels
        self.computed = tuple(computed)  # modules that compute weights from parameters
        self.outputs = tuple(outputs)
        self.levels = build_levels(steps, outputs)
        self.for_inference = False  # whether `fold.inference_form` made it
        self.every_phase = True  # whether every leaf is wanted, or the first alone
        self.output_stride = 1  # of every phase, those of the pixels of one lattice of this stride
        self._trunks: dict[int, FullResolution] = {}

    def strided(self) -> nn.Module:
        return self.network

    def full_resolution(self) -> "FullResolution":
        return self

    def trunks(self) -> list[int]:
        """What `with_trunk` takes, besides 0."""
        return [i for i in range(1, len(self.levels)) if with_trunk(self.levels, i, self.outputs)]

    def with_trunk(self, last: int) -> "FullResolution":
        """The same tree with its levels up to the first block of level `last` as one: for each node there
        they are run again, but never whole. 0: without a trunk."""
        if last == 0:
            return self
        if last not in self._trunks:
            tree = copy.copy(self)
            levels = with_trunk(self.levels, last, self.outputs)
            assert levels is not None
            tree.levels = levels
            self._trunks[last] = tree
        return self._trunks[last]

    def output_strides(self) -> list[int]:
        """What `with_output_stride` takes."""
        strides = [s for level in self.levels for s in level.stride]
        most = min(self.stride) if self.every_phase else 1
        return [n for n in range(1, most + 1) if all(s % n == 0 or n % s == 0 for s in strides)]

    def with_output_stride(self, stride: int) -> "FullResolution":
        """The tree of the pixels of one lattice, which plans centre in the image: the first splits keep one
        phase. Raises NetworkError for a stride that does not go with those of the levels."""
        if stride not in (known := self.output_strides()):
            there = ", ".join(map(str, known))
            raise NetworkError(f"output stride is {stride}: of this network's tree it is {there}")
        tree = copy.copy(self)
        tree.output_stride, tree._trunks = stride, {}
        return tree

    @property
    def stride(self) -> Pair:
        """The last level's: there are stride[0] * stride[1] leaves."""
        return self.levels[-1].stride

    @property
    def channels(self) -> list[int]:
        """Of each output."""
        by_name = {s.name: s.channels for level in self.levels for s in level.steps}
        return [by_name[name] for name in self.outputs]

    def run_level(
        self, index: int, sources: Mapping[str, Source], offsets: Sequence[Pair], region: Region, size: Pair
    ) -> dict[str, Piece]:
        """The exports of level `index` in `region` for the batch of nodes at `offsets` (for a trunk all the
        same).

        `sources` holds at least the level's reads. The batch of a source divides this one: node i is a
        descendant of the source's node i % batch. `size` is the image's (H, W). The region must lie inside
        the lattice and be covered, with what is read around it, by the sources.
        """
        level = self.levels[index]
        regions = needed_regions(level, region, offsets[0], size)
        last_reader = {name: step.name for step in level.steps for name in step.inputs}
        live: dict[str, Piece] = {}
        for step in level.steps:
            owned = [
                n in live
                and last_reader[n] == step.name
                and n not in level.exports
                and live[n].stride == step.stride
                for n in step.inputs
            ]
            nodes = [(y % step.stride[0], x % step.stride[1]) for y, x in offsets]
            tensor = _run_step(step, {**sources, **live}, nodes, regions[step.name], size, owned)
            live[step.name] = Piece(tensor, regions[step.name], nodes, step.stride)
            for name in step.inputs:
                if last_reader[name] == step.name and name not in level.exports:
                    live.pop(name, None)
        return {
            name: replace(live[name], tensor=live[name].crop(region), region=region) for name in level.exports
        }

    def run_phases(
        self, image: Tensor, phases: Sequence[Sequence[Pair]], checkpointed: bool = False
    ) -> list[dict[str, Piece]]:
        """Shrink pooling (Sec. 3.2), or split pooling with all phases: for level i the phases `phases[i]`.

        image: N x C x H x W. Returns the pieces that hold the network's outputs. Nodes whose lattices are of
        one size are a batch, N images for each ("returns all resulting splits as a set of batches", 3.1),
        so in training batch norm sees all of them; where H and W are multiples of the stride there is one
        batch. Empty split batches are left out. `checkpointed`: keep for gradients what levels read alone.
        """
        if self.computed and torch.is_grad_enabled():
            raise NetworkError(
                f"{self.computed[0]} computes weights from its parameters, and gradients would not reach "
                "those: for inference call it under torch.no_grad(), for training train the network itself"
            )
        run = partial(recomputed, self, self.run_level) if checkpointed else self.run_level
        size = (image.shape[-2], image.shape[-1])
        whole = (Span(0, size[0]), Span(0, size[1]))
        nodes = [(0, 0)] * image.shape[0]
        batches: list[tuple[list[Pair], dict[str, Piece]]]
        batches = [(nodes, {IMAGE: Piece(image, whole, nodes, (1, 1))})]
        stride = (1, 1)
        for i, level in enumerate(self.levels):
            children = []
            for nodes, pieces in batches:
                alike: dict[tuple[int, int, Pair | None], list[Pair]] = {}
                for k, l in phases[i]:
                    of_phase = [(y + k * stride[0], x + l * stride[1]) for y, x in nodes]
                    rows, columns = (lattice_length(size[a], of_phase[0][a], level.stride[a]) for a in (0, 1))
                    if rows and columns:
                        key = (rows, columns, (k, l) if level.is_trunk else None)
                        alike.setdefault(key, []).extend(of_phase)
                for (rows, columns, _), offsets in alike.items():
                    region = (Span(0, rows), Span(0, columns))
                    children.append((offsets, {**pieces, **run(i, pieces, offsets, region, size)}))
            batches, stride = children, level.stride
        return [{name: pieces[name] for name in self.outputs} for _, pieces in batches]

    def draw_phases(self, counts: Sequence[int]) -> list[list[Pair]]:
        """Random phases for shrink pooling, `counts[i]` of level i, from torch's random generator."""
        return [draw_phases(level.window, count) for level, count in zip(self.levels, counts, strict=True)]

    def all_phases(self) -> list[list[Pair]]:
        return [phases_of(level.window) for level in self.levels]

    def forward(self, image: Tensor) -> Tensor:
        """Every pixel's output, N x C x H x W. The whole tree at once: for plans see `pipeline.execute`."""
        if len(self.outputs) != 1:
            raise ValueError(f"the network has {len(self.outputs)} outputs; only one can be merged")
        for module_name, module in self.network.named_modules():
            if module.training and isinstance(module, nn.BatchNorm2d):
                raise NetworkError(
                    f"module '{module_name}' (BatchNorm2d) is in training mode: its statistics would be "
                    "those of parts of the image, and change; call eval() on the network"
                )
        name = self.outputs[0]
        merged = None
        for pieces in self.run_phases(image, self.all_phases()):
            batch = pieces[name]
            if merged is None:
                merged = batch.tensor.new_empty((image.shape[0], batch.tensor.shape[1], *image.shape[-2:]))
            sy, sx = batch.stride
            for (y, x), leaf in batch.leaves(image.shape[0]):
                merged[:, :, y::sy, x::sx] = leaf
        assert merged is not None
        return merged


def split_merge(
    network: nn.Module, *, in_channels: int | None = None, output: str | None = None
) -> FullResolution:
    """`network` in its full-resolution form, as it is in evaluation mode.

    It may be built of convolutions, max and average pools, every elementwise function, and functions along
    or among channels (softmax, normalisation, joining, splitting, shuffling); whether they are modules or
    functions with learned or computed tensors. Skip connections join features of one output stride. Zeros may
    be padded before convolutions and pools. A last resize to the image's size is left out, with a warning.
    Parameters are shared, not copied.

    An operation that reads past the border of the image (a 2x2 pool at the last pixel, say) finds there what
    its own padding would hold: zeros, or nothing for max pooling. At pixels that are multiples of the output
    stride the result is the network's own output, when it covers the image without a rest.

    Args:
        in_channels: of the image; without it those of the first convolution.
        output: which of several outputs: 'out' of a dictionary or named tuple, '0' of a tuple, 'aux.0' of one
            inside the other.

    Raises:
        UnsupportedModule: it names the place that has no such form.
    """
    if isinstance(network, HasFullResolution):
        raise UnsupportedModule(f"{type(network).__name__} has its full resolution already")
    found = trace(network, in_channels, output)
    return FullResolution(network, found.steps, found.outputs, found.in_channels, found.computed)


def _run_step(
    step: Step,
    sources: Mapping[str, Source],
    offsets: Sequence[Pair],
    region: Region,
    size: Pair,
    owned: Sequence[bool],
) -> Tensor:
    """One step for a batch of nodes. `owned` inputs may be overwritten."""
    parts, stride = [], step.stride
    block = min(len(sources[name].offsets) for name in step.inputs)
    for i in range(0, len(offsets), block):
        tensors, pads, ratios = [], [], []
        for index, name in enumerate(step.inputs):
            source = sources[name]
            j = i % len(source.offsets)
            spans, before, after = [], [], []
            for a in (0, 1):
                ratio = stride[a] // source.stride[a]
                shift = (offsets[i][a] - source.offsets[j][a]) // source.stride[a]
                reads = step.sliding_of(index, a).reads(region[a], shift, ratio)
                inside = reads.clip(lattice_length(size[a], source.offsets[0][a], source.stride[a]))
                spans.append(inside)
                before.append(inside.start - reads.start)
                after.append(reads.stop - inside.stop)
            tensors.append(source.crop((spans[0], spans[1]))[j : j + block])
            pads.append((before, after))
            ratios.append((stride[0] // source.stride[0], stride[1] // source.stride[1]))
        parts.append(_apply(step, tensors, pads[0], ratios, owned))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _apply(
    step: Step,
    tensors: list[Tensor],
    pads: tuple[list[int], list[int]],
    strides: list[Pair],
    owned: Sequence[bool],
) -> Tensor:
    """`step` on its input region, `pads` elements outside the image around it; each input at its stride."""
    if step.op == "pointwise":
        tensors = [t[:, :, ::rows, ::columns] for t, (rows, columns) in zip(tensors, strides, strict=True)]
        return _pointwise(step, tensors, owned)
    x, stride = tensors[0], strides[0]
    (top, left), (bottom, right) = pads
    if step.op == "convolution":
        conv = step.call
        assert isinstance(conv, nn.Conv2d | Convolution)
        if conv.kernel_size == (1, 1) and stride != (1, 1) and not (top or left or bottom or right):
            x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
        padding = (0, 0)
        if top == bottom and left == right:
            padding = (top, left)
        else:
            x = F.pad(x, (left, right, top, bottom))
        if isinstance(conv, nn.Conv2d):
            return F.conv2d(x, conv.weight, conv.bias, stride, padding, conv.dilation, conv.groups)
        if len(tensors) == 1:
            return conv(x, stride, padding)
        free = owned[1] and step.inputs[1] != step.inputs[0]  # it is written while x is read
        return conv(x, stride, padding, tensors[1] if free else tensors[1].clone())
    if step.op == "average_pool_inside":
        inside = F.pad(x.new_ones((1, 1, *x.shape[-2:])), (left, right, top, bottom))
        x = F.pad(x, (left, right, top, bottom))
        return step.call(x, stride=stride) / step.call(inside, stride=stride)
    if top or left or bottom or right:
        x = F.pad(x, (left, right, top, bottom), value=-torch.inf if step.op == "max_pool" else 0.0)
    return step.call(x, stride=stride)


def _pointwise(step: Step, tensors: list[Tensor], owned: Sequence[bool]) -> Tensor:
    """An elementwise step; in inference ReLU and addition write over an input that nobody reads again."""
    if is_relu(step.call):
        return tensors[0].relu_() if owned[0] and not torch.is_grad_enabled() else tensors[0].relu()
    is_sum = isinstance(step.call, Pointwise) and step.call.is_sum and tensors[0].shape == tensors[1].shape
    if is_sum and owned[0] and not torch.is_grad_enabled():
        return tensors[0].add_(tensors[1])
    return step.call(*tensors)


def is_relu(call: object) -> bool:
    return isinstance(call, nn.ReLU) or (isinstance(call, Pointwise) and call.is_relu)
