"""Which tensors of an image are computed together: the half of a plan that decides about the bytes.

It follows from image, network, budget and kind of device alone, so the result does not depend on who computes
what.

- A *tile* is a rectangle of the output. It is computed with exact halos, so tiles show no seam.
- A *fan-out* is how many phases of a level's split run as one batch.
- A level runs in row *strips* where its inner tensors would not fit at once.
- Where what the first levels hand down would not fit either, they are one level, the *trunk*, with the first
  block of a later level: run again for each node there, never whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil, prod
from typing import Literal

import numpy as np

from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.levels import Region
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.full_resolution.trace import IMAGE, Pair
from fullres.ops.pooling import lattice_length
from fullres.pipeline.predict.cost import (
    Sources,
    convolutions,
    demands,
    macs_per_element,
    node_span,
    strip_cost,
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
class Schedule:
    """Which tensors are computed together; all that a worker must know. `dense`: every phase (SMP), not the
    first alone (FCN32s, FCN8s). `trunk`: what `FullResolution.with_trunk` takes; levels, fan-outs and strips
    are those of that tree. `peak_bytes` is the predicted peak beyond the model's own memory."""

    size: Pair
    precision: Precision
    dense: bool
    trunk: int
    tiles: tuple[Region, ...]
    fanouts: tuple[int, ...]
    strips: tuple[int, ...]
    peak_bytes: int


class BudgetError(ValueError):
    """No plan fits the memory budget; the message says the least that works."""


