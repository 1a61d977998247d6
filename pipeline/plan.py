"""The split plan: how one image becomes grains of work for any number of workers within a memory budget.

A plan has two halves. The *schedule* (tiles, fan-outs, strips, precision) says which tensors are computed
together; it follows from image, network, budget and kind of device alone, so the bytes of the result do not
depend on who computes what. The *grains* say at which level of the tree the work is handed out; they follow
from the number of workers too. Cutting deeper repeats prefixes: for SMP-18, 16 grains repeat nothing, 64
repeat conv1 and layer1.

- A *tile* is a rectangle of the output. It is computed with exact halos, so tiles show no seam.
- A *fan-out* is how many phases of a level's split run as one batch.
- A level runs in row *strips* where its inner tensors would not fit at once.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise, product
from math import ceil, prod
from typing import Any, Literal

import numpy as np

from fullres.models.geometry import Span
from fullres.models.split_merge import FullResolution, Pair, Region
from fullres.models.trace import IMAGE
from fullres.ops.pooling import lattice_length
from fullres.pipeline.cost import (
    Sources,
    convolutions,
    demands,
    level_cost,
    macs_per_element,
    node_span,
    subtree_elements,
)  # fmt: skip

Precision = Literal["fp32", "bf16"]
ITEMSIZE: dict[str, int] = {"fp32": 4, "bf16": 2}

# Elements of a lattice that a batch should have: below, convolutions lose speed on that kind of device.
BATCH_ELEMENTS = {"cpu": 2048, "cuda": 8192}
# Tiles are not cut smaller than this: the halo of a deep network would be most of the work.
SMALLEST_TILE = 256
# Kept free of a budget: libraries' scratch space and what an allocator loses (measured: up to 63 MiB).
RESERVE, USABLE = 64 << 20, 0.95


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
class Schedule:
    """Which tensors are computed together; all that a worker must know. `dense`: every phase (SMP), not the
    first alone (FCN32s, FCN8s). `peak_bytes` is the predicted peak beyond the model's own memory."""

    size: Pair
    precision: Precision
    dense: bool
    tiles: tuple[Region, ...]
    fanouts: tuple[int, ...]
    strips: tuple[int, ...]
    peak_bytes: int


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


class BudgetError(ValueError):
    """No plan fits the memory budget; the message says the least that works."""


def plan_image(
    tree: FullResolution,
    size: Pair,
    *,
    workers: int,
    memory_budget: int,
    precision: Precision,
    device: str = "cpu",
    images: int = 1,
    dense: bool = True,
    scores: bool = False,
) -> Plan:
    """The plan with the least work that fits `memory_budget` bytes a worker (beyond the model's own).

    `size` is the image's (H, W); `device` "cpu" or "cuda"; `scores`: scores are returned, not class ids.
    `images` of this size are to be predicted in all. Raises BudgetError.
    """
    schedule = _Scheduler(tree, size, precision, device, dense, scores).best(memory_budget)
    whole = replace(schedule, tiles=((Span(0, size[0]), Span(0, size[1])),), strips=(1,) * len(tree.levels))
    least = sum(g.macs for g in _grains(tree, whole, -1))
    return Plan(schedule, _cheapest_grains(tree, schedule, workers, images), least)


def output_spans(tree: FullResolution, axis: int, tile: Span, length: int, dense: bool) -> dict[str, Span]:
    """The part of each output, in image pixels, that a tile needs along one axis.

    Dense: the tile. Otherwise what bilinear interpolation to full resolution reads, with a margin that covers
    both interpolations of FCN8s.
    """
    if dense:
        return {name: tile for name in tree.outputs}
    margin = 2 * tree.stride[axis]
    return {name: Span(max(0, tile.start - margin), min(length, tile.stop + margin)) for name in tree.outputs}


