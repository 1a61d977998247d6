"""Which stage of a pipeline makes which of a network's calls, so that all take about as long and little
travels between them.

Calls are put in an order in which each comes behind what it reads, and the order is cut before convolutions.
Calls that use one parameter are of one stage, as both resolutions of SeeThroughNet in each layer of its
trunk: a parameter lives in one place. What one stage makes and a later one reads passes through all between.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fullres.models.stages.calls import IMAGES, Call, Calls, Made, Uncuttable, tensors_in

# What writing a byte of features costs in multiply-adds: normalisations and resizes have no others.
_MACS_A_BYTE = 16
# How much more than the least possible the slowest stage may cost where less travels for it.
_SLACK = 1.05


@dataclass(frozen=True)
class Partition:
    """`stage_of`: by number of a call its stage. `crossing`: for each boundary what travels
    over it, in an order of its own. `cost`: of each stage, in multiply-adds."""

    calls: Calls
    stage_of: list[int]
    crossing: list[list[Made]]
    cost: list[float]

    @property
    def stages(self) -> int:
        return len(self.cost)

    def parameters(self, stage: int) -> int:
        """How many numbers."""
        return sum(self.calls.sizes[name] for name in self.uses(stage) if name in self.calls.sizes)

    def of(self, stage: int) -> list[Call]:
        return [c for c, where in zip(self.calls.calls, self.stage_of, strict=True) if where == stage]

    def uses(self, stage: int) -> set[str]:
        """Names of a stage's parameters and buffers."""
        return {name for call in self.of(stage) for name in call.uses}

    def ends(self, stage: int) -> tuple[str, str]:
        """The modules with the first and the last of a stage's parameters."""
        used = [name.rpartition(".")[0] for call in self.of(stage) for name in sorted(call.uses)]
        return used[0], used[-1]

    def macs(self, stage: int) -> int:
        return sum(call.macs for call in self.of(stage))

    def nbytes(self, stage: int) -> int:
        """Of the features that a stage makes."""
        return sum(call.nbytes for call in self.of(stage))

    def bytes_crossing(self, boundary: int) -> int:
        return sum(self.calls.tensors[made].nbytes for made in self.crossing[boundary])


def partition(calls: Calls, stages: int) -> Partition:
    """Cut into so many stages. Raises Uncuttable where the network has fewer."""
    group_of, count = _groups(calls)
    order = _order(calls, group_of, count)
    position = np.empty(count, int)
    position[order] = np.arange(count)
    at = [int(position[group]) for group in group_of]  # of each call its place in the order
    cost, heavy = np.zeros(count), np.zeros(count, bool)
    for call, place in zip(calls.calls, at, strict=True):
        cost[place] += call.macs + _MACS_A_BYTE * call.nbytes
        heavy[place] |= call.macs > 0
    spans = _spans(calls, at, count)
    traffic = np.zeros(count + 1)
    for made, (begin, end) in spans.items():
        traffic[begin + 1 : end + 1] += calls.tensors[made].nbytes
    # The first convolution is no place to cut: nothing would be before it.
    places = np.array([0, *np.flatnonzero(heavy)[1:], count])
    if stages >= len(places):
        raise Uncuttable(f"parallel.pipeline is {stages}: the network has {len(places) - 1} stages at most")
    cuts = _cuts(np.concatenate([[0.0], cost.cumsum()])[places], traffic[places], stages)
    bounds = places[cuts]
    stage_of = [int(np.searchsorted(bounds, place, "right")) - 1 for place in at]
    crossing = [sorted(made for made, (b, e) in spans.items() if b < cut <= e) for cut in bounds[1:-1]]
    return Partition(calls, stage_of, crossing, [float(cost[a:b].sum()) for a, b in pairwise(bounds)])


