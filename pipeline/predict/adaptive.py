"""Labelling an image from few of its pixels ("Learning Downsampling Near Semantic Boundaries", Fig. 2): it is
sampled at some points, what was sampled is labelled as if it were an image, and the scores are interpolated
back to every pixel.

- Where the points are says a `Sampler`: near semantic boundaries, or on a uniform grid, which is the paper's
  baseline; both take the same way.
- How the sampled image is labelled says another engine: one look of the network, windows and scales, or
  split-merge within the memory budget where the points are many.
- Scores are interpolated and compared after, as those of a network are enlarged everywhere.
- Whoever has the image samples it, on its CPU cores while workers compute: what goes to them is the sampled
  image, a hundredth of the bytes.
- Grains are those of the sampled image. Where it is one, its worker interpolates and what comes back are
  classes; else whoever merges does.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fullres.models.downsampler import Downsampler
from fullres.models.full_resolution.split_merge import HasFullResolution
from fullres.models.full_resolution.steps import Pair
from fullres.ops.errors import NetworkError
from fullres.ops.interpolate import (
    interpolate_labels,
    interpolate_scores,
    interpolate_tensor,
    interpolate_tensor_labels,
)
from fullres.ops.sampling import sample
from fullres.pipeline.data.images import ImageError
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.engines import (
    Engine,
    GrainOfWork,
    Merger,
    PlanOfWork,
    Resources,
    Runner,
    engine_for,
)
from fullres.pipeline.predict.sampler import Sampler
from fullres.pipeline.predict.schedule import BudgetError, check_budget, check_classes
from fullres.pipeline.predict.window_memory import WindowCosts
from fullres.pipeline.predict.windows import WindowSpec

_CPU = torch.device("cpu")
# What `--gflops` chooses from: sides of this step, up to this side.
_STEP, _LARGEST = 8, 4096


class FromPoints(NamedTuple):
    """A result with how it came about. `result`: H x W uint8 class ids, or classes x H x W scores. `phi`: the
    sampling tensor, h x w x 2. `at_points`: h x w uint16, the classes at the points."""

    result: np.ndarray
    phi: np.ndarray
    at_points: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.result.nbytes + self.phi.nbytes + self.at_points.nbytes


class Sampled(NamedTuple):
    """What the inner engine computes a tile's grains from, or its scores of a grain, and what the downsampler
    said of the image (`Sampler.grid`)."""

    inner: Any
    grid: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """On its way to a worker or from one."""
        return self.inner.nbytes + (0 if self.grid is None else self.grid.nbytes)


@dataclass(frozen=True)
class AdaptiveGrain:
    """A grain of the sampled image. `macs`: the first one's with the downsampler's, which runs once."""

    index: int
    macs: int
    inner: GrainOfWork
    tile: int


@dataclass(frozen=True)
class AdaptiveSchedule:
    """What a worker must know beside the grain. `size`: of the image. `inner`: the schedule of the sampled
    image. `alone`: its whole plan, if that is one grain. `peak_bytes`: predicted, beyond the networks' own
    memory."""

    size: Pair
    inner: Any
    alone: PlanOfWork | None
    peak_bytes: int


@dataclass(frozen=True)
class AdaptivePlan:
    """`inner`: of the sampled image."""

    schedule: AdaptiveSchedule
    grains: tuple[AdaptiveGrain, ...]
    inner: PlanOfWork


class Adaptive:
    """An `Engine` around another one, which labels what the sampler reads. With `show_points` results are
    `FromPoints`. Raises NetworkError for a downsampler before a network of other than RGB images."""

    def __init__(self, inner: Engine, sampler: Sampler, show_points: bool = False) -> None:
        self.inner, self.sampler, self.show_points = inner, sampler, show_points
        self.normalisation = inner.normalisation
        if sampler.downsampler is not None and self.normalisation.channels != 3:
            raise NetworkError(
                f"the network reads {self.normalisation.channels} channels: a downsampler reads 3, RGB"
            )
        self._plans: dict[Resources, PlanOfWork] = {}  # of what is sampled, whose size is always the same

    def __reduce__(self) -> tuple[Any, ...]:
        return Adaptive, (self.inner, self.sampler, self.show_points)

    def with_size(self, size: Pair) -> "Adaptive":
        return Adaptive(self.inner, replace(self.sampler, size=size), self.show_points)

    def plan(self, size: Pair, resources: Resources, scores: bool) -> AdaptivePlan:
        """Raises ImageError where an image has fewer pixels than there are points."""
        down, across = self.sampler.size
        if down * across > size[0] * size[1]:
            raise ImageError(
                f"{size[1]}x{size[0]} pixels are fewer than the {across}x{down} to label it from"
            )
        classes = self.inner.classes(self.sampler.size, resources.precision)
        # The image is there. What is sampled from it with its scores, and the result with its copy for
        # whoever merges:
        own = down * across * (8 * classes + 64) + 2 * size[0] * size[1] * (4 * classes if scores else 1)
        budget = resources.memory_budget
        where = self.sampler.downsampler
        macs = 0 if where is None else _macs(where)
        check_budget(own, budget, f"{across}x{down} points of {size[1]}x{size[0]} pixels")
        taken = -(-own >> 20)  # whole MiB, as budgets are said
        try:
            rest = replace(resources, memory_budget=budget - (taken << 20))
            if rest not in self._plans:
                self._plans[rest] = self.inner.plan(self.sampler.size, rest, True)
        except BudgetError as error:
            said = f"{taken} of {budget >> 20} MiB are for the points and the result"
            raise BudgetError(f"{said}, of the rest: {error}") from error
        inner = self._plans[rest]
        peak = inner.schedule.peak_bytes + own
        alone = inner if len(inner.grains) == 1 else None
        return AdaptivePlan(
            AdaptiveSchedule(size, inner.schedule, alone, peak),
            tuple(
                AdaptiveGrain(grain.index, grain.macs + macs * (i == 0), grain, grain.tile)
                for i, grain in enumerate(inner.grains)
            ),
            inner,
        )

    def classes(self, size: Pair, precision: Precision) -> int:
        return self.inner.classes(self.sampler.size, precision)

    def parts(self, plan: AdaptivePlan, image: np.ndarray) -> list[Sampled]:
        grid = self.sampler.grid(image)
        sampled = sample(image, self.sampler.points(grid))
        return [Sampled(part, grid) for part in self.inner.parts(plan.inner, sampled)]

    def merger(self, plan: AdaptivePlan, scores: bool) -> Merger:
        return _Interpolated(self, self.inner.merger(plan.inner, True), plan.schedule, scores)

    def predictor(self, device: torch.device, precision: Precision) -> "AdaptivePredictor":
        return AdaptivePredictor(self, device, precision)

    def from_points(
        self,
        values: np.ndarray,
        grid: np.ndarray | None,
        size: Pair,
        scores: bool,
        device: torch.device = _CPU,
    ) -> np.ndarray | FromPoints:
        """The result for an image of this size. values: the points' scores, classes x h x w float32."""
        check_classes(len(values), scores)
        phi = self.sampler.points(grid)
        if device.type == "cpu":
            result = (interpolate_scores if scores else interpolate_labels)(values, phi, size)
        else:
            there, where = (torch.from_numpy(array)[None].to(device) for array in (values, phi))
            back = interpolate_tensor if scores else interpolate_tensor_labels
            result = back(there, where, size)[0].cpu().numpy()
        return FromPoints(result, phi, values.argmax(0).astype(np.uint16)) if self.show_points else result


