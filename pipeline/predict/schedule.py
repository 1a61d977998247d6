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
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import ceil, prod

import numpy as np

from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.geometry import Span, Spans
from fullres.models.full_resolution.levels import Region, needed_spans
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.full_resolution.steps import IMAGE, Pair
from fullres.ops.errors import FullresError, NetworkError
from fullres.ops.pooling import lattice_length
from fullres.pipeline.predict.bound import BoundTree, Precision, Schedule
from fullres.pipeline.predict.cost import (
    Sources,
    area,
    convolutions,
    macs_per_element,
    node_span,
    strip_cost,
    strips_of,
)  # fmt: skip

ITEMSIZE: dict[str, int] = {"fp32": 4, "bf16": 2}

# Elements of a lattice that a batch should have: below, convolutions lose speed on that kind of device.
BATCH_ELEMENTS = {"cpu": 2048, "cuda": 8192}
# Tiles are not cut smaller than this: the halo of a deep network would be most of the work.
SMALLEST_TILE = 256
# Kept free of a budget: libraries' scratch space and what an allocator loses (measured: up to 63 MiB).
RESERVE, USABLE = 64 << 20, 0.95


class BudgetError(FullresError, ValueError):
    """No plan fits the memory budget; the message says the least that works."""


def check_budget(peak: int, budget: int, what: str) -> None:
    """Raise BudgetError where `peak` predicted bytes of `what` do not fit `budget` bytes with what is kept
    free; it says the least that works, in whole mebibytes."""
    least = -(-(ceil(peak / USABLE) + RESERVE) // (1 << 20)) << 20
    if budget < least:
        raise BudgetError(f"memory budget is {_mib(budget)}: at least {_mib(least)} needed for {what}")


def check_classes(classes: int, scores: bool) -> None:
    """Raise NetworkError where class ids would not fit their files: they are uint8."""
    if classes > 256 and not scores:
        raise NetworkError(f"the network has {classes} classes: class ids are written for at most 256")


def best_schedule(
    tree: FullResolution,
    size: Pair,
    memory_budget: int,
    precision: Precision,
    device: str,
    scores: bool,
) -> tuple[Schedule, int]:
    """The schedule with the least work that fits the budget, and the multiply-adds of the image in one piece.
    For the arguments see `plan_image`. Raises BudgetError."""
    tree = inference_form(tree)
    schedulers = [_Scheduler(tree, trunk, size, precision, device, scores) for trunk in (0, *tree.trunks())]
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


class _Scheduler:
    """Finds tiles, fan-outs and strips, with one trunk."""

    def __init__(
        self,
        tree: FullResolution,
        trunk: int,
        size: Pair,
        precision: Precision,
        device: str,
        scores: bool,
    ) -> None:
        self.base, self.size, self.scores, self.device = tree, size, scores, device
        self.itemsize = ITEMSIZE[precision]
        whole, once = ((Span(0, size[0]), Span(0, size[1])),), (1,) * len(tree.with_trunk(trunk).levels)
        self.bound = BoundTree(
            tree,
            Schedule(size, precision, tree.every_phase, trunk, whole, once, once, 0, tree.output_stride),
        )
        self.sources: Sources = {s.name: (s.channels, s.stride) for level in tree.levels for s in level.steps}
        self.sources[IMAGE] = (tree.in_channels, (1, 1))

    def least_work(self) -> int:
        """Multiply-adds of the image in one piece."""
        return _work(self.bound)

    def best(self, budget: int) -> tuple[int, Schedule] | None:
        """The schedule with the least work that fits the budget, behind its multiply-adds."""
        usable = int((budget - RESERVE) * USABLE)
        best: tuple[int, Schedule] | None = None
        worse = 0
        for tiles in self._grids():
            schedule = self._fit(tiles, usable)
            if schedule is None:
                continue
            macs = _work(BoundTree(self.base, schedule))
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
            tiles = tile_grid(self.size, side, self.bound.tree.stride)
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
        fanouts: tuple[int, ...] = (1,) * len(self.bound.levels)
        strips: tuple[int, ...] = ()
        for _ in self.bound.levels:
            strips = min(((*strips, m) for m in _STRIPS), key=lambda s: self._peak(tile, fanouts, s))
        return self._peak(tile, fanouts, strips)

    def _largest(self, tiles: tuple[Region, ...]) -> Region:
        return max(tiles, key=lambda tile: area(self.bound.part(tile)))

    def _fit(self, tiles: tuple[Region, ...], usable: int) -> Schedule | None:
        tile = self._largest(tiles)
        fanouts = self._wished_fanouts(tile)
        while True:
            strips: tuple[int, ...] = ()
            for _ in self.bound.levels:
                fitting = (m for m in _STRIPS if self._peak(tile, fanouts, (*strips, m)) <= usable)
                strip = next(fitting, None)
                if strip is None:
                    break
                strips = (*strips, strip)
            else:
                peak = self._peak(tile, fanouts, strips)
                return replace(
                    self.bound.schedule, tiles=tiles, fanouts=fanouts, strips=strips, peak_bytes=peak
                )
            wide = [j for j, f in enumerate(fanouts) if f > 1]
            if not wide:
                return None
            fanouts = tuple(1 if j == wide[-1] else f for j, f in enumerate(fanouts))

    def _wished_fanouts(self, tile: Region) -> tuple[int, ...]:
        fanouts, batch = [], 1
        for level in self.bound.levels:
            elements = prod(max(1, -(-span.length // s)) for span, s in zip(tile, level.stride, strict=True))
            window = prod(level.window)
            if (coarse := self.bound.schedule.output_stride) > 1:  # the first splits keep one phase
                window = prod(
                    -(-s // coarse) // -(-s // w // coarse)
                    for s, w in zip(level.stride, level.window, strict=True)
                )
            alone = level.is_trunk or not self.bound.schedule.every_phase
            wished = 1 if alone else min(window, -(-BATCH_ELEMENTS[self.device] // (elements * batch)))
            fanouts.append(wished)
            batch *= wished
        return tuple(fanouts)

    def _peak(self, tile: Region, fanouts: tuple[int, ...], strips: tuple[int, ...]) -> int:
        """Bytes at the worst moment of the first `len(strips)` levels, for the largest node."""
        returned = area(tile)
        held = area(self.bound.part(tile)) * 3
        held += returned * (sum(self.bound.tree.channels) * self.itemsize if self.scores else 1)
        if (coarse := self.bound.schedule.output_stride) > 1:  # scores that are interpolated
            held += 4 * sum(self.bound.tree.channels) * prod(span.length // coarse + 2 for span in tile)
        peak, batch = held, 1
        for i, (fanout, strip) in enumerate(zip(fanouts, strips, strict=False)):
            level = self.bound.levels[i]
            batch *= fanout
            sources = {name: self.sources[name] for name in level.reads}
            region = self.bound.region(i, tile)
            cost = strip_cost(level, sources, batch, region, strip, self.size, self.itemsize)
            peak = max(peak, held + cost.peak + (cost.exports if strip > 1 else 0))
            held += cost.exports
        leaf = area(self.bound.region(len(self.bound.levels) - 1, tile))
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


def subtree_macs(bound: BoundTree, level: int) -> Iterator[np.ndarray]:
    """For each tile, the multiply-adds of every node of a level with all below it, int64 (rows, columns) of
    its offset. `level` -1: of all together, as one node."""
    stride = bound.stride(level)
    weights = np.array([macs_per_element(step) for step in convolutions(bound.tree)], dtype=np.int64)

    @cache
    def elements(axis: int, span: Span) -> np.ndarray:
        """For each offset along one axis: see `subtree_elements`. Many tiles share a span."""
        return subtree_elements(bound, axis, span, stride[axis])

    for rows, columns in bound.schedule.tiles:
        yield (elements(0, rows) * weights) @ elements(1, columns).T


def subtree_elements(bound: BoundTree, axis: int, tile: Span, stride: int) -> np.ndarray:
    """How many elements along `axis` each convolution of the tree computes for a tile, summed over the nodes
    of a subtree: int64 (subtrees, convolutions), for subtrees whose nodes have this stride, by their offset.

    The multiply-adds of a subtree are the products of both axes: its nodes are pairs of one offset along rows
    and one along columns.
    """
    schedule, needed = bound.schedule, bound.demands_along(axis, tile)
    length, count = schedule.size[axis], min(stride, tile.length)
    totals = []
    for level, cuts in zip(bound.levels, schedule.strips, strict=True):
        own = level.stride[axis]
        lengths = [lattice_length(length, o, own) for o in range(own)]
        # Nodes with lattices of one length compute alike, and the first is looked at; those of a trunk don't.
        looked_at = [o if level.is_trunk else lengths.index(lengths[o]) for o in range(own)]
        times = np.zeros((count, own), dtype=np.int64)
        for subtree in range(count):
            alone = own <= stride or not schedule.every_phase
            for offset in [subtree % own] if alone else range(subtree, own, stride):
                if bound.is_wanted(axis, offset, own):
                    times[subtree, looked_at[offset]] += 1
        rows = [
            (o, *strip)
            for o in sorted(set(looked_at))
            for strip in strips_of(
                node_span(needed[level.exports[0]], own, lengths[o]), cuts if axis == 0 else 1
            )
        ]
        at, start, stop = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        spans = needed_spans(level, axis, Spans(start, stop), at, length)
        names = [step.name for step in level.steps if step.op == "convolution"]
        elements = np.zeros((own, len(names)), dtype=np.int64)
        for i, name in enumerate(names):
            np.add.at(elements[:, i], at, spans[name].length)
        totals.append(times @ elements)
    return np.concatenate(totals, axis=1)


def _work(bound: BoundTree) -> int:
    """Multiply-adds of a whole image."""
    return sum(int(macs.sum()) for macs in subtree_macs(bound, -1))


def _mib(n: int) -> str:
    return f"{n / 2**20:.0f} MiB"