def _groups(calls: Calls) -> tuple[list[int], int]:
    """Of each call the group of calls that belong together; the number of groups.

    Those that use one parameter or write to one memory, and what lies between two of them.
    """
    by_name: dict[str, list[int]] = {}
    for number, call in enumerate(calls.calls):
        for name in call.uses:
            by_name.setdefault(name, []).append(number)
    edges = [*_reads(calls)]
    for tied in (*by_name.values(), *calls.together):
        edges += [*pairwise(tied), *((b, a) for a, b in pairwise(tied))]
    rows, columns = np.array(edges).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), (len(calls.calls),) * 2)
    count, labels = connected_components(graph, connection="strong")
    return labels.tolist(), count


def _reads(calls: Calls) -> Iterable[tuple[int, int]]:
    """Pairs of a call and one that reads what it makes."""
    for number, call in enumerate(calls.calls):
        for made in call.reads:
            if made != IMAGES:
                yield made[0], number


def _order(calls: Calls, group_of: Sequence[int], count: int) -> list[int]:
    """Groups, each behind those that it reads, otherwise as the network makes them."""
    first = [len(group_of)] * count
    for number, group in enumerate(group_of):
        first[group] = min(first[group], number)
    readers: list[set[int]] = [set() for _ in range(count)]
    for maker, reader in _reads(calls):
        if group_of[maker] != group_of[reader]:
            readers[group_of[maker]].add(group_of[reader])
    missing = np.zeros(count, int)
    for of_group in readers:
        for reader in of_group:
            missing[reader] += 1
    ready = [(first[g], g) for g in range(count) if not missing[g]]
    heapify(ready)
    order = []
    while ready:
        _, group = heappop(ready)
        order.append(group)
        for reader in readers[group]:
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, (first[reader], reader))
    return order


def _spans(calls: Calls, at: Sequence[int], count: int) -> dict[Made, tuple[int, int]]:
    """Of everything that is read elsewhere than where it is made: from which place in the order to which."""
    spans: dict[Made, tuple[int, int]] = {}
    reads = [(made, place) for call, place in zip(calls.calls, at, strict=True) for made in call.reads]
    reads += [(tensor.made, count - 1) for tensor in tensors_in(calls.output)]  # type: ignore[attr-defined]
    for made, place in reads:
        begin = 0 if made == IMAGES else at[made[0]]
        begin, end = spans.get(made, (begin, begin))
        spans[made] = (begin, max(end, place))
    return {made: (begin, end) for made, (begin, end) in spans.items() if end > begin}


def _cuts(cost: np.ndarray, traffic: np.ndarray, stages: int) -> list[int]:
    """Where to cut: indices of `cost`, which grows from 0 to that of everything, with both ends.

    Of all ways in which the slowest stage costs at most `_SLACK` of the least possible, the one with
    the least traffic.
    """
    least = _slowest(cost, stages)
    ends = len(cost) - 1
    best = np.full((stages + 1, ends + 1), np.inf)
    before = np.zeros((stages + 1, ends + 1), int)
    best[0, 0] = 0
    for stage in range(1, stages + 1):
        for end in range(stage, ends + 1):
            begins = np.arange(stage - 1, end)
            fits = cost[end] - cost[begins] <= least * _SLACK
            values = np.where(fits, best[stage - 1, begins], np.inf)
            chosen = int(values.argmin())
            best[stage, end] = values[chosen] + (traffic[end] if end < ends else 0)
            before[stage, end] = begins[chosen]
    cuts = [ends]
    for stage in range(stages, 0, -1):
        cuts.append(int(before[stage, cuts[-1]]))
    return cuts[::-1]


def _slowest(cost: np.ndarray, stages: int) -> float:
    """Of the best way to cut, what its slowest stage costs."""
    ends = len(cost) - 1
    best = np.full((stages + 1, ends + 1), np.inf)
    best[0, 0] = 0
    for stage in range(1, stages + 1):
        for end in range(stage, ends + 1):
            begins = np.arange(stage - 1, end)
            best[stage, end] = np.maximum(best[stage - 1, begins], cost[end] - cost[begins]).min()
    return float(best[stages, ends])
