"""The split plan: how one image becomes grains of work for any number of workers within a memory budget.

A plan has two halves. The *schedule* (`schedule`) says which tensors are computed together; it
follows from image, network, budget and kind of device alone, so the bytes of the result do not
depend on who computes what. The *grains* say at which level of the tree the work is handed out; they follow
from the number of workers too. Cutting deeper repeats prefixes: for SMP-18, 16 grains repeat nothing, 64
repeat conv1 and layer1.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.full_resolution.steps import Pair
from fullres.ops.errors import NetworkError
from fullres.pipeline.predict.bound import BoundTree, Precision, Schedule
from fullres.pipeline.predict.schedule import best_schedule, check_classes, subtree_macs


@dataclass(frozen=True)
class Grain:
    """A unit of work: node `offset` of level `level` (-1: all of them) in tile `tile`, with everything below
    it."""

    index: int
    tile: int
    level: int
    offset: Pair
    macs: int


@dataclass(frozen=True)
class Plan:
    """What to run for one image; plain values only. `least_macs`: the image in one piece, nothing
    repeated."""

    schedule: Schedule
    grains: tuple[Grain, ...]
    least_macs: int

    @property
    def macs(self) -> int:
        return sum(grain.macs for grain in self.grains)

    def efficiency(self, workers: int, images: int = 1) -> float:
        """Predicted share of `workers` that does useful work over `images` such images, communication
        apart."""
        rounds = -(-len(self.grains) * images // workers)
        return self.least_macs * images / (workers * rounds * max(g.macs for g in self.grains))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Plan":
        schedule = value["schedule"]
        tiles = tuple((Span(*rows), Span(*columns)) for rows, columns in schedule["tiles"])
        tuples = {name: tuple(schedule[name]) for name in ("size", "fanouts", "strips")}
        grains = tuple(Grain(**{**g, "offset": tuple(g["offset"])}) for g in value["grains"])
        return Plan(Schedule(**{**schedule, **tuples, "tiles": tiles}), grains, value["least_macs"])


def plan_image(
    tree: FullResolution,
    size: Pair,
    *,
    workers: int,
    memory_budget: int,
    precision: Precision,
    device: str = "cpu",
    images: int = 1,
    scores: bool = False,
) -> Plan:
    """The plan with the least work that fits `memory_budget` bytes a worker (beyond the model's own).

    `size` is the image's (H, W); `device` "cpu" or "cuda"; `scores`: scores are returned, not class ids.
    `images` of this size are to be predicted in all. Raises BudgetError; NetworkError for more classes than
    class ids can name, and for a tree of several outputs whose every phase is wanted.
    """
    if tree.every_phase and len(tree.outputs) != 1:
        raise NetworkError(f"the network has {len(tree.outputs)} outputs; only one can be merged")
    check_classes(tree.channels[0], scores)
    tree = inference_form(tree)
    schedule, least = best_schedule(tree, size, memory_budget, precision, device, scores)
    return Plan(schedule, _cheapest_grains(BoundTree(tree, schedule), workers, images), least)


def _cheapest_grains(bound: BoundTree, workers: int, images: int) -> tuple[Grain, ...]:
    """Grains of the level that ends soonest; of those that end within 0.5 % of each other, the finest."""
    best: tuple[float, tuple[Grain, ...]] | None = None
    for level in range(-1, 0 if bound.by_tiles else len(bound.levels)):
        if any(f > 1 for f in bound.schedule.fanouts[: level + 1]):
            break  # a batch is never cut: its bytes would change
        grains = _grains(bound, level)
        ends = -(-len(grains) * images // workers) * max(g.macs for g in grains)
        if best is None or ends <= best[0] * 1.005:
            best = (min(ends, best[0]) if best else ends, grains)
    assert best is not None
    return best[1]


def _grains(bound: BoundTree, level: int) -> tuple[Grain, ...]:
    nodes = (
        (tile, offset, int(macs))
        for tile, of_tile in enumerate(subtree_macs(bound, level))
        for offset, macs in np.ndenumerate(of_tile)
    )
    return tuple(Grain(i, tile, level, offset, macs) for i, (tile, offset, macs) in enumerate(nodes))
