"""Running grains of a split plan on one device, in one process.

`Predictor` holds a network made ready for inference: batch norm folded, in its working precision, channels
last. It gets the part of the uint8 image that a tile needs and returns the class ids (or scores) of one
grain: depth first over the tree, sibling subtrees batched as the plan's fan-outs say, levels in strips where
it says so. `predict_image` runs a whole plan; Ray workers run the same grains.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.geometry import Span
from fullres.models.full_resolution.levels import Region
from fullres.models.full_resolution.split_merge import FullResolution, HasFullResolution, Piece, Source
from fullres.models.full_resolution.steps import IMAGE, Pair
from fullres.ops.convolution import Convolution, compute_exactly
from fullres.ops.normalisation import IMAGENET, Normalisation, normalise
from fullres.ops.pooling import lattice_length, phases_of
from fullres.ops.resample import between_lattice_points, bilinear_reads, bilinear_window
from fullres.pipeline.predict.bound import BoundTree, Precision, Schedule
from fullres.pipeline.predict.cost import area, strips_of
from fullres.pipeline.predict.plan import Grain, Plan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Elements (classes x pixels) interpolated to full resolution at a time.
_INTERPOLATED = 1 << 19


def native_precision(device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it natively, else fp32. A GPU of another machine is taken to be a
    recent one."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "bf16"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return (
        "bf16"
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
        else "fp32"
    )


@dataclass(frozen=True)
class ImageSource:
    """The image as a level reads it: `window` (h, w, channels) uint8 lies at `origin`, normalised while it is
    cropped."""

    window: np.ndarray
    origin: Pair
    dtype: torch.dtype
    device: torch.device
    normalisation: Normalisation = IMAGENET
    offsets: Sequence[Pair] = ((0, 0),)
    stride: Pair = (1, 1)

    def crop(self, region: Region) -> Tensor:
        (top, bottom), (left, right) = region
        y, x = self.origin
        part = np.ascontiguousarray(self.window[top - y : bottom - y, left - x : right - x])
        return normalise(torch.from_numpy(part).to(self.device)[None], self.dtype, self.normalisation)


class Predictor:
    """A network ready for inference on one device."""

    def __init__(
        self,
        network: HasFullResolution,
        device: torch.device,
        precision: Precision,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        compute_exactly(device)
        tree = inference_form(network.full_resolution())
        self.normalisation = normalisation
        self.dtype = DTYPES[precision]
        self.device = device
        # A copy: the caller's tree may be planned with, and made ready in other precisions.
        ready = copy.deepcopy(tree).requires_grad_(False)
        self.tree: FullResolution = ready.to(device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._bound: BoundTree | None = None
        for module in self.tree.modules():
            if isinstance(module, Convolution):
                module.pack()

    @torch.inference_mode()
    def run(self, schedule: Schedule, grain: Grain, window: np.ndarray, scores: bool = False) -> np.ndarray:
        """Class ids of a grain: uint8 (h, w), its node's lattice inside its tile; `scores`: (classes, h, w).

        window: the part of the image that `bind(schedule).part` names, (rows, columns, channels)
        uint8. Scores are float32, float16 if the precision is bf16.
        """
        bound = self.bind(schedule)
        rows, columns = bound.part(schedule.tiles[grain.tile])
        image = ImageSource(window, (rows.start, columns.start), self.dtype, self.device, self.normalisation)
        run = _Run(bound, grain, scores)
        if not bound.by_tiles:
            run.descend(-1, [(0, 0)], {IMAGE: image})
        elif schedule.every_phase:
            run.coarsely({IMAGE: image})
        else:
            run.interpolate({IMAGE: image})
        if run.written != run.result.size:
            raise RuntimeError(f"{run.result.size - run.written} elements of {grain} were not computed")
        return run.result

    def bind(self, schedule: Schedule) -> BoundTree:
        """The tree as this schedule runs it. Grains of one plan come one after another: the last is kept."""
        if self._bound is None or self._bound.schedule != schedule:
            self._bound = BoundTree(self.tree, schedule)
        return self._bound


class _Run:
    """One grain's way through the tree."""

    def __init__(self, bound: BoundTree, grain: Grain, scores: bool) -> None:
        self.bound, self.tree, self.schedule = bound, bound.tree, bound.schedule
        self.grain, self.scores = grain, scores
        self.tile = self.schedule.tiles[grain.tile]
        self.stride = bound.stride(grain.level)
        shape = tuple(lattice_length(self.tile[a].length, grain.offset[a], self.stride[a]) for a in (0, 1))
        if scores:
            dtype = np.float16 if self.schedule.precision == "bf16" else np.float32
            self.result = np.empty((self.tree.channels[0], *shape), dtype)
        else:
            self.result = np.empty(shape, np.uint8)
        self.written = 0  # elements of the result
        self.coarse: Piece | None = None  # the scores of a lattice of pixels, where others are interpolated
        self.filled = 0  # points of that lattice

    def descend(self, level: int, offsets: Sequence[Pair], sources: Mapping[str, Source]) -> None:
        """Everything below the batch of nodes `offsets` of `level`, whose exports are among `sources`."""
        if level == len(self.tree.levels) - 1:
            piece = sources[self.tree.outputs[0]]
            assert isinstance(piece, Piece)
            self._write(piece)
            return
        stride = self.bound.stride(level)
        for phases in self._batches(level + 1, offsets[0], stride):
            children = [(y + k * stride[0], x + l * stride[1]) for k, l in phases for y, x in offsets]
            region = self.bound.region(level + 1, self.tile, children[0])
            if area(region) == 0:
                continue
            pieces = self._run_level(level + 1, children, region, sources)
            still_read = {name for later in self.tree.levels[level + 2 :] for name in later.reads}
            kept = {name: source for name, source in sources.items() if name in still_read}
            self.descend(level + 1, children, {**kept, **pieces})
            del pieces, kept

    def _batches(self, level: int, parent: Pair, stride: Pair) -> list[list[Pair]]:
        """The phases of a level's split to run, in batches of nodes with lattices of one size."""
        window, own = self.tree.levels[level].window, self.tree.levels[level].stride
        if level <= self.grain.level:  # on the way to the grain's node
            o = self.grain.offset
            return [[(o[0] % own[0] // stride[0], o[1] % own[1] // stride[1])]]

        def lengths(phase: Pair) -> Pair:
            return tuple(  # type: ignore[return-value]
                lattice_length(self.schedule.size[a], parent[a] + phase[a] * stride[a], own[a])
                for a in (0, 1)
            )

        batches = []
        fanout = self.schedule.fanouts[level]
        wanted = [
            phase
            for phase in phases_of(window)
            if all(self.bound.is_wanted(a, parent[a] + phase[a] * stride[a], own[a]) for a in (0, 1))
        ]
        for _, group in groupby(sorted(wanted, key=lengths, reverse=True), key=lengths):
            phases = list(group)
            batches += [phases[i : i + fanout] for i in range(0, len(phases), fanout)]
        return batches

    def _run_level(
        self, level: int, offsets: Sequence[Pair], region: Region, sources: Mapping[str, Source]
    ) -> dict[str, Piece]:
        size = self.schedule.size
        strips = list(strips_of(region[0], self.schedule.strips[level]))
        if len(strips) == 1:
            return self.tree.run_level(level, sources, offsets, region, size)
        whole: dict[str, Piece] = {}
        for strip in strips:
            for name, piece in self.tree.run_level(level, sources, offsets, (strip, region[1]), size).items():
                if name not in whole:
                    n, c = piece.tensor.shape[:2]
                    tensor = piece.tensor.new_empty((n, c, region[0].length, region[1].length))
                    tensor = tensor.to(memory_format=torch.channels_last)
                    whole[name] = replace(piece, tensor=tensor, region=region)
                start = strip.start - region[0].start
                whole[name].tensor[:, :, start : start + strip.length] = piece.tensor
        return whole

    def _write(self, leaves: Piece) -> None:
        """Merge: the leaves' class ids (or scores) onto the grain's lattice."""
        if self.coarse is not None:
            self._write_coarse(leaves, self.coarse)
            return
        if self.scores:
            values = leaves.tensor.to(torch.float16 if self.result.dtype == np.float16 else torch.float32)
        else:
            values = leaves.tensor.argmax(1).to(torch.uint8)
        block = values.cpu().numpy()
        step = [leaves.stride[a] // self.stride[a] for a in (0, 1)]
        for i, offset in enumerate(leaves.offsets):
            y, x = ((offset[a] - self.grain.offset[a]) // self.stride[a] for a in (0, 1))
            self.result[..., y :: step[0], x :: step[1]] = block[i]
        self.written += block.size

    def _write_coarse(self, leaves: Piece, coarse: Piece) -> None:
        """Merge: the leaves' scores onto a coarser lattice than the grain's."""
        for offset, leaf in leaves.leaves(1):
            where = []
            for a in (0, 1):
                pixel = offset[a] + leaves.region[a].start * leaves.stride[a]
                first = (pixel - coarse.offsets[0][a]) // coarse.stride[a] - coarse.region[a].start
                where.append(slice(first, None, leaves.stride[a] // coarse.stride[a]))
            part = coarse.tensor[:, :, where[0], where[1]]
            part[:, :, : leaf.shape[-2], : leaf.shape[-1]] = leaf
            self.filled += leaf.shape[-2] * leaf.shape[-1]

    def coarsely(self, sources: dict[str, Source]) -> None:
        """Of a lattice of pixels alone the scores are computed, and interpolated to the others."""
        stride, origin = self.schedule.output_stride, self.schedule.origin
        spans = []
        for a in (0, 1):
            demand = self.bound.demands_along(a, self.tile[a])[self.tree.outputs[0]]
            demand = demand.clip(self.schedule.size[a])
            pixels = Span(demand.start - origin[a], demand.stop - origin[a])
            spans.append(Span(-(-pixels.start // stride), -(-pixels.stop // stride)))
        rows, columns = spans
        channels = self.tree.channels[0]
        buffer = torch.empty(1, channels, rows.length, columns.length)
        self.coarse = Piece(buffer, (rows, columns), [origin], (stride, stride))
        self.descend(-1, [(0, 0)], sources)
        if self.filled != rows.length * columns.length:
            return  # which the count of what was written says
        first = (origin[0] + rows.start * stride, origin[1] + columns.start * stride)
        top, left = self.tile[0].start, torch.arange(*self.tile[1])
        strip = max(1, _INTERPOLATED // (channels * self.tile[1].length))
        for start in range(*self.tile[0], strip):
            stop = min(start + strip, self.tile[0].stop)
            full = between_lattice_points(buffer, stride, first, torch.arange(start, stop), left)[0]
            block = full if self.scores else full.argmax(0).to(torch.uint8)
            self.result[..., start - top : stop - top, :] = block.numpy()
            self.written += block.numel()

    def interpolate(self, sources: dict[str, Source]) -> None:
        """FCN32s, FCN8s: the first phase of every level, resized to the finest score and summed, then to
        pixels."""
        pieces: dict[str, Piece] = {}
        for level in range(len(self.tree.levels)):
            region = self.bound.region(level, self.tile)
            pieces.update(self._run_level(level, [(0, 0)], region, {**sources, **pieces}))
        fine, *coarser = (pieces[name] for name in self.tree.outputs)
        height, width = self.schedule.size
        sizes = [
            (lattice_length(height, 0, p.stride[0]), lattice_length(width, 0, p.stride[1]))
            for p in (fine, *coarser)
        ]
        rows, columns = (
            Span(*bilinear_reads(*self.tile[a], sizes[0][a], self.schedule.size[a])) for a in (0, 1)
        )
        total = fine.crop((rows, columns)).float()
        for piece, in_size in zip(coarser, sizes[1:], strict=True):
            origin = (piece.region[0].start, piece.region[1].start)
            total = total + bilinear_window(piece.tensor.float(), origin, in_size, sizes[0], rows, columns)
        top, left = self.tile[0].start, self.tile[1]
        strip = max(1, _INTERPOLATED // (total.shape[1] * self.tile[1].length))
        for start in range(*self.tile[0], strip):
            stop = min(start + strip, self.tile[0].stop)
            full = bilinear_window(
                total, (rows.start, columns.start), sizes[0], self.schedule.size, (start, stop), left
            )[0]
            block = full if self.scores else full.argmax(0).to(torch.uint8)
            self.result[..., start - top : stop - top, :] = block.cpu().numpy()
            self.written += block.numel()


def place(out: np.ndarray, bound: BoundTree, grain: Grain, result: np.ndarray) -> None:
    """Merge pooling (Eq. 2): a grain's result into the image's array (..., H, W)."""
    rows, columns = bound.schedule.tiles[grain.tile]
    down, across = bound.stride(grain.level)
    region = out[..., rows.start : rows.stop, columns.start : columns.stop]
    region[..., grain.offset[0] :: down, grain.offset[1] :: across] = result


def predict_image(
    predictor: Predictor,
    plan: Plan,
    image: np.ndarray,
    scores: bool = False,
    progress: Callable[[Grain], None] = lambda grain: None,
) -> np.ndarray:
    """The whole plan in this process: H x W uint8 class ids, or classes x H x W scores.

    image: H x W x channels uint8, of the plan's size.
    """
    if image.shape != (*plan.schedule.size, predictor.normalisation.channels):
        raise ValueError(f"image is {image.shape}, the plan is for {plan.schedule.size}")
    bound = predictor.bind(plan.schedule)
    out: np.ndarray | None = None
    for grain in plan.grains:
        rows, columns = bound.part(plan.schedule.tiles[grain.tile])
        window = image[rows.start : rows.stop, columns.start : columns.stop]
        result = predictor.run(plan.schedule, grain, window, scores)
        if out is None:
            out = np.empty((*result.shape[:-2], *plan.schedule.size), result.dtype)
        place(out, bound, grain, result)
        progress(grain)
    assert out is not None
    return out
