"""What running a level costs: multiply-adds and bytes, by walking its steps as `run_level` does."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.levels import Level, Region, needed_regions, needed_spans
from fullres.models.full_resolution.split_merge import FullResolution, is_relu
from fullres.models.full_resolution.steps import IMAGE, Pair, Pointwise, Step
from fullres.ops.convolution import Convolution


@dataclass(frozen=True)
class LevelCost:
    """For one batch of nodes: bytes at the worst moment, bytes of the exports."""

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
    level: Level, sources: Sources, batch: int, region: Region, size: Pair, itemsize: int
) -> LevelCost:
    """The cost of `run_level` for `batch` of the largest nodes of an image of `size` (H, W), without what its
    sources hold.

    A convolution's input is counted twice where its border is padded or cropped (a copy) and an image read is
    counted in fp32, in which it is normalised. A convolution that adds a shortcut is counted as one that
    makes its output first, as it is where oneDNN doesn't compute it.
    """
    regions = needed_regions(level, region, (0, 0), size)
    channels = {s.name: s.channels for s in level.steps}
    made = sources | {s.name: (s.channels, s.stride) for s in level.steps}
    last_reader = {name: step.name for step in level.steps for name in step.inputs}

    def bytes_of(name: str) -> int:
        return batch * channels[name] * area(regions[name]) * itemsize

    peak = 0
    live: dict[str, int] = {}
    for step in level.steps:
        copies = _input_copy(step, regions[step.name], made[step.inputs[0]], batch, itemsize)
        overwritten = step.inputs[-1]
        overwrites = (
            _can_overwrite(step)
            and overwritten in live
            and last_reader[overwritten] == step.name
            and made[overwritten][1] == step.stride
        )
        out = bytes_of(step.name)
        between = 2 * out if isinstance(step.call, Pointwise) and step.call.is_composed else 0
        peak = max(peak, sum(live.values()) + copies + between + (0 if overwrites else out))
        live[step.name] = out
        for name in step.inputs:
            if last_reader[name] == step.name and name not in level.exports:
                live.pop(name, None)
    return LevelCost(peak, sum(bytes_of(name) for name in level.exports))


def _can_overwrite(step: Step) -> bool:
    return is_relu(step.call) or (isinstance(step.call, Pointwise) and step.call.is_sum)


def strip_cost(
    level: Level, sources: Sources, batch: int, region: Region, strips: int, size: Pair, itemsize: int
) -> LevelCost:
    """The cost of `region` in that many row strips: the peak of the costliest, which has its halo on both
    sides, and the exports of all."""
    rows, columns = region
    length = -(-rows.length // strips)
    start = rows.start + (rows.length - length) // 2
    middle = level_cost(level, sources, batch, (Span(start, start + length), columns), size, itemsize)
    return LevelCost(middle.peak, middle.exports * rows.length // max(1, length))


def _input_copy(step: Step, out: Region, read: tuple[int, Pair], batch: int, itemsize: int) -> int:
    """Bytes of the copies that a step makes of what it reads first, whose channels and stride are `read`."""
    channels, stride = read
    ratio = [step.stride[a] // stride[a] for a in (0, 1)]
    elements = prod(step.sliding[a].reads(out[a], 0, ratio[a]).length for a in (0, 1))
    if step.inputs[0] == IMAGE:
        return batch * channels * elements * (itemsize + 4)
    if ratio == [1, 1] and (step.op == "pointwise" or all(axis.kernel == 1 for axis in step.sliding)):
        return 0
    return batch * channels * elements * itemsize


def demands(tree: FullResolution, axis: int, outputs: dict[str, Span]) -> dict[str, Span]:
    """Which part of the image each level must cover, along one axis, for `outputs` (spans in image pixels).

    Returns for every exported tensor and for the image a span in pixels of an endless image, from a multiple
    of the tensor's stride to a multiple of it: the same for all nodes of a level, whatever their offset.
    """
    stride = {s.name: s.stride[axis] for level in tree.levels for s in level.steps} | {IMAGE: 1}
    needed = {name: span.outward(stride[name]) for name, span in outputs.items()}
    for level in reversed(tree.levels):
        own = level.stride[axis]
        exports = [needed[name] for name in level.exports if name in needed]
        hull = exports[0]
        for span in exports[1:]:
            hull = hull.hull(span)
        for name in level.exports:
            needed[name] = hull
        spans = needed_spans(level, axis, Span(hull.start // own, hull.stop // own), 0, None)
        for step in level.steps:
            out, own = spans[step.name], stride[step.name]
            for index, name in enumerate(step.inputs):
                first, last = step.sliding_of(index, axis).receptive_field
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
