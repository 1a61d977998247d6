"""What running a level costs: multiply-adds and bytes, by walking its steps as `run_level` does."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import nn

from fullres.models.geometry import Span
from fullres.models.split_merge import FullResolution, Level, Pair, Region, needed_regions, needed_spans
from fullres.models.trace import IMAGE, Step
from fullres.ops.convolution import Convolution
from fullres.ops.pooling import lattice_length


@dataclass(frozen=True)
class LevelCost:
    """For one batch of nodes: multiply-adds of the convolutions, bytes at the worst moment, bytes of the
    exports."""

    macs: int
    peak: int
    exports: int


# What a level reads of earlier ones: name -> channels and stride
Sources = dict[str, tuple[int, Pair]]


def area(region: Region) -> int:
    return region[0].length * region[1].length


def macs_per_element(step: Step) -> int:
    """Multiply-adds for one element of the lattice (all channels); convolutions alone count."""
    conv = step.call
    if not isinstance(conv, nn.Conv2d | Convolution):
        return 0
    return conv.out_channels * (conv.in_channels // conv.groups) * prod(conv.kernel_size)


def level_cost(
    level: Level, sources: Sources, batch: int, region: Region, lengths: Pair, itemsize: int
) -> LevelCost:
    """The cost of `run_level` for `batch` nodes on lattices of `lengths`, without what its sources hold.

    A convolution's input is counted twice where its border is padded or cropped (a copy) and an image read is
    counted in fp32, in which it is normalised.
    """
    regions = needed_regions(level, region, lengths)
    channels = {s.name: s.channels for s in level.steps}
    last_reader = {name: step.name for step in level.steps for name in step.inputs}

    def size(name: str) -> int:
        return batch * channels[name] * area(regions[name]) * itemsize

    macs = peak = 0
    live: dict[str, int] = {}
    for step in level.steps:
        macs += batch * macs_per_element(step) * area(regions[step.name])
        copies = _input_copy(step, regions[step.name], level, sources, batch, itemsize)
        overwritten = (
            step.inputs[-1] if len(step.inputs) > 1 else step.inputs[0] if step.op == "pointwise" else None
        )
        overwrites = overwritten in live and last_reader[overwritten] == step.name
        out = size(step.name)
        peak = max(peak, sum(live.values()) + copies + (0 if overwrites else out))
        live[step.name] = out
        for name in step.inputs:
            if last_reader[name] == step.name and name not in level.exports:
                live.pop(name, None)
    return LevelCost(macs, peak, sum(size(name) for name in level.exports))


def _input_copy(step: Step, out: Region, level: Level, sources: Sources, batch: int, itemsize: int) -> int:
    """Bytes of the copies that a step makes of what it reads."""
    name = step.inputs[0]
    if name in sources:  # read from an earlier level: cropped, padded, strided
        channels, stride = sources[name]
        ratio = [level.stride[a] // stride[a] for a in (0, 1)]
        elements = prod(step.reach[a].reads(out[a], 0, ratio[a]).length for a in (0, 1))
        return batch * channels * elements * (max(itemsize, 4) + itemsize if name == IMAGE else itemsize)
    if step.op == "pointwise" or all(axis.kernel == 1 for axis in step.reach):
        return 0
    conv = step.call
    channels = conv.in_channels if isinstance(conv, nn.Conv2d | Convolution) else step.channels
    return batch * channels * prod(step.reach[a].reads(out[a]).length for a in (0, 1)) * itemsize


def demands(tree: FullResolution, axis: int, outputs: dict[str, Span]) -> dict[str, Span]:
    """Which part of the image each level must cover, along one axis, for `outputs` (spans in image pixels).

    Returns for every exported tensor and for the image a span in pixels of an endless image, from a multiple
    of the tensor's stride to a multiple of it: the same for all nodes of a level, whatever their offset.
    """
    stride = {s.name: level.stride[axis] for level in tree.levels for s in level.steps} | {IMAGE: 1}
    needed = {name: span.outward(stride[name]) for name, span in outputs.items()}
    for level in reversed(tree.levels):
        own = level.stride[axis]
        exports = [needed[name] for name in level.exports if name in needed]
        hull = exports[0]
        for span in exports[1:]:
            hull = hull.hull(span)
        for name in level.exports:
            needed[name] = hull
        spans = needed_spans(level, axis, Span(hull.start // own, hull.stop // own), None)
        for step in level.steps:
            out = spans[step.name]
            for index, name in enumerate(step.inputs):
                first, last = step.reach_of(index, axis).reach
                if name in level.reads:
                    # nodes' offsets lie between 0 and own - 1
                    begin = own * out.start + first * stride[name]
                    end = own * (out.stop - 1) + (own - 1) + last * stride[name] + 1
                    reads = Span(begin, end).outward(stride[name])
                    needed[name] = needed[name].hull(reads) if name in needed else reads
    return needed


def node_span(demand: Span, stride: int, length: int) -> Span:
    """The elements, of a lattice of `length`, that a level must export for a demand in pixels."""
    return Span(demand.start // stride, -(-demand.stop // stride)).clip(length)


def strips_of(span: Span, count: int) -> Iterator[Span]:
    """`span` cut into `count` strips of nearly equal length; empty ones are left out."""
    for i in range(count):
        strip = Span(span.start + span.length * i // count, span.start + span.length * (i + 1) // count)
        if strip.length:
            yield strip


def convolutions(tree: FullResolution) -> list[Step]:
    return [step for level in tree.levels for step in level.steps if step.op == "convolution"]


def subtree_elements(
    tree: FullResolution,
    axis: int,
    needed: dict[str, Span],
    strips: Sequence[int],
    node: Pair,
    length: int,
    dense: bool,
) -> np.ndarray:
    """How many elements along `axis` each of `convolutions(tree)` computes for one subtree, summed over its
    nodes.

    `node` is the subtree's (offset, stride) along this axis, `length` the image's. The multiply-adds of a
    subtree are the products of both axes: its nodes are pairs of one offset along rows and one along columns.
    """
    offset, stride = node
    totals: list[int] = []
    for level, count in zip(tree.levels, strips, strict=True):
        own = level.stride[axis]
        steps = [step.name for step in level.steps if step.op == "convolution"]
        if own <= stride or not dense:
            offsets: Sequence[int] = [offset % own]
        else:
            offsets = range(offset, own, stride)
        lengths = Counter(lattice_length(length, o, own) for o in offsets)
        sums = dict.fromkeys(steps, 0)
        for n, times in lengths.items():
            whole = node_span(needed[level.exports[0]], own, n)
            for strip in strips_of(whole, count if axis == 0 else 1):
                spans = needed_spans(level, axis, strip, n)
                for name in steps:
                    sums[name] += times * spans[name].length
        totals += sums.values()
    return np.array(totals, dtype=np.int64)
