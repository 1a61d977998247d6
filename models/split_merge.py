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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.geometry import Span
from fullres.models.trace import IMAGE, FunctionCall, Pair, Step, UnsupportedModule, trace
from fullres.ops.convolution import Convolution
from fullres.ops.pooling import draw_phases, lattice_length, phases_of

Region = tuple[Span, Span]  # rows and columns


@dataclass(frozen=True)
class Level:
    """The steps of the network at one output stride.

    `window` divides the lattice of the level before; `reads` are the tensors of earlier levels (or the image)
    that its steps use; `exports` are those of its own that later levels or the caller use.
    """

    stride: Pair
    window: Pair
    steps: tuple[Step, ...]
    reads: tuple[str, ...]
    exports: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """Features of a batch of nodes of one level: `tensor` (nodes, C, rows.length, columns.length) covers
    `region` of their lattices. All lattices of a batch have one size; `offsets` are theirs in the image, in
    batch order."""

    tensor: Tensor
    region: Region
    offsets: Sequence[Pair]
    stride: Pair

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


class FullResolution(nn.Module):
    """The full-resolution form of a network; made by `split_merge`. `forward`: N x 3 x H x W to N x C x H x
    W."""

    def __init__(self, network: nn.Module, steps: Sequence[Step], outputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.outputs = tuple(outputs)
        self.levels = build_levels(steps, outputs)

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
        """The exports of level `index` in `region` for the batch of nodes at `offsets`.

        `sources` holds at least the level's reads. The batch of a source divides this one: node i is a
        descendant of the source's node i % batch. `size` is the image's (H, W). The region must lie inside
        the lattice and be covered, with what is read around it, by the sources.
        """
        level = self.levels[index]
        lengths = tuple(lattice_length(size[a], offsets[0][a], level.stride[a]) for a in (0, 1))
        regions = needed_regions(level, region, lengths)  # type: ignore[arg-type]
        last_reader = {name: step.name for step in level.steps for name in step.inputs}
        live: dict[str, Piece] = {}
        for step in level.steps:
            owned = [
                n in live and last_reader[n] == step.name and n not in level.exports for n in step.inputs
            ]
            tensor = _run_step(
                step, {**sources, **live}, offsets, regions[step.name], level.stride, size, owned
            )
            live[step.name] = Piece(tensor, regions[step.name], offsets, level.stride)
            for name in step.inputs:
                if last_reader[name] == step.name and name not in level.exports:
                    live.pop(name, None)
        return {
            name: replace(live[name], tensor=live[name].crop(region), region=region) for name in level.exports
        }

    def run_phases(self, image: Tensor, phases: Sequence[Sequence[Pair]]) -> list[dict[str, Piece]]:
        """Shrink pooling (Sec. 3.2), or split pooling with all phases: for level i the phases `phases[i]`.

        image: N x C x H x W. Returns the pieces that hold the network's outputs, one dict for each
        combination of phases, each with the N images as its batch. Empty split batches are left out.
        """
        size = (image.shape[-2], image.shape[-1])
        whole = (Span(0, size[0]), Span(0, size[1]))
        n = image.shape[0]
        root: dict[str, Piece] = {IMAGE: Piece(image, whole, [(0, 0)] * n, (1, 1))}
        nodes = [((0, 0), root)]
        stride = (1, 1)
        for i, level in enumerate(self.levels):
            children = []
            for (y, x), pieces in nodes:
                for k, l in phases[i]:
                    offset = (y + k * stride[0], x + l * stride[1])
                    lengths = [lattice_length(size[a], offset[a], level.stride[a]) for a in (0, 1)]
                    if min(lengths) == 0:
                        continue
                    region = (Span(0, lengths[0]), Span(0, lengths[1]))
                    children.append(
                        (offset, {**pieces, **self.run_level(i, pieces, [offset] * n, region, size)})
                    )
            nodes, stride = children, level.stride
        return [{name: pieces[name] for name in self.outputs} for _, pieces in nodes]

    def draw_phases(self, counts: Sequence[int]) -> list[list[Pair]]:
        """Random phases for shrink pooling, `counts[i]` of level i, from torch's random generator."""
        return [draw_phases(level.window, count) for level, count in zip(self.levels, counts, strict=True)]

    def all_phases(self) -> list[list[Pair]]:
        return [phases_of(level.window) for level in self.levels]

    def forward(self, image: Tensor) -> Tensor:
        """Every pixel's output, N x C x H x W. The whole tree at once: for plans see `pipeline.execute`."""
        if len(self.outputs) != 1:
            raise ValueError(f"the network has {len(self.outputs)} outputs; only one can be merged")
        name = self.outputs[0]
        merged = None
        for pieces in self.run_phases(image, self.all_phases()):
            leaf = pieces[name]
            if merged is None:
                merged = leaf.tensor.new_empty((image.shape[0], leaf.tensor.shape[1], *image.shape[-2:]))
            (y, x), (sy, sx) = leaf.offsets[0], leaf.stride
            merged[:, :, y::sy, x::sx] = leaf.tensor
        assert merged is not None
        return merged


def split_merge(network: nn.Module) -> FullResolution:
    """`network`, built of convolutions, pools and elementwise functions, in its full-resolution form.

    Max and average pools, strided convolutions, dilation, groups and skip connections within one output
    stride are understood; the parameters are shared, not copied. An operation that reads past the border of
    the image (a 2x2 pool at the last pixel, say) finds there what its own padding would hold: zeros, or
    nothing for max pooling. At pixels that are multiples of the output stride the result is the network's own
    output, when it covers the image without a rest.

    Raises models.trace.UnsupportedModule, which names the module that has no such form.
    """
    steps, outputs = trace(network)
    return FullResolution(network, steps, outputs)


def build_levels(steps: Sequence[Step], outputs: Sequence[str]) -> tuple[Level, ...]:
    """Steps grouped by their stride. Raises UnsupportedModule unless each stride divides the next."""
    strides = sorted({s.stride for s in steps} | {(1, 1)})
    for before, after in pairwise(strides):
        if after[0] % before[0] or after[1] % before[1]:
            raise UnsupportedModule(
                f"output stride {before} does not divide {after}: the network's strides form no tree"
            )
    steps = _without_picks(steps, outputs)
    level_of = {s.name: strides.index(s.stride) for s in steps} | {IMAGE: -1}
    levels: list[Level] = []
    before = (1, 1)
    for i, stride in enumerate(strides):
        own = tuple(s for s in steps if s.stride == stride)
        if not own:
            continue
        reads = tuple(dict.fromkeys(n for s in own for n in s.inputs if level_of[n] < i))
        later = {n for s in steps if level_of[s.name] > i for n in s.inputs} | set(outputs)
        exports = tuple(s.name for s in own if s.name in later)
        levels.append(Level(stride, (stride[0] // before[0], stride[1] // before[1]), own, reads, exports))
        before = stride
    return tuple(levels)


def _without_picks(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """Without the 1x1 pools that became the identity because their input is computed at their stride."""
    stride = {s.name: s.stride for s in steps}
    same: dict[str, str] = {}
    kept = []
    for step in steps:
        step = replace(step, inputs=tuple(same.get(n, n) for n in step.inputs))
        is_pick = step.op == "max_pool" and all(axis.reach == (0, 0) for axis in step.reach)
        if is_pick and stride.get(step.inputs[0]) == step.stride and step.name not in outputs:
            same[step.name] = step.inputs[0]
        else:
            kept.append(step)
    return kept


def needed_regions(level: Level, region: Region, lengths: Pair) -> dict[str, Region]:
    """The region of each step of a level from which `region` of its exports can be computed."""
    rows, columns = (needed_spans(level, axis, region[axis], lengths[axis]) for axis in (0, 1))
    return {step.name: (rows[step.name], columns[step.name]) for step in level.steps}


def needed_spans(level: Level, axis: int, out: Span, length: int | None) -> dict[str, Span]:
    """The same along one axis of a lattice of `length` elements; None: an endless one."""
    needed = dict.fromkeys(level.exports, out)
    own = {s.name for s in level.steps}
    for step in reversed(level.steps):
        for index, name in enumerate(step.inputs):
            if name in own:
                reads = step.reach_of(index, axis).reads(needed[step.name])
                reads = reads if length is None else reads.clip(length)
                needed[name] = needed[name].hull(reads) if name in needed else reads
    return needed


def _run_step(
    step: Step,
    sources: Mapping[str, Source],
    offsets: Sequence[Pair],
    region: Region,
    stride: Pair,
    size: Pair,
    owned: Sequence[bool],
) -> Tensor:
    """One step for a batch of nodes. `owned` inputs may be overwritten."""
    parts = []
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
                reads = step.reach_of(index, a).reads(region[a], shift, ratio)
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
    if getattr(step.call, "inplace", False) and not owned[0]:
        tensors = [tensors[0].clone()]
    if owned[0] and not torch.is_grad_enabled() and isinstance(step.call, FunctionCall) and step.call.is_sum:
        return tensors[0].add_(tensors[1])
    return step.call(*tensors)


def is_relu(call: object) -> bool:
    return isinstance(call, nn.ReLU) or (isinstance(call, FunctionCall) and call.is_relu)
