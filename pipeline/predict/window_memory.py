"""How much memory a window takes, predicted: what a worker does with it is done on tensors without data.

Every tensor is counted while it lives, whatever the network. A network is run so once for each size of its
input; resizing, which differs from image to image, each time.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fullres.models.count import counted_macs
from fullres.models.full_resolution.steps import Pair
from fullres.models.memory import LiveBytes, on_meta
from fullres.ops.errors import NetworkError
from fullres.ops.normalisation import IMAGENET, Normalisation
from fullres.pipeline.predict.schedule import Precision, check_budget
from fullres.pipeline.predict.windows import Average, WindowGrain, WindowPlan, WindowPredictor, WindowSchedule


class WindowCosts:
    """Predicts for one network in one precision; `attention` as in `WindowPredictor`."""

    def __init__(
        self,
        network: nn.Module,
        precision: Precision,
        attention: tuple[int, ...] = (),
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        device = torch.device("meta")
        self._predictor = _Predictor(on_meta(network), device, precision, attention, normalisation)

    def macs(self, height: int, width: int) -> int:
        """The network's multiply-adds for one input of this size."""
        return self.cost(height, width).macs

    def cost(self, height: int, width: int) -> "Cost":
        """Of the network on one input of this size. Raises NetworkError where it needs a larger one."""
        return self._predictor.cost(height, width)

    def fit(self, plan: WindowPlan, budget: int) -> WindowPlan:
        """The plan with its predicted peak. Raises BudgetError where it does not fit `budget` bytes."""
        largest: dict[Pair, WindowGrain] = {}  # of each scale, as its windows differ in what they reach
        for grain in plan.grains:
            if grain.scaled not in largest or _reached(grain) > _reached(largest[grain.scaled]):
                largest[grain.scaled] = grain
        peaks = {scaled: self.peak(plan.schedule, grain) for scaled, grain in largest.items()}
        costliest = max(peaks, key=lambda scaled: peaks[scaled])
        height, width = plan.schedule.spec.input_size(costliest)
        what = f"a window of {width}x{height} pixels with this network in this precision"
        check_budget(peaks[costliest], budget, f"{what}; a smaller window needs less")
        return replace(plan, schedule=replace(plan.schedule, peak_bytes=peaks[costliest]))

    def peak(self, schedule: WindowSchedule, grain: WindowGrain) -> int:
        """Bytes at the worst moment of a grain, beyond the network's own."""
        height, width = schedule.size
        channels = self._predictor.normalisation.channels
        image = torch.empty(height, width, channels, dtype=torch.uint8, device="meta")
        memory = self._predictor.memory = LiveBytes()
        with torch.no_grad(), memory:
            share = self._predictor.share(schedule, grain, image)
            memory.spike(share.nbytes)  # its copy for whoever merges
        return memory.peak + grain.footprint[0].length * width * channels


@dataclass(frozen=True)
class Cost:
    """Of the network on one input: multiply-adds, bytes at the worst moment, shape of what it returns."""

    macs: int
    peak: int
    shape: torch.Size


class _Predictor(WindowPredictor):
    """Runs its network once for each size of input, and remembers what that takes."""

    memory: LiveBytes

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cost = cache(self._run)

    def _run(self, height: int, width: int) -> Cost:
        x = torch.empty(1, self.normalisation.channels, height, width, dtype=self.dtype, device=self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, LiveBytes() as memory:
            try:
                shape = super().channels(x).shape
            except (RuntimeError, ValueError) as error:  # what torch raises where a layer has no output
                reason = str(error).partition("\n")[0]
                raise NetworkError(f"the network can't read {width}x{height} pixels: {reason}") from error
        return Cost(counted_macs(counter), memory.peak, shape)

    def channels(self, x: Tensor, average: Average = "probabilities") -> Tensor:
        cost = self.cost(*x.shape[-2:])
        self.memory.spike(cost.peak)
        return torch.empty(cost.shape, device=self.device)


def _reached(grain: WindowGrain) -> int:
    return grain.footprint[0].length * grain.footprint[1].length
