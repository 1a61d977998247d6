"""What a split plan comes to, level by level: for `fullres plan`, which runs nothing."""

from dataclasses import dataclass
from math import prod

import numpy as np

from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.full_resolution.trace import IMAGE, Pair
from fullres.ops.pooling import lattice_length
from fullres.pipeline.predict.cost import (
    convolutions,
    demands,
    macs_per_element,
    node_span,
    strip_cost,
    subtree_elements,
)
from fullres.pipeline.predict.execute import tile_window
from fullres.pipeline.predict.plan import Plan
from fullres.pipeline.predict.schedule import ITEMSIZE, output_spans


@dataclass(frozen=True)
class LevelSummary:
    """One level of the tree under a plan.

    nodes: split batches of the image at this level (the first alone where the plan is not dense).
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
    size, schedule = plan.schedule.size, plan.schedule
    tree = tree.with_trunk(schedule.trunk)
    macs = _macs(tree, plan)
    tile = max(schedule.tiles, key=lambda t: t[0].length * t[1].length)
    needed = [_demands(tree, plan, tile[a], a) for a in (0, 1)]
    made = {step.name: (step.channels, step.stride) for level in tree.levels for step in level.steps}
    made[IMAGE] = (3, (1, 1))
    summaries, batch = [], 1
    for i, level in enumerate(tree.levels):
        batch *= schedule.fanouts[i]
        height, width = (lattice_length(size[a], 0, level.stride[a]) for a in (0, 1))
        rows, columns = (
            node_span(needed[a][level.exports[0]], level.stride[a], n) for a, n in ((0, height), (1, width))
        )
        sources = {name: made[name] for name in level.reads}
        itemsize = ITEMSIZE[schedule.precision]
        cost = strip_cost(level, sources, batch, (rows, columns), schedule.strips[i], size, itemsize)
        summaries.append(
            LevelSummary(
                level.stride,
                level.window,
                prod(min(level.stride[a], size[a]) for a in (0, 1)) if schedule.dense else 1,
                (height, width),
                batch,
                schedule.fanouts[i],
                schedule.strips[i],
                macs[i],
                cost.peak,
                cost.exports,
            )
        )
    return summaries


def bytes_moved(tree: FullResolution, plan: Plan, scores: bool = False) -> tuple[int, int]:
    """Bytes to the workers (the uint8 image, halos counted twice) and back (class ids, or scores)."""
    windows = (tile_window(tree, plan.schedule, tile) for tile in range(len(plan.schedule.tiles)))
    out = sum(3 * rows.length * columns.length for rows, columns in windows)
    back = prod(plan.schedule.size)
    return out, back * tree.channels[0] * ITEMSIZE[plan.schedule.precision] if scores else back


def _demands(tree: FullResolution, plan: Plan, tile: Span, axis: int) -> dict[str, Span]:
    length = plan.schedule.size[axis]
    return demands(tree, axis, output_spans(tree, axis, tile, length, plan.schedule.dense))


def _macs(tree: FullResolution, plan: Plan) -> list[int]:
    """Multiply-adds of each level over all grains: a grain for each pair of a row and a column offset."""
    schedule, at = plan.schedule, plan.grains[0].level
    stride = tree.levels[at].stride if at >= 0 else (1, 1)
    weights = np.array([macs_per_element(step) for step in convolutions(tree)], dtype=np.int64)
    total = np.zeros_like(weights)
    for tile in schedule.tiles:
        rows, columns = (
            subtree_elements(
                tree,
                axis,
                _demands(tree, plan, tile[axis], axis),
                schedule.strips,
                stride[axis],
                min(stride[axis], tile[axis].length),
                schedule.size[axis],
                schedule.dense,
            ).sum(0)
            for axis in (0, 1)
        )
        total += weights * rows * columns
    counts = [len([s for s in level.steps if s.op == "convolution"]) for level in tree.levels]
    return [int(part.sum()) for part in np.split(total, np.cumsum(counts)[:-1])]
