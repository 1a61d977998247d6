"""Sliding windows, scales and mirror images, for networks that have no full-resolution form.

As PSPNet's code tests (hszhao/semseg): the image is resized to each scale, cut into windows of one size that
overlap, the last of a row or column pulled inside; class probabilities (softmax) of a window and of its
mirror image are averaged, overlapping windows averaged, resized to the image and averaged over the scales.
Where a scaled image is smaller than the window it is padded with the mean colour on both sides. Scales are of
the image itself, or of the size that makes its longer side `base_size`.

mmsegmentation cuts the same windows and averages logits (`average`); an image smaller than the window it
leaves as it is. It takes softmax before it averages scales and mirror images, so logits are averaged at one
scale alone.

A *grain* is one window at one scale. Resizing is linear, so each grain's share of the result is computed
where its window is, and shares are added in the grains' order: the bytes of the result do not depend on who
computed what. Grains are ordered by the first row of the image that they reach; rows that no later grain
reaches are labelled and let go, so a `Merger` holds a band of the image, about as high as a window is at the
smallest scale.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.levels import Region
from fullres.models.full_resolution.steps import Pair
from fullres.models.spgnet import stretched
from fullres.ops.convolution import compute_exactly
from fullres.ops.normalisation import IMAGENET, Normalisation, normalise
from fullres.ops.resample import bilinear_reached, bilinear_reads, bilinear_window
from fullres.pipeline.predict.bound import Precision
from fullres.pipeline.predict.execute import DTYPES
from fullres.pipeline.predict.schedule import check_classes

_BAND = 64  # rows that are labelled together

Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class WindowSpec:
    """How images are cut. `window`: side of the square windows in pixels of the scaled image, None for the
    whole image. `stride`: between windows, None for two thirds of one (rounded up). `base_size`: the longer
    side of an image at scale 1, None for its own. `average`: what is averaged where windows overlap; logits
    without other scales and mirror images."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    stride: int | None = None
    base_size: int | None = None
    average: Average = "probabilities"

    def scaled(self, size: Pair, scale: float) -> Pair:
        """The size (H, W) of an image of `size` at a scale."""
        if self.base_size is None:
            return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        longer = max(1, round(self.base_size * scale))
        # Divided before it is multiplied, as in semseg: halfway between two sizes the rounding differs.
        height, width = (max(1, round(longer / max(size) * n)) for n in size)
        return height, width

    def input_size(self, scaled: Pair) -> Pair:
        """What the network reads at once of an image of that size, with padding."""
        if self.window is None:
            return scaled
        if self.average == "probabilities":
            return self.window, self.window
        return min(self.window, scaled[0]), min(self.window, scaled[1])

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
    """One window: `region` of the image resized to `scaled`, whose share of the result has its `footprint` in
    the image. `tile` is the part of the image that a worker is sent: always the whole."""

    index: int
    scaled: Pair
    region: Region
    footprint: Region
    macs: int
    tile: int = 0


@dataclass(frozen=True)
class WindowSchedule:
    """What a worker must know beside the grain. `peak_bytes` is the predicted peak beyond the model's own
    memory (`window_memory.py`), 0 where nobody asked for it."""

    size: Pair
    spec: WindowSpec
    peak_bytes: int = 0


@dataclass(frozen=True)
class WindowPlan:
    """What to run for one image; plain values only."""

    schedule: WindowSchedule
    grains: tuple[WindowGrain, ...]


