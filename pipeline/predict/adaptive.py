"""Labelling an image from few of its pixels ("Learning Downsampling Near Semantic Boundaries", Fig. 2): it is
sampled at some points, a network labels what was sampled as if it were an image, and its logits are
interpolated back to every pixel.

- Where the points are says a `Sampler`: near semantic boundaries, or on a uniform grid, which is the paper's
  baseline; both take the same way.
- Logits are interpolated and compared after, as scores of a network are enlarged everywhere.
- An image is one grain. All three steps are done by the worker that has it: what comes back are classes.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fullres.models.downsampler import Downsampler
from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.levels import Region
from fullres.models.full_resolution.steps import Pair
from fullres.ops.convolution import compute_exactly
from fullres.ops.interpolate import (
    interpolate_labels,
    interpolate_scores,
    interpolate_tensor,
    interpolate_tensor_labels,
)
from fullres.ops.normalisation import Normalisation, normalisation_of, normalise
from fullres.ops.sampling import sample
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.engines import Merger, Resources
from fullres.pipeline.predict.execute import DTYPES
from fullres.pipeline.predict.sampler import Sampler
from fullres.pipeline.predict.schedule import check_budget, check_classes
from fullres.pipeline.predict.window_memory import WindowCosts


@dataclass(frozen=True)
class AdaptiveGrain:
    """A whole image. `macs`: of the network and the downsampler."""

    macs: int
    index: int = 0
    tile: int = 0


@dataclass(frozen=True)
class AdaptiveSchedule:
    """What a worker must know beside the grain. `size`: of the image. `peak_bytes`: predicted, beyond the
    networks' own memory."""

    size: Pair
    peak_bytes: int


@dataclass(frozen=True)
class AdaptivePlan:
    """Plain values only."""

    schedule: AdaptiveSchedule
    grains: tuple[AdaptiveGrain, ...]


class Adaptive:
    """An `Engine`: `network` returns logits N x classes x h x w of what the sampler reads."""

    def __init__(
        self, network: nn.Module, sampler: Sampler, normalisation: Normalisation | None = None
    ) -> None:
        self.network, self.sampler = network, sampler
        self.normalisation = normalisation_of(network, normalisation)
        self._costs: dict[Precision, tuple[int, int, int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Adaptive, (self.network, self.sampler, self.normalisation)

    def plan(self, size: Pair, resources: Resources, scores: bool) -> AdaptivePlan:
        macs, peak, classes = self._cost(resources.precision)
        height, width = size
        # The image is there. What is sampled from it, and the result with its copy for whoever merges:
        points = self.sampler.size[0] * self.sampler.size[1]
        result = height * width * (4 * classes if scores else 1)
        peak += points * (8 * classes + 64) + 2 * result
        across, down = self.sampler.size[1], self.sampler.size[0]
        what = f"{across}x{down} points with this network in this precision"
        check_budget(peak, resources.memory_budget, what)
        return AdaptivePlan(AdaptiveSchedule(size, peak), (AdaptiveGrain(macs),))

    def parts(self, plan: AdaptivePlan) -> list[Region]:
        height, width = plan.schedule.size
        return [(Span(0, height), Span(0, width))]

    def merger(self, plan: AdaptivePlan, scores: bool) -> Merger:
        return _Whole()

    def predictor(self, device: torch.device, precision: Precision) -> "AdaptivePredictor":
        return AdaptivePredictor(self.network, self.sampler, device, precision, self.normalisation)

    def _cost(self, precision: Precision) -> tuple[int, int, int]:
        """Multiply-adds, bytes at the worst moment, and how many classes there are."""
        if precision not in self._costs:
            cost = WindowCosts(self.network, precision, (), self.normalisation).cost(*self.sampler.size)
            macs, peak = cost.macs, cost.peak
            if (downsampler := self.sampler.downsampler) is not None:
                small = WindowCosts(_Flat(downsampler), "fp32").cost(*downsampler.small)
                macs, peak = macs + small.macs, max(peak, small.peak)
            self._costs[precision] = macs, peak, cost.shape[1]
        return self._costs[precision]


class _Flat(nn.Module):
    """A downsampler whose tensor looks like logits."""

    def __init__(self, downsampler: Downsampler) -> None:
        super().__init__()
        self.downsampler = downsampler

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.downsampler(image).movedim(-1, 1)


@dataclass
class _Whole:
    """A `Merger` of one grain."""

    result: Any = None

    def add(self, grain: AdaptiveGrain, part: np.ndarray) -> bool:
        self.result = part
        return True


class AdaptivePredictor:
    """A network and where it reads, ready on one device. The downsampler computes in fp32: coordinates of
    bf16 are pixels apart."""

    def __init__(
        self,
        network: nn.Module,
        sampler: Sampler,
        device: torch.device,
        precision: Precision,
        normalisation: Normalisation,
    ) -> None:
        self.device, self.dtype, self.normalisation = device, DTYPES[precision], normalisation
        compute_exactly(device)
        own = copy.deepcopy(network).eval().requires_grad_(False)  # the caller's stays as it is
        self.network = own.to(device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        there = sampler.downsampler
        self.sampler = Sampler(sampler.size, None if there is None else copy.deepcopy(there).to(device))

    def run(
        self, schedule: AdaptiveSchedule, grain: AdaptiveGrain, image: np.ndarray, scores: bool = False
    ) -> np.ndarray:
        """image: H x W x 3 uint8. H x W uint8 class ids, or logits, classes x H x W float32."""
        phi = self.sampler.at(image)
        logits = self.logits(sample(image, phi))
        size = (image.shape[0], image.shape[1])
        check_classes(logits.shape[1], scores)
        if self.device.type == "cpu":
            interpolate = interpolate_scores if scores else interpolate_labels
            return interpolate(logits[0].numpy(), phi, size)
        on_device = torch.from_numpy(phi)[None].to(self.device)
        back = interpolate_tensor if scores else interpolate_tensor_labels
        return back(logits, on_device, size)[0].cpu().numpy()

    @torch.inference_mode()
    def logits(self, sampled: np.ndarray) -> torch.Tensor:
        """Of what was sampled, h x w x 3 uint8: 1 x classes x h x w fp32, on the device."""
        x = normalise(torch.from_numpy(sampled).to(self.device)[None], self.dtype, self.normalisation)
        return self.network(x).float()