def adaptive_engine(
    network: nn.Module,
    sampler: Sampler,
    spec: WindowSpec | None = None,
    output_stride: int = 1,
    show_points: bool = False,
) -> Adaptive:
    """What was sampled is labelled as `engine_for` labels an image, and logits interpolated where no windows
    are asked for. Raises NetworkError."""
    if spec is None and not isinstance(network, HasFullResolution):
        spec = WindowSpec(average="logits")
    return Adaptive(engine_for(network, spec, output_stride=output_stride), sampler, show_points)


def largest_size(engine: Adaptive, giga_operations: float, resources: Resources) -> Pair | None:
    """The most points, as many a row as rows, that an image is labelled from with at most so many billion
    operations, two a multiply-add, and within the memory budget: a multiple of 8 a side up to 4096. None:
    not even 8."""

    def fits(side: int) -> bool:
        try:
            plan = engine.with_size((side, side)).plan((side, side), resources, False)
        except BudgetError:
            return False
        return 2e-9 * sum(grain.macs for grain in plan.grains) <= giga_operations

    low, high = 0, _LARGEST // _STEP + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _STEP) else (low, middle)
    return (low * _STEP, low * _STEP) if low else None


@lru_cache(2)
def _macs(downsampler: Downsampler) -> int:
    return WindowCosts(_Flat(downsampler), "fp32").macs(*downsampler.small)


class _Flat(nn.Module):
    """A downsampler whose tensor looks like logits."""

    def __init__(self, downsampler: Downsampler) -> None:
        super().__init__()
        self.downsampler = downsampler

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.downsampler(image).movedim(-1, 1)


@dataclass
class _Interpolated:
    """A `Merger` of grains of the sampled image, or of the one with the result."""

    engine: Adaptive
    inner: Merger
    schedule: AdaptiveSchedule
    scores: bool
    result: Any = None

    def add(self, grain: AdaptiveGrain, part: Any) -> bool:
        if self.schedule.alone is not None:
            self.result = part
        elif self.inner.add(grain.inner, part.inner):
            values = np.asarray(self.inner.result, np.float32)
            self.result = self.engine.from_points(values, part.grid, self.schedule.size, self.scores)
        return self.result is not None


class AdaptivePredictor:
    """An engine's network ready on one device."""

    def __init__(self, engine: Adaptive, device: torch.device, precision: Precision) -> None:
        self.engine, self.device = engine, device
        self.runner: Runner = engine.inner.predictor(device, precision)

    def run(
        self, schedule: AdaptiveSchedule, grain: AdaptiveGrain, part: Sampled, scores: bool = False
    ) -> Any:
        """The result, or of a grain among several its share of the sampled image's scores, as `Sampled`."""
        found = self.runner.run(schedule.inner, grain.inner, part.inner, True)
        if schedule.alone is None:
            return Sampled(found, part.grid)
        merger = self.engine.inner.merger(schedule.alone, True)
        merger.add(grain.inner, found)
        values = np.asarray(merger.result, np.float32)
        return self.engine.from_points(values, part.grid, schedule.size, scores, self.device)