def plan_windows(
    size: Pair, spec: WindowSpec, count_macs: Callable[[int, int], int] = lambda height, width: 0
) -> WindowPlan:
    """The grains of an image of `size` (H, W). `count_macs`: the network's multiply-adds for an input of a
    height and width."""
    found = []
    for order, scale in enumerate(spec.scales):
        scaled = spec.scaled(size, scale)
        macs = count_macs(*spec.input_size(scaled)) * (2 if spec.flip else 1)
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
    """A network ready for windows on one device. It returns logits N x classes x H x W.

    `attention`: of these classes an SPGNet's guided attention is wanted too.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        precision: Precision,
        attention: tuple[int, ...] = (),
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        self.device, self.dtype, self.attention = device, DTYPES[precision], attention
        self.normalisation = normalisation
        compute_exactly(device)
        own = copy.deepcopy(network).eval().requires_grad_(False)  # the caller's stays as it is
        self.network = own.to(device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(
        self, schedule: WindowSchedule, grain: WindowGrain, image: np.ndarray, scores: bool = False
    ) -> np.ndarray:
        """A grain's share of the mean of probabilities or logits, and behind them of the attention asked for:
        channels x h x w float32 on its footprint (float16 if the precision is bf16). image: H x W x 3
        uint8."""
        return self.share(schedule, grain, torch.from_numpy(image)).cpu().numpy()

    def share(self, schedule: WindowSchedule, grain: WindowGrain, image: Tensor) -> Tensor:
        """What `run` returns, on this device."""
        x, (rows, columns) = self._input(schedule, grain, image)
        average = schedule.spec.average
        values = self.channels(x, average)
        if schedule.spec.flip:
            values.add_(self.channels(x.flip(-1), average).flip(-1)).div_(2)
        return self._onto_image(schedule, grain, values[0, :, slice(*rows), slice(*columns)])

    def channels(self, x: Tensor, average: Average = "probabilities") -> Tensor:
        """Probabilities or logits, and attention, 1 x channels x h x w fp32; a tensor of its own."""
        of = _softmax if average == "probabilities" else _logits
        if not self.attention:
            return of(self.network(x))
        logits, maps = self.network.guided(x)
        return torch.cat((of(logits), maps[:, self.attention].float()), 1)

    def _input(self, schedule: WindowSchedule, grain: WindowGrain, image: Tensor) -> tuple[Tensor, Region]:
        """What the network reads, 1 x 3 x h x w, and which part of it is image."""
        part = self._resized(image, grain)
        height, width = schedule.spec.input_size(grain.scaled)
        missing = height - part.shape[-2], width - part.shape[-1]
        top, left = missing[0] // 2, missing[1] // 2
        rows, columns = Span(top, top + part.shape[-2]), Span(left, left + part.shape[-1])
        x = F.pad(part, (left, missing[1] - left, top, missing[0] - top)).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last), (rows, columns)

    def _resized(self, image: Tensor, grain: WindowGrain) -> Tensor:
        """The grain's window of the resized and normalised image, 1 x 3 x h x w fp32."""
        size = (image.shape[0], image.shape[1])
        reads = [bilinear_reads(*grain.region[a], size[a], grain.scaled[a]) for a in (0, 1)]
        (top, bottom), (left, right) = reads
        part = image[top:bottom, left:right].contiguous().to(self.device)
        x = part.permute(2, 0, 1)[None].float()
        x = bilinear_window(x, (top, left), size, grain.scaled, *grain.region)
        return normalise(x.permute(0, 2, 3, 1), torch.float32, self.normalisation)

    def _onto_image(self, schedule: WindowSchedule, grain: WindowGrain, values: Tensor) -> Tensor:
        """channels x h x w, overwritten: divided by how many windows and scales there are at each place, and
        resized to the image's own pixels, a channel after the other as they are large."""
        spec = schedule.spec
        for a in (0, 1):
            counts = spec.cover(grain.scaled[a])[slice(*grain.region[a])].to(self.device)
            values.div_(counts[:, None] if a == 0 else counts)
        values.div_(len(spec.scales))
        shape = (len(values), grain.footprint[0].length, grain.footprint[1].length)
        dtype = torch.float16 if self.dtype == torch.bfloat16 else torch.float32
        share = torch.empty(shape, dtype=dtype, device=self.device)
        if grain.scaled == schedule.size:
            return share.copy_(values)
        inner = [[int(s.start > 0), int(s.stop < n)] for s, n in zip(grain.region, grain.scaled, strict=True)]
        origin = (grain.region[0].start - inner[0][0], grain.region[1].start - inner[1][0])
        for channel, resized in zip(values, share, strict=True):
            padded = F.pad(channel, (*inner[1], *inner[0]))  # beyond the window its share is nothing
            resized.copy_(bilinear_window(padded, origin, grain.scaled, schedule.size, *grain.footprint))
        return share


