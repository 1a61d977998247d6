"""Sliding windows, scales and mirror images, for networks that have no full-resolution form.

As PSPNet's code tests (hszhao/semseg): the image is resized to each scale, cut into windows of one size that
overlap, the last of a row or column pulled inside; class probabilities (softmax) of a window and of its
mirror image are averaged, overlapping windows averaged, resized to the image and averaged over the scales.
Where a scaled image is smaller than the window it is padded with the mean colour on both sides.

A *grain* is one window at one scale. Resizing is linear, so each grain's share of the result is computed
where its window is, and shares are added in the grains' order: the bytes of the result do not depend on who
computed what. Grains are ordered by the first row of the image that they reach; rows that no later grain
reaches are labelled and let go, so a `Merger` holds a band of the image, about as high as a window is at the
smallest scale.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.geometry import Span
from fullres.models.levels import Region
from fullres.models.trace import Pair
from fullres.ops.resample import bilinear_reached, bilinear_reads, bilinear_window
from fullres.pipeline.execute import DTYPES
from fullres.pipeline.schedule import Precision
from fullres.pipeline.transforms import normalise

_BAND = 64  # rows that are labelled together


class WindowError(ValueError):
    """Windows that an image cannot be cut into; one line."""


@dataclass(frozen=True)
class WindowSpec:
    """How images are cut. `window`: side of the square windows in pixels of the scaled image, None for the
    whole image. `stride`: between windows, None for two thirds of one (rounded up)."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    stride: int | None = None

    def spans(self, length: int) -> list[Span]:
        """Where the windows of an axis of a scaled image lie: the last is pulled inside. Where the axis is
        shorter than a window, one lies on all of it."""
        window = min(self.window or length, length)
        stride = self.stride or ceil(window * 2 / 3)
        starts = (min(i * stride, length - window) for i in range(ceil((length - window) / stride) + 1))
        return [Span(start, start + window) for start in starts]

    def cover(self, length: int) -> Tensor:
        """How many windows there are on each element of such an axis."""
        counts = torch.zeros(length)
        for start, stop in self.spans(length):
            counts[start:stop] += 1
        return counts


@dataclass(frozen=True)
class WindowGrain:
    """One window: `region` of the image resized to `scaled`, whose share of the result lies in `reach` of the
    image. `tile` is the part of the image that a worker is sent: always the whole."""

    index: int
    scaled: Pair
    region: Region
    reach: Region
    macs: int
    tile: int = 0


@dataclass(frozen=True)
class WindowSchedule:
    """What a worker must know beside the grain."""

    size: Pair
    spec: WindowSpec
    peak_bytes: int = 0  # not predicted


@dataclass(frozen=True)
class WindowPlan:
    """What to run for one image; plain values only."""

    schedule: WindowSchedule
    grains: tuple[WindowGrain, ...]


def plan_windows(
    size: Pair, spec: WindowSpec, count_macs: Callable[[int, int], int] = lambda height, width: 0
) -> WindowPlan:
    """The grains of an image of `size` (H, W). `count_macs`: the network's multiply-adds for an input of a
    height and width. Raises WindowError."""
    if spec.window is not None and spec.window > min(size):
        raise WindowError(
            f"--window is {spec.window}: at most {min(size)}, the shorter side of an image of "
            f"{size[1]}x{size[0]}"
        )
    found = []
    for order, scale in enumerate(spec.scales):
        scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        window = scaled if spec.window is None else (spec.window, spec.window)
        macs = count_macs(*window) * (2 if spec.flip else 1)
        rows, columns = (spec.spans(length) for length in scaled)
        reached = [
            [Span(*bilinear_reached(*s, scaled[a], size[a])) for s in (rows, columns)[a]] for a in (0, 1)
        ]
        for (row, down), (column, right) in product(
            zip(rows, reached[0], strict=True), zip(columns, reached[1], strict=True)
        ):
            found.append((down.start, order, column.start, scaled, (row, column), (down, right), macs))
    found.sort(key=lambda grain: grain[:3])
    grains = tuple(WindowGrain(i, *grain[3:]) for i, grain in enumerate(found))
    return WindowPlan(WindowSchedule(size, spec), grains)


