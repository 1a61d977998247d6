"""A tree and a schedule as one: what a plan counts and what a worker runs can't be of different trees."""

from dataclasses import dataclass
from typing import Literal

from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.levels import Level, Region
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.full_resolution.steps import IMAGE, Pair
from fullres.ops.errors import NetworkError
from fullres.ops.pooling import lattice_length
from fullres.pipeline.predict.cost import demands, node_span

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Schedule:
    """Which tensors are computed together; all that a worker must know.

    `every_phase` and `output_stride` are the tree's. `trunk`: what `FullResolution.with_trunk` takes; levels,
    fan-outs and strips are those of that tree. `peak_bytes` is the predicted peak beyond the model's own
    memory.
    """

    size: Pair
    precision: Precision
    every_phase: bool
    trunk: int
    tiles: tuple[Region, ...]
    fanouts: tuple[int, ...]
    strips: tuple[int, ...]
    peak_bytes: int
    output_stride: int = 1

    @property
    def origin(self) -> Pair:
        """The first pixel of the lattice whose scores are computed: it has as much of the image before it as
        behind."""
        rows, columns = ((length - 1) % self.output_stride // 2 for length in self.size)
        return rows, columns


class BoundTree:
    """A tree in the form that inference runs, with a schedule's trunk in it, for images of its size.

    tree: any form of it; whatever that is, levels are those of `inference_form`. Raises NetworkError for the
    schedule of a tree with other levels.
    """

    def __init__(self, tree: FullResolution, schedule: Schedule) -> None:
        whole = inference_form(tree)
        if schedule.trunk not in (0, *whole.trunks()):
            raise NetworkError(f"the plan has a trunk up to level {schedule.trunk}: it is of another network")
        self.tree, self.schedule = whole.with_trunk(schedule.trunk), schedule
        if not len(self.levels) == len(schedule.fanouts) == len(schedule.strips):
            raise NetworkError(
                f"the plan has {len(schedule.strips)} levels, the network {len(self.levels)}: "
                "it is of another network"
            )
        self._demands: dict[tuple[int, Span], dict[str, Span]] = {}

    @property
    def by_tiles(self) -> bool:
        """Whether a grain is a whole tile, whose scores are interpolated, and no node of the tree less."""
        return not self.schedule.every_phase or self.schedule.output_stride > 1

    def is_wanted(self, axis: int, offset: int, stride: int) -> bool:
        """Whether nodes at that offset along an axis, of a level with this stride, have pixels of the lattice
        whose scores are computed."""
        common = min(stride, self.schedule.output_stride)
        return (offset - self.schedule.origin[axis]) % common == 0

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.tree.levels

    def stride(self, level: int) -> Pair:
        """Pixels from one element of a level's lattice to the next; -1 is the image."""
        return self.levels[level].stride if level >= 0 else (1, 1)

    def demands_along(self, axis: int, tile: Span) -> dict[str, Span]:
        """Which part of the image each exported tensor must cover along one axis, for a tile: see
        `cost.demands`. Tiles of a grid share their rows and columns."""
        if (axis, tile) not in self._demands:
            self._demands[axis, tile] = demands(self.tree, axis, self._outputs(axis, tile))
        return self._demands[axis, tile]

    def demands(self, tile: Region) -> tuple[dict[str, Span], dict[str, Span]]:
        return self.demands_along(0, tile[0]), self.demands_along(1, tile[1])

    def part(self, tile: Region) -> Region:
        """The part of the image that a tile is computed from: the tile and its halo, inside the image."""
        rows, columns = (needed[IMAGE] for needed in self.demands(tile))
        return rows.clip(self.schedule.size[0]), columns.clip(self.schedule.size[1])

    def lattice(self, level: int, offset: Pair = (0, 0)) -> Pair:
        """(h, w) of a node."""
        (height, width), (rows, columns) = self.schedule.size, self.stride(level)
        return lattice_length(height, offset[0], rows), lattice_length(width, offset[1], columns)

    def region(self, level: int, tile: Region, offset: Pair = (0, 0)) -> Region:
        """What a node must export for a tile, in elements of its lattice."""
        name, stride, lengths = self.levels[level].exports[0], self.stride(level), self.lattice(level, offset)
        rows, columns = (
            node_span(needed[name], stride[a], lengths[a]) for a, needed in enumerate(self.demands(tile))
        )
        return rows, columns

    def _outputs(self, axis: int, tile: Span) -> dict[str, Span]:
        """The part of each output, in image pixels, that a tile needs along one axis.

        Dense: the tile. Otherwise what bilinear interpolation to full resolution reads, with a margin that
        covers both interpolations of FCN8s; of a coarser lattice its points on both sides.
        """
        if not self.by_tiles:
            return dict.fromkeys(self.tree.outputs, tile)
        margin = self.schedule.output_stride if self.schedule.every_phase else 2 * self.tree.stride[axis]
        length = self.schedule.size[axis]
        needed = Span(max(0, tile.start - margin), min(length, tile.stop + margin))
        return dict.fromkeys(self.tree.outputs, needed)
