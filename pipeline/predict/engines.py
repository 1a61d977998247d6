"""The two ways to label all of an image, as whoever runs them sees them: exact split-merge, and sliding
windows.

An engine says what to compute (`plan`), what of the image that takes (`parts`), makes a network ready on a
device (`predictor`), and puts results together (`merger`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.split_merge import HasFullResolution
from fullres.models.full_resolution.steps import Pair
from fullres.ops.errors import NetworkError
from fullres.ops.normalisation import Normalisation, normalisation_of
from fullres.pipeline.predict import windows
from fullres.pipeline.predict.bound import BoundTree, Precision
from fullres.pipeline.predict.execute import Predictor, place
from fullres.pipeline.predict.plan import Grain, Plan, plan_image
from fullres.pipeline.predict.window_memory import WindowCosts


@dataclass(frozen=True)
class Resources:
    """What there is to run on. `memory_budget`: bytes a worker; `device`: "cpu" or "cuda"; `images` of this
    size in all."""

    workers: int
    memory_budget: int
    precision: Precision
    device: str
    images: int = 1


class GrainOfWork(Protocol):
    """What a worker is given: a number in its plan, the tile that it is computed from, its multiply-adds."""

    @property
    def index(self) -> int: ...
    @property
    def tile(self) -> int: ...
    @property
    def macs(self) -> int: ...


class PlanOfWork(Protocol):
    """All grains of an image, and what a runner must know beside one of them."""

    @property
    def grains(self) -> Sequence[GrainOfWork]: ...
    @property
    def schedule(self) -> Any: ...


class Runner(Protocol):
    """A network ready on one device."""

    def run(self, schedule: Any, grain: Any, part: Any, scores: bool) -> Any:
        """The result of a grain, computed from its tile's part: what a `Merger` takes. It has `nbytes`."""
        ...


class Merger(Protocol):
    """Takes grains' results in any order. `result`: H x W uint8 class ids or classes x H x W scores, or
    `windows.Guided`, or `adaptive.FromPoints`."""

    result: Any

    def add(self, grain: Any, part: Any) -> bool:
        """Whether `result` is complete now."""
        ...


class Engine(Protocol):
    """A network and a way to run it on images, which have `normalisation.channels` channels. It can be sent
    to other processes. Plans that it takes are those that it makes."""

    normalisation: Normalisation

    def plan(self, size: Pair, resources: Resources, scores: bool) -> PlanOfWork:
        """Raises BudgetError, and NetworkError or ImageError where the network needs a larger image."""
        ...

    def classes(self, size: Pair, precision: Precision) -> int:
        """How many scores a pixel of an image has."""
        ...

    def parts(self, plan: Any, image: np.ndarray) -> Sequence[Any]:
        """Of each tile what its grains are computed from, which has `nbytes`: pixels of the image, H x W x
        channels uint8, not copied where they need not be. Called in several threads at once."""
        ...

    def merger(self, plan: Any, scores: bool) -> Merger: ...

    def predictor(self, device: torch.device, precision: Precision) -> Runner: ...


def engine_for(
    network: nn.Module,
    spec: windows.WindowSpec | None = None,
    attention: tuple[int, ...] = (),
    normalisation: Normalisation | None = None,
    output_stride: int = 1,
) -> "Engine":
    """Split-merge for the networks that have it, unless windows are asked for; else windows, of the whole
    image if nothing else is asked for. `output_stride`: see `SplitMerge`. Raises NetworkError."""
    if spec is None and isinstance(network, HasFullResolution):
        return SplitMerge(network, normalisation, output_stride)
    if output_stride != 1:
        raise NetworkError(f"output stride is {output_stride}: of split-merge, which is without windows")
    return Windows(network, spec or windows.WindowSpec(), attention, normalisation)


def label_image(
    engine: Engine, runner: Runner, image: np.ndarray, resources: Resources, scores: bool = False
) -> Any:
    """The result of one image, all of its grains computed one after the other in this process by `runner`,
    which `engine` made. Raises BudgetError."""
    plan = engine.plan((image.shape[0], image.shape[1]), resources, scores)
    parts, merger = engine.parts(plan, image), engine.merger(plan, scores)
    for grain in plan.grains:
        merger.add(grain, runner.run(plan.schedule, grain, parts[grain.tile], scores))
    return merger.result