class WindowPredictor:
    """A network ready for windows on one device. It returns logits N x classes x H x W."""

    def __init__(self, network: nn.Module, device: torch.device, precision: Precision) -> None:
        self.device, self.dtype = device, DTYPES[precision]
        self.network = network.eval().to(device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.requires_grad_(False)

    @torch.inference_mode()
    def run(
        self, schedule: WindowSchedule, grain: WindowGrain, image: np.ndarray, scores: bool = False
    ) -> np.ndarray:
        """A grain's share of the sum of probabilities: classes x h x w float32 on its reach (float16 if the
        precision is bf16). image: H x W x 3 uint8."""
        part = self._resized(image, grain)
        window = schedule.spec.window or 0
        missing = [max(0, window - part.shape[-2 + a]) for a in (0, 1)]
        top, left = missing[0] // 2, missing[1] // 2
        x = F.pad(part, (left, missing[1] - left, top, missing[0] - top)).to(self.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        probability = self.network(x).float().softmax(1)
        if schedule.spec.flip:
            mirrored = self.network(x.flip(-1)).float().softmax(1).flip(-1)
            probability = (probability + mirrored) / 2
        probability = probability[..., top : top + part.shape[-2], left : left + part.shape[-1]]
        share = self._share(schedule, grain, probability)[0]
        dtype = torch.float16 if self.dtype == torch.bfloat16 else torch.float32
        return share.to(dtype).cpu().numpy()

    def _resized(self, image: np.ndarray, grain: WindowGrain) -> Tensor:
        """The grain's window of the resized and normalised image, 1 x 3 x h x w fp32."""
        size = (image.shape[0], image.shape[1])
        reads = [bilinear_reads(*grain.region[a], size[a], grain.scaled[a]) for a in (0, 1)]
        (top, bottom), (left, right) = reads
        part = torch.from_numpy(np.ascontiguousarray(image[top:bottom, left:right])).to(self.device)
        x = part.permute(2, 0, 1)[None].float()
        x = bilinear_window(x, (top, left), size, grain.scaled, *grain.region)
        return normalise(x.permute(0, 2, 3, 1), torch.float32)

    def _share(self, schedule: WindowSchedule, grain: WindowGrain, probability: Tensor) -> Tensor:
        """Divided by how many windows and scales there are at each place, on the image's own pixels."""
        spec = schedule.spec
        for a in (0, 1):
            counts = spec.cover(grain.scaled[a])[slice(*grain.region[a])].to(self.device)
            probability = probability / (counts[:, None] if a == 0 else counts)
        probability = probability / len(spec.scales)
        if grain.scaled == schedule.size:
            return probability
        inner = [[int(s.start > 0), int(s.stop < n)] for s, n in zip(grain.region, grain.scaled, strict=True)]
        padded = F.pad(probability, (*inner[1], *inner[0]))  # beyond the window its share is nothing
        origin = (grain.region[0].start - inner[0][0], grain.region[1].start - inner[1][0])
        return bilinear_window(padded, origin, grain.scaled, schedule.size, *grain.reach)


@dataclass
class Merger:
    """Adds up grains' shares, in their order whatever the order in which they come.

    `result` is complete when `add` has returned true: H x W uint8 class ids, or with `scores` the mean
    probabilities, classes x H x W.
    """

    plan: WindowPlan
    scores: bool
    result: np.ndarray | None = None
    _early: dict[int, np.ndarray] = field(default_factory=dict)
    _next: int = 0
    _bands: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, grain: WindowGrain, share: np.ndarray) -> bool:
        self._early[grain.index] = share
        while self._next in self._early:
            self._add(self.plan.grains[self._next], self._early.pop(self._next))
            self._next += 1
        return self._next == len(self.plan.grains)

    def _add(self, grain: WindowGrain, share: np.ndarray) -> None:
        height, width = self.plan.schedule.size
        if self.result is None:
            shape: tuple[int, ...] = (height, width)
            self.result = (
                np.empty((len(share), *shape), share.dtype) if self.scores else np.empty(shape, np.uint8)
            )
        (top, bottom), (left, right) = grain.reach
        for band in range(top // _BAND, ceil(bottom / _BAND)):
            if band not in self._bands:
                rows = min(_BAND, height - band * _BAND)
                self._bands[band] = np.zeros((len(share), rows, width), np.float32)
            first, last = max(top, band * _BAND), min(bottom, (band + 1) * _BAND)
            total = self._bands[band][:, first - band * _BAND : last - band * _BAND, left:right]
            total += share[:, first - top : last - top]
        is_last = grain.index + 1 == len(self.plan.grains)
        reached = height if is_last else self.plan.grains[grain.index + 1].reach[0].start
        for band in [b for b in self._bands if min(height, (b + 1) * _BAND) <= reached]:
            self._let_go(band)

    def _let_go(self, band: int) -> None:
        total = self._bands.pop(band)
        rows = slice(band * _BAND, band * _BAND + total.shape[1])
        assert self.result is not None
        if self.scores:
            self.result[:, rows] = total
        else:
            self.result[rows] = total.argmax(0)


def predict_windows(
    predictor: WindowPredictor, plan: WindowPlan, image: np.ndarray, scores: bool = False
) -> np.ndarray:
    """The whole plan in this process. image: H x W x 3 uint8, of the plan's size."""
    merger = Merger(plan, scores)
    for grain in plan.grains:
        merger.add(grain, predictor.run(plan.schedule, grain, image, scores))
    assert merger.result is not None
    return merger.result
