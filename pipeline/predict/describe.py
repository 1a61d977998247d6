"""What a split plan comes to, level by level: for `fullres plan`, which runs nothing."""

from dataclasses import dataclass
from math import prod

import numpy as np

from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.full_resolution.steps import IMAGE, Pair
from fullres.pipeline.predict.bound import BoundTree
from fullres.pipeline.predict.cost import area, convolutions, macs_per_element, strip_cost
from fullres.pipeline.predict.plan import Plan
from fullres.pipeline.predict.schedule import ITEMSIZE, subtree_elements


@dataclass(frozen=True)
class LevelSummary:
    """One level of the tree under a plan.

    nodes: split batches of the image at this level (the first alone where not every phase is wanted).
    lattice: (h, w) of the largest. batch: nodes run together.
    macs: multiply-adds of the level over all grains, what they repeat included.
    working_bytes, kept_bytes: a batch's peak within the level, and what stays for the levels below.
    """

    stride: Pair
    window: Pair
    nodes: int
    lattice: Pair
    batch: int
    fanout: int
    strips: int
    macs: int
    working_bytes: int
    kept_bytes: int


def describe(tree: FullResolution, plan: Plan) -> list[LevelSummary]:
    """Each level of `tree`, from the image down, as `plan` runs it."""
    schedule = plan.schedule
    bound = BoundTree(tree, schedule)
    macs = _macs(bound, plan.grains[0].level)
    tile = max(schedule.tiles, key=area)
    made = {step.name: (step.channels, step.stride) for level in bound.levels for step in level.steps}
    made[IMAGE] = (tree.in_channels, (1, 1))
    summaries, batch = [], 1
    for i, level in enumerate(bound.levels):
        batch *= schedule.fanouts[i]
        sources = {name: made[name] for name in level.reads}
        itemsize, region = ITEMSIZE[schedule.precision], bound.region(i, tile)
        cost = strip_cost(level, sources, batch, region, schedule.strips[i], schedule.size, itemsize)
        summaries.append(
            LevelSummary(
                level.stride,
                level.window,
                prod(_wanted(bound, a, level.stride[a]) for a in (0, 1)) if schedule.every_phase else 1,
                bound.lattice(i),
                batch,
                schedule.fanouts[i],
                schedule.strips[i],
                macs[i],
                cost.peak,
                cost.exports,
            )
        )
    return summaries


def _wanted(bound: BoundTree, axis: int, stride: int) -> int:
    """How many nodes of a level with this stride there are along an axis."""
    offsets = range(min(stride, bound.schedule.size[axis]))
    return sum(bound.is_wanted(axis, offset, stride) for offset in offsets)


def bytes_moved(tree: FullResolution, plan: Plan, scores: bool = False) -> tuple[int, int]:
    """Bytes to the workers (the uint8 image, halos counted twice) and back (class ids, or scores)."""
    bound = BoundTree(tree, plan.schedule)
    out = sum(3 * area(bound.part(tile)) for tile in plan.schedule.tiles)
    back = prod(plan.schedule.size)
    return out, back * tree.channels[0] * ITEMSIZE[plan.schedule.precision] if scores else back


def _macs(bound: BoundTree, at: int) -> list[int]:
    """Multiply-adds of each level over all grains, which are nodes of level `at`: a grain for each pair of a
    row and a column offset."""
    stride = bound.stride(at)
    weights = np.array([macs_per_element(step) for step in convolutions(bound.tree)], dtype=np.int64)
    total = np.zeros_like(weights)
    for tile in bound.schedule.tiles:
        rows, columns = (subtree_elements(bound, a, tile[a], stride[a]).sum(0) for a in (0, 1))
        total += weights * rows * columns
    counts = [len([s for s in level.steps if s.op == "convolution"]) for level in bound.levels]
    return [int(part.sum()) for part in np.split(total, np.cumsum(counts)[:-1])]