def best_schedule(
    tree: FullResolution,
    size: Pair,
    memory_budget: int,
    precision: Precision,
    device: str,
    dense: bool,
    scores: bool,
) -> tuple[Schedule, int]:
    """The schedule with the least work that fits the budget, and the multiply-adds of the image in one piece.
    For the arguments see `plan_image`. Raises BudgetError."""
    schedulers = [
        _Scheduler(tree, trunk, size, precision, device, dense, scores) for trunk in (0, *tree.trunks())
    ]
    best: tuple[int, Schedule] | None = None
    for scheduler in schedulers:
        if best is not None and best[0] <= scheduler.least_work():
            continue
        found = scheduler.best(memory_budget)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        needed = min(scheduler.least_budget() for scheduler in schedulers)
        raise BudgetError(
            f"memory budget is {_mib(memory_budget)}: at least {_mib(needed)} needed for "
            f"{size[1]}x{size[0]} pixels with this network in this precision"
        )
    return best[1], schedulers[0].least_work()


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
    """Finds tiles, fan-outs and strips, with one trunk."""

    def __init__(
        self,
        tree: FullResolution,
        trunk: int,
        size: Pair,
        precision: Precision,
        device: str,
        dense: bool,
        scores: bool,
    ) -> None:
        self.tree, self.trunk, self.size = tree.with_trunk(trunk), trunk, size
        self.base, self.dense, self.scores = tree, dense, scores
        self.precision, self.itemsize = precision, ITEMSIZE[precision]
        self.device = device
        self.sources: Sources = {s.name: (s.channels, s.stride) for level in tree.levels for s in level.steps}
        self.sources[IMAGE] = (3, (1, 1))
        self._known: dict[tuple[int, Span], dict[str, Span]] = {}

    def least_work(self) -> int:
        """Multiply-adds of the image in one piece."""
        whole, once = ((Span(0, self.size[0]), Span(0, self.size[1])),), (1,) * len(self.tree.levels)
        schedule = Schedule(self.size, self.precision, self.dense, self.trunk, whole, once, once, 0)
        return _work(self.base, schedule)

    def best(self, budget: int) -> tuple[int, Schedule] | None:
        """The schedule with the least work that fits the budget, behind its multiply-adds."""
        usable = int((budget - RESERVE) * USABLE)
        best: tuple[int, Schedule] | None = None
        worse = 0
        for tiles in self._grids():
            schedule = self._fit(tiles, usable)
            if schedule is None:
                continue
            macs = _work(self.base, schedule)
            if best is None or macs < best[0]:
                best, worse = (macs, schedule), 0
            else:
                worse += 1
            if worse == 2 or len(schedule.strips) == sum(schedule.strips):
                break
        return best

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

    def least_budget(self) -> int:
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
        key = (axis, tile[axis])  # tiles of a grid share their rows and columns
        if key not in self._known:
            spans = output_spans(self.tree, axis, tile[axis], self.size[axis], self.dense)
            self._known[key] = demands(self.tree, axis, spans)
        return self._known[key]

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
                return Schedule(
                    self.size, self.precision, self.dense, self.trunk, tiles, fanouts, strips, peak
                )
            wide = [j for j, f in enumerate(fanouts) if f > 1]
            if not wide:
                return None
            fanouts = tuple(1 if j == wide[-1] else f for j, f in enumerate(fanouts))

    def _wished_fanouts(self, tile: Region) -> tuple[int, ...]:
        fanouts, batch = [], 1
        for level in self.tree.levels:
            elements = prod(max(1, -(-span.length // s)) for span, s in zip(tile, level.stride, strict=True))
            window = prod(level.window)
            alone = level.is_trunk or not self.dense
            wished = 1 if alone else min(window, -(-BATCH_ELEMENTS[self.device] // (elements * batch)))
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
            region: Region = tuple(  # type: ignore[assignment]
                node_span(needed[a][level.exports[0]], level.stride[a], lengths[a]) for a in (0, 1)
            )
            sources = {name: self.sources[name] for name in level.reads}
            cost = strip_cost(level, sources, batch, region, strip, self.size, self.itemsize)
            peak = max(peak, held + cost.peak + (cost.exports if strip > 1 else 0))
            held += cost.exports
        last = self.tree.levels[-1]
        leaf = prod(
            node_span(
                needed[a][last.exports[0]], last.stride[a], lattice_length(self.size[a], 0, last.stride[a])
            ).length
            for a in (0, 1)
        )
        return max(peak, held + leaf * batch * 9)  # argmax counts in int64


_STRIPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def tile_grid(size: Pair, side: int, stride: Pair) -> tuple[Region, ...]:
    """The image in tiles of about `side` pixels, row by row."""
    axes = []
    for length, s in zip(size, stride, strict=True):
        count = max(1, round(length / side))
        cuts = sorted({min(length, round(length * i / count / s) * s) for i in range(count)} | {0, length})
        axes.append([Span(a, b) for a, b in pairwise(cuts)])
    return tuple((rows, columns) for rows in axes[0] for columns in axes[1])


def subtree_macs(tree: FullResolution, schedule: Schedule, level: int) -> Iterator[np.ndarray]:
    """For each tile, the multiply-adds of every node of a level with all below it, int64 (rows, columns) of
    its offset. `level` -1: of all together, as one node."""
    tree, size = tree.with_trunk(schedule.trunk), schedule.size
    stride = tree.levels[level].stride if level >= 0 else (1, 1)
    weights = np.array([macs_per_element(step) for step in convolutions(tree)], dtype=np.int64)

    @cache
    def elements(axis: int, span: Span) -> np.ndarray:
        """For each offset along one axis: see `subtree_elements`. Many tiles share a span."""
        needed = demands(tree, axis, output_spans(tree, axis, span, size[axis], schedule.dense))
        count = min(stride[axis], span.length)
        return subtree_elements(
            tree, axis, needed, schedule.strips, stride[axis], count, size[axis], schedule.dense
        )

    for rows, columns in schedule.tiles:
        yield (elements(0, rows) * weights) @ elements(1, columns).T


def _work(tree: FullResolution, schedule: Schedule) -> int:
    """Multiply-adds of a whole image."""
    return sum(int(macs.sum()) for macs in subtree_macs(tree, schedule, -1))


def _mib(n: int) -> str:
    return f"{n / 2**20:.0f} MiB"
