"""The levels of a split-merge tree: which steps of a network are run together for one node."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from fullres.models.full_resolution.geometry import AnySpan, Span
from fullres.models.full_resolution.steps import IMAGE, Pair, Step, UnsupportedModule

Region = tuple[Span, Span]  # rows and columns


@dataclass(frozen=True)
class Level:
    """The steps of the network at one output stride, or those of a *trunk*: of all strides up to one.

    `window` divides the lattice of the level before; `reads` are the tensors of earlier levels (or the image)
    that its steps use; `exports` are those of its own that later levels or the caller use, all at `stride`.
    """

    stride: Pair
    window: Pair
    steps: tuple[Step, ...]
    reads: tuple[str, ...]
    exports: tuple[str, ...]

    @property
    def is_trunk(self) -> bool:
        return any(step.stride != self.stride for step in self.steps)


def build_levels(steps: Sequence[Step], outputs: Sequence[str]) -> tuple[Level, ...]:
    """Steps grouped by their stride. Raises UnsupportedModule unless each stride divides the next."""
    strides = sorted({s.stride for s in steps} | {(1, 1)})
    for before, after in pairwise(strides):
        if after[0] % before[0] or after[1] % before[1]:
            raise UnsupportedModule(
                f"output stride {before} does not divide {after}: the network's strides form no tree"
            )
    steps = _without_picks(steps, outputs)
    groups = [[s for s in steps if s.stride == stride] for stride in strides]
    return _levels([group for group in groups if group], outputs)


def with_trunk(levels: Sequence[Level], last: int, outputs: Sequence[str]) -> tuple[Level, ...] | None:
    """The levels up to the first block of level `last` as one, the trunk: their exports are never whole.

    What is left of level `last` reads that block's output alone. None where something else reads into the
    trunk, or an output of the network lies in it.
    """
    block = _first_block(levels[last])
    trunk = [*(s for level in levels[:last] for s in level.steps), *levels[last].steps[:block]]
    rest = [levels[last].steps[block:], *(level.steps for level in levels[last + 1 :])]
    joined = _levels([trunk, *(group for group in rest if group)], outputs)
    exported = [s for s in trunk if s.name in joined[0].exports]
    return joined if all(s.stride == levels[last].stride for s in exported) else None


def _levels(groups: Sequence[Sequence[Step]], outputs: Sequence[str]) -> tuple[Level, ...]:
    """A level of each group of steps; its stride is that of the last."""
    group_of = {s.name: i for i, group in enumerate(groups) for s in group} | {IMAGE: -1}
    levels = []
    before = (1, 1)
    for i, own in enumerate(groups):
        stride = own[-1].stride
        reads = tuple(dict.fromkeys(n for s in own for n in s.inputs if group_of[n] < i))
        later = {n for group in groups[i + 1 :] for s in group for n in s.inputs} | set(outputs)
        exports = tuple(s.name for s in own if s.name in later)
        levels.append(
            Level(stride, (stride[0] // before[0], stride[1] // before[1]), tuple(own), reads, exports)
        )
        before = stride
    return tuple(levels)


def _first_block(level: Level) -> int:
    """How many steps of a level there are up to one that all further ones read through; all if none is."""
    for count in range(1, len(level.steps)):
        rest = level.steps[count:]
        if {n for s in rest for n in s.inputs} - {s.name for s in rest} == {level.steps[count - 1].name}:
            return count
    return len(level.steps)


def _without_picks(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """Without the 1x1 pools that became the identity because their input is computed at their stride."""
    stride = {s.name: s.stride for s in steps}
    same: dict[str, str] = {}
    kept = []
    for step in steps:
        step = replace(step, inputs=tuple(same.get(n, n) for n in step.inputs))
        is_pick = step.op == "max_pool" and all(axis.receptive_field == (0, 0) for axis in step.sliding)
        if is_pick and stride.get(step.inputs[0]) == step.stride and step.name not in outputs:
            same[step.name] = step.inputs[0]
        else:
            kept.append(step)
    return kept


def needed_regions(level: Level, region: Region, offset: Pair, size: Pair) -> dict[str, Region]:
    """The region of each step of a level from which `region` of its exports can be computed, for the node at
    `offset` in an image of `size` (H, W). A step of a trunk has its own lattice, which the node lies in."""
    rows, columns = (needed_spans(level, axis, region[axis], offset[axis], size[axis]) for axis in (0, 1))
    return {step.name: (rows[step.name], columns[step.name]) for step in level.steps}


def needed_spans(
    level: Level, axis: int, out: AnySpan, offset: Any, length: int | None
) -> dict[str, AnySpan]:
    """The same along one axis of an image of `length` pixels; None: of an endless image, for all offsets
    together. Of many nodes at once if `out` and `offset` are arrays."""
    needed = dict.fromkeys(level.exports, out)
    strides = {step.name: step.stride[axis] for step in level.steps}
    for step in reversed(level.steps):
        own = strides[step.name]
        for index, name in enumerate(step.inputs):
            if name not in strides:
                continue
            stride = strides[name]
            shift = (offset % own - offset % stride) // stride
            reads = step.sliding_of(index, axis).reads(needed[step.name], shift, own // stride)
            if length is None:
                reads = type(reads)(reads.start, reads.stop + own // stride - 1)
            else:
                reads = reads.clip(-(-(length - offset % stride) // stride))
            needed[name] = needed[name].hull(reads) if name in needed else reads
    return needed