def _softmax(logits: Tensor) -> Tensor:
    """Over classes, fp32. Channels last spare it a copy."""
    return logits.float().movedim(1, -1).softmax(-1).movedim(-1, 1)


def _logits(logits: Tensor) -> Tensor:
    """As they are, fp32; a copy, as some networks return an input of theirs."""
    return logits.to(torch.float32, copy=True)


class Guided(NamedTuple):
    """A result with guided attention. `attention`: H x W float32 of each class asked for, stretched to [0, 1]
    over the image."""

    classes: np.ndarray
    attention: np.ndarray


@dataclass
class Merger:
    """Adds up grains' shares, in their order whatever the order in which they come.

    `result` is there when `add` has returned true: H x W uint8 class ids, or with `scores` the mean
    probabilities or logits, classes x H x W. Where the shares' last `attention` channels are guided
    attention, it is `Guided`.
    """

    plan: WindowPlan
    scores: bool
    attention: int = 0
    result: np.ndarray | Guided | None = None
    _early: dict[int, np.ndarray] = field(default_factory=dict)
    _next: int = 0
    _bands: dict[int, np.ndarray] = field(default_factory=dict)
    _classes: np.ndarray | None = None
    _attention: np.ndarray | None = None

    def add(self, grain: WindowGrain, share: np.ndarray) -> bool:
        self._early[grain.index] = share
        while self._next in self._early:
            self._add(self.plan.grains[self._next], self._early.pop(self._next))
            self._next += 1
        if self._next < len(self.plan.grains):
            return False
        self.result = self._classes
        if self.attention:
            assert self._classes is not None
            assert self._attention is not None
            for values in map(torch.from_numpy, self._attention):
                values.copy_(stretched(values))
            self.result = Guided(self._classes, self._attention)
        return True

    def _add(self, grain: WindowGrain, share: np.ndarray) -> None:
        height, width = self.plan.schedule.size
        if self._classes is None:
            classes = len(share) - self.attention
            check_classes(classes, self.scores)
            self._classes = (
                np.empty((classes, height, width), share.dtype)
                if self.scores
                else np.empty((height, width), np.uint8)
            )
            self._attention = np.empty((self.attention, height, width), np.float32)
        (top, bottom), (left, right) = grain.footprint
        for band in range(top // _BAND, ceil(bottom / _BAND)):
            if band not in self._bands:
                rows = min(_BAND, height - band * _BAND)
                self._bands[band] = np.zeros((len(share), rows, width), np.float32)
            first, last = max(top, band * _BAND), min(bottom, (band + 1) * _BAND)
            total = self._bands[band][:, first - band * _BAND : last - band * _BAND, left:right]
            total += share[:, first - top : last - top]
        is_last = grain.index + 1 == len(self.plan.grains)
        reached = height if is_last else self.plan.grains[grain.index + 1].footprint[0].start
        for band in [b for b in self._bands if min(height, (b + 1) * _BAND) <= reached]:
            self._let_go(band)

    def _let_go(self, band: int) -> None:
        total = self._bands.pop(band)
        rows = slice(band * _BAND, band * _BAND + total.shape[1])
        assert self._classes is not None
        assert self._attention is not None
        mean, attention = np.split(total, [len(total) - self.attention])
        if self.scores:
            self._classes[:, rows] = mean
        else:
            self._classes[rows] = mean.argmax(0)
        self._attention[:, rows] = attention


def predict_windows(
    predictor: WindowPredictor, plan: WindowPlan, image: np.ndarray, scores: bool = False
) -> np.ndarray | Guided:
    """The whole plan in this process: what `Merger` says. image: H x W x 3 uint8, of the plan's size."""
    merger = Merger(plan, scores, len(predictor.attention))
    for grain in plan.grains:
        merger.add(grain, predictor.run(plan.schedule, grain, image))
    assert merger.result is not None
    return merger.result