class _Scheduler:
    """Finds tiles, fan-outs and strips."""

    def __init__(
        self, tree: FullResolution, size: Pair, precision: Precision, device: str, dense: bool, scores: bool
    ) -> None:
        self.tree, self.size, self.dense, self.scores = tree, size, dense, scores
        self.precision, self.itemsize = precision, ITEMSIZE[precision]
        self.device = device
        self.sources: Sources = {s.name: (s.channels, s.stride) for level in tree.levels for s in level.steps}
        self.sources[IMAGE] = (3, (1, 1))

    def best(self, budget: int) -> Schedule:
        usable = int((budget - RESERVE) * USABLE)
        best: tuple[int, Schedule] | None = None
        worse = 0
        for tiles in self._grids():
            schedule = self._fit(tiles, usable)
            if schedule is None:
                continue
            macs = sum(g.macs for g in _grains(self.tree, schedule, -1))
            if best is None or macs < best[0]:
                best, worse = (macs, schedule), 0
            else:
                worse += 1
            if worse == 2 or len(schedule.strips) == sum(schedule.strips):
                break
        if best is None:
            raise BudgetError(
                f"memory budget is {_mib(budget)}: at least {_mib(self._least())} needed for "
                f"{self.size[1]}x{self.size[0]} pixels with this network in this precision"
            )
        return best[1]

    def _grids(self) -> Iterator[tuple[Region, ...]]:
        """Ever finer grids of nearly square tiles that start at multiples of the last level's stride."""
        seen = set()
        side = max(self.size)
        while True:
            tiles = tile_grid(self.size, side, self.tree.stride)
            if tiles not in seen:
                seen.add(tiles)
                yield tiles
            if side <= SMALLEST_TILE:
                return
            side = max(SMALLEST_TILE, int(side / 1.25))

    def _least(self) -> int:
        """The least budget that some grid of tiles fits, rounded up to whole mebibytes."""
        usable = min(self._least_peak(self._largest(tiles)) for tiles in self._grids())
        return -(-(ceil((usable + 1) / USABLE) + RESERVE) // (1 << 20)) << 20

    def _least_peak(self, tile: Region) -> int:
        fanouts: tuple[int, ...] = (1,) * len(self.tree.levels)
        strips: tuple[int, ...] = ()
        for _ in self.tree.levels:
            strips = min(((*strips, m) for m in _STRIPS), key=lambda s: self._peak(tile, fanouts, s))
        return self._peak(tile, fanouts, strips)

    def _largest(self, tiles: tuple[Region, ...]) -> Region:
        return max(
            tiles,
            key=lambda t: prod(
                min(b, n) - max(a, 0) for (a, b), n in zip(self._image(t), self.size, strict=True)
            ),
        )

    def _image(self, tile: Region) -> Region:
        return tuple(self._demands(tile, axis)[IMAGE] for axis in (0, 1))  # type: ignore[return-value]

    def _demands(self, tile: Region, axis: int) -> dict[str, Span]:
        return demands(
            self.tree, axis, output_spans(self.tree, axis, tile[axis], self.size[axis], self.dense)
        )

    def _fit(self, tiles: tuple[Region, ...], usable: int) -> Schedule | None:
        tile = self._largest(tiles)
        fanouts = self._wished_fanouts(tile)
        while True:
            strips: tuple[int, ...] = ()
            for _ in self.tree.levels:
                fitting = (m for m in _STRIPS if self._peak(tile, fanouts, (*strips, m)) <= usable)
                strip = next(fitting, None)
                if strip is None:
                    break
                strips = (*strips, strip)
            else:
                peak = self._peak(tile, fanouts, strips)
                return Schedule(self.size, self.precision, self.dense, tiles, fanouts, strips, peak)
            wide = [j for j, f in enumerate(fanouts) if f > 1]
            if not wide:
                return None
            fanouts = tuple(1 if j == wide[-1] else f for j, f in enumerate(fanouts))

    def _wished_fanouts(self, tile: Region) -> tuple[int, ...]:
        fanouts, batch = [], 1
        for level in self.tree.levels:
            elements = prod(max(1, -(-span.length // s)) for span, s in zip(tile, level.stride, strict=True))
            window = prod(level.window)
            wished = min(window, -(-BATCH_ELEMENTS[self.device] // (elements * batch))) if self.dense else 1
            fanouts.append(wished)
            batch *= wished
        return tuple(fanouts)

    def _peak(self, tile: Region, fanouts: tuple[int, ...], strips: tuple[int, ...]) -> int:
        """Bytes at the worst moment of the first `len(strips)` levels, for the largest node."""
        needed = [self._demands(tile, axis) for axis in (0, 1)]
        window = prod(needed[a][IMAGE].clip(self.size[a]).length for a in (0, 1)) * 3
        returned = prod(span.length for span in tile)
        held = window + returned * (sum(self.tree.channels) * self.itemsize if self.scores else 1)
        peak, batch = held, 1
        for level, fanout, strip in zip(self.tree.levels, fanouts, strips, strict=False):
            batch *= fanout
            lengths = tuple(lattice_length(self.size[a], 0, level.stride[a]) for a in (0, 1))
            region = tuple(
                node_span(needed[a][level.exports[0]], level.stride[a], lengths[a]) for a in (0, 1)
            )
            sources = {name: self.sources[name] for name in level.reads}
            one = Span(region[0].start, region[0].start + -(-region[0].length // strip))
            middle = _centred(one, region[0])
            cost = level_cost(level, sources, batch, (middle, region[1]), lengths, self.itemsize)  # type: ignore[arg-type]
            exports = cost.exports * region[0].length // max(1, middle.length)
            peak = max(peak, held + cost.peak + (exports if strip > 1 else 0))
            held += exports
        last = self.tree.levels[-1]
        leaf = prod(
            node_span(
                needed[a][last.exports[0]], last.stride[a], lattice_length(self.size[a], 0, last.stride[a])
            ).length
            for a in (0, 1)
        )
        return max(peak, held + leaf * batch * 9)  # argmax counts in int64


_STRIPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def _centred(strip: Span, whole: Span) -> Span:
    """A strip with its halo on both sides is the costliest."""
    shift = (whole.length - strip.length) // 2
    return Span(strip.start + shift, strip.stop + shift)


def tile_grid(size: Pair, side: int, stride: Pair) -> tuple[Region, ...]:
    """The image in tiles of about `side` pixels, row by row."""
    axes = []
    for length, s in zip(size, stride, strict=True):
        count = max(1, round(length / side))
        cuts = sorted({min(length, round(length * i / count / s) * s) for i in range(count)} | {0, length})
        axes.append([Span(a, b) for a, b in pairwise(cuts)])
    return tuple((rows, columns) for rows in axes[0] for columns in axes[1])


def _cheapest_grains(
    tree: FullResolution, schedule: Schedule, workers: int, images: int
) -> tuple[Grain, ...]:
    """Grains of the level that ends soonest; of those that end within 0.5 % of each other, the finest."""
    best: tuple[float, tuple[Grain, ...]] | None = None
    for level in range(-1, len(tree.levels) if schedule.dense else 0):
        if any(f > 1 for f in schedule.fanouts[: level + 1]):
            break  # a batch is never cut: its bytes would change
        grains = _grains(tree, schedule, level)
        ends = -(-len(grains) * images // workers) * max(g.macs for g in grains)
        if best is None or ends <= best[0] * 1.005:
            best = (min(ends, best[0]) if best else ends, grains)
    assert best is not None
    return best[1]


def _grains(tree: FullResolution, schedule: Schedule, level: int) -> tuple[Grain, ...]:
    size = schedule.size
    stride = tree.levels[level].stride if level >= 0 else (1, 1)
    weights = np.array([macs_per_element(step) for step in convolutions(tree)], dtype=np.int64)

    @cache
    def elements(axis: int, span: Span) -> list[np.ndarray]:
        """For each offset along one axis: see `subtree_elements`. Many tiles share a span."""
        needed = demands(tree, axis, output_spans(tree, axis, span, size[axis], schedule.dense))
        return [
            subtree_elements(
                tree, axis, needed, schedule.strips, (o, stride[axis]), size[axis], schedule.dense
            )
            for o in range(min(stride[axis], span.length))
        ]

    grains: list[Grain] = []
    for t, (rows, columns) in enumerate(schedule.tiles):
        for (k, ny), (l, nx) in product(enumerate(elements(0, rows)), enumerate(elements(1, columns))):
            grains.append(Grain(len(grains), t, level, (k, l), int((weights * ny * nx).sum())))
    return tuple(grains)


def _mib(n: int) -> str:
    return f"{n / 2**20:.0f} MiB"