class SplitMerge:
    """Every pixel as one device of any size would have it, within a memory budget. Plans, and the workers to
    which it is sent, use this one tree. With an `output_stride` above 1 only the pixels of one lattice of
    that stride are computed so, at a fraction of the cost, and the others' scores interpolated."""

    def __init__(
        self,
        network: HasFullResolution,
        normalisation: Normalisation | None = None,
        output_stride: int = 1,
    ) -> None:
        self.normalisation = normalisation_of(network, normalisation)
        self.tree = inference_form(network.full_resolution()).with_output_stride(output_stride)
        if self.tree.in_channels != self.normalisation.channels:
            raise NetworkError(
                f"the network reads {self.tree.in_channels} channels, its normalisation is of "
                f"{self.normalisation.channels}: give a mean and a deviation of each"
            )

    def plan(self, size: Pair, resources: Resources, scores: bool) -> Plan:
        return plan_image(self.tree, size, **vars(resources), scores=scores)

    def classes(self, size: Pair, precision: Precision) -> int:
        return self.tree.channels[0]

    def parts(self, plan: Plan, image: np.ndarray) -> list[np.ndarray]:
        bound = BoundTree(self.tree, plan.schedule)
        regions = [bound.part(tile) for tile in plan.schedule.tiles]
        return [image[y.start : y.stop, x.start : x.stop] for y, x in regions]

    def merger(self, plan: Plan, scores: bool) -> Merger:
        return _TreeMerger(BoundTree(self.tree, plan.schedule), len(plan.grains))

    def predictor(self, device: torch.device, precision: Precision) -> Predictor:
        return Predictor(self.tree, device, precision, self.normalisation)


@dataclass
class _TreeMerger:
    bound: BoundTree
    left: int
    result: np.ndarray | None = None

    def add(self, grain: Grain, part: np.ndarray) -> bool:
        if self.result is None:
            self.result = np.empty((*part.shape[:-2], *self.bound.schedule.size), part.dtype)
        place(self.result, self.bound, grain, part)
        self.left -= 1
        return self.left == 0


class Windows:
    """Sliding windows, scales and mirror images of any network. `network` returns logits N x classes x H x W;
    `attention`: classes of which an SPGNet's guided attention is wanted too."""

    def __init__(
        self,
        network: nn.Module,
        spec: windows.WindowSpec,
        attention: tuple[int, ...] = (),
        normalisation: Normalisation | None = None,
    ) -> None:
        self.network, self.spec, self.attention = network, spec, attention
        self.normalisation = normalisation_of(network, normalisation)
        self._costs: dict[Precision, WindowCosts] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Windows, (self.network, self.spec, self.attention, self.normalisation)

    def plan(self, size: Pair, resources: Resources, scores: bool) -> windows.WindowPlan:
        costs = self._of(resources.precision)
        return costs.fit(windows.plan_windows(size, self.spec, costs.macs), resources.memory_budget)

    def classes(self, size: Pair, precision: Precision) -> int:
        read = self.spec.input_size(self.spec.scaled(size, self.spec.scales[0]))
        return self._of(precision).cost(*read).shape[1] - len(self.attention)

    def _of(self, precision: Precision) -> WindowCosts:
        if precision not in self._costs:
            self._costs[precision] = WindowCosts(self.network, precision, self.attention, self.normalisation)
        return self._costs[precision]

    def parts(self, plan: windows.WindowPlan, image: np.ndarray) -> list[np.ndarray]:
        return [image]

    def merger(self, plan: windows.WindowPlan, scores: bool) -> Merger:
        return windows.Merger(plan, scores, len(self.attention))

    def predictor(self, device: torch.device, precision: Precision) -> windows.WindowPredictor:
        return windows.WindowPredictor(self.network, device, precision, self.attention, self.normalisation)
