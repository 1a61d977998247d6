"""Class probability preserving pooling of label maps ("SeeThroughNet", Sec. 3.1, Eq. 1).

Where nearest-neighbour subsampling keeps one label of a cell, this keeps the share of each class in it. A
cell is s x s pixels; where the map's size is no multiple of s, the cells at the lower and right border cover
what is there, and their shares are of that.

Pixels of `ignore_index` are a channel of their own behind the classes ("channel", as in the paper: 20
channels for Cityscapes), or they are left out ("renormalise"): shares are then of the other pixels, and all
zero in a cell without any.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from fullres.ops.jit import jit

if TYPE_CHECKING:
    from torch import Tensor

Ignore = Literal["channel", "renormalise"]

_MIXED = -1  # in the place of a channel: a cell of several


def class_probability(
    labels: np.ndarray, scale: int, num_classes: int, ignore: Ignore = "channel", ignore_index: int = 255
) -> np.ndarray:
    """The share of each class in each cell of `scale` x `scale` pixels.

    Args:
        labels: H x W uint8, classes 0..C-1 and `ignore_index`.
        ignore: a channel of its own for ignored pixels, or shares of the other pixels.

    Returns:
        C x ceil(H/scale) x ceil(W/scale) float32, C + 1 channels with "channel". A cell's shares sum to 1.

    Raises:
        ValueError: labels of another type or shape, or a label that does not belong, which it names.
    """
    return class_probability_pyramid(labels, (scale,), num_classes, ignore, ignore_index)[0]


def class_probability_pyramid(
    labels: np.ndarray,
    scales: Sequence[int],
    num_classes: int,
    ignore: Ignore = "channel",
    ignore_index: int = 255,
) -> list[np.ndarray]:
    """`class_probability` at several scales, (4, 8, 16, 32) in the paper, one array each.

    Pixels are looked at once: a coarser cell adds up the counts of its finer ones.

    Raises:
        ValueError: as `class_probability`; scales that are not each a multiple of the one before.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}: H x W uint8 is pooled")
    if scales[0] < 1 or any(coarse <= fine or coarse % fine for fine, coarse in pairwise(scales)):
        raise ValueError(f"scales are {tuple(scales)}: each must be a multiple of the one before")
    sizes = [(-(-labels.shape[0] // scale), -(-labels.shape[1] // scale)) for scale in scales]
    # Memory that the system hands out zeroed: only what isn't zero is ever written.
    shares = [np.zeros((num_classes + (ignore == "channel"), *size), np.float32) for size in sizes]
    channel = np.full(256, -1, np.int16)
    channel[:num_classes] = np.arange(num_classes)
    channel[ignore_index] = num_classes
    # Cells to a coarser cell's side. Those of the coarsest scale add up into one that nobody reads.
    steps = [coarse // fine for fine, coarse in pairwise(scales)]
    parents = [size[1] for size in sizes[1:]] + [1]
    flags = np.zeros(sizes[0][1] * scales[0], np.uint8)
    unknown = _pool(
        np.ascontiguousarray(labels),
        channel,
        np.array(scales),
        np.array([*steps, sizes[-1][1]]),
        flags,
        flags.view(np.uint32) if scales[0] % 4 == 0 else flags,
        tuple(shares),
        tuple(np.empty((step, size[1]), np.int16) for step, size in zip([*steps, 1], sizes, strict=True)),
        tuple(np.zeros((columns, num_classes + 1), np.int32) for columns in parents),
    )
    if unknown >= 0:
        raise ValueError(f"label {unknown} doesn't belong: 0..{num_classes - 1} and {ignore_index} do")
    return shares


def class_probability_tensor(
    labels: "Tensor", scale: int, num_classes: int, ignore: Ignore = "channel", ignore_index: int = 255
) -> "Tensor":
    """`class_probability` of a batch, on the device it is on: the same values.

    Args:
        labels: N x H x W, uint8 or int64.

    Returns:
        N x C x ceil(H/scale) x ceil(W/scale) float32, C + 1 channels with "channel".

    Raises:
        ValueError: a label that does not belong, which it names.
    """
    import torch  # here alone: processes that make targets of arrays do without, and it takes seconds

    n, height, width = labels.shape
    h, w = -(-height // scale), -(-width // scale)
    if labels.is_meta:  # without data, of which the memory is asked
        return labels.new_empty(n, num_classes + (ignore == "channel"), h, w, dtype=torch.float32)
    ignored = labels == ignore_index
    outside = ~ignored & ((labels < 0) | (labels >= num_classes))
    if outside.any():
        unknown = labels[outside][0].item()
        raise ValueError(f"label {unknown} doesn't belong: 0..{num_classes - 1} and {ignore_index} do")
    channel = torch.where(ignored, num_classes, labels.long())
    image = torch.arange(n, device=labels.device)[:, None, None]
    row = torch.arange(height, device=labels.device)[:, None] // scale
    column = torch.arange(width, device=labels.device) // scale
    place = ((image * (num_classes + 1) + channel) * h + row) * w + column
    counts = torch.bincount(place.ravel(), minlength=n * (num_classes + 1) * h * w)
    counts = counts.view(n, num_classes + 1, h, w)
    if ignore == "renormalise":
        counts = counts[:, :num_classes]
    return counts.float() / counts.sum(1, keepdim=True).clamp(min=1)


# Below, for each scale from the finest to the coarsest:
#   shares: the result.
#   kinds: of the rows of cells that make up one row of coarser cells, the channel of all a cell's pixels, or
#     _MIXED. Most cells have one channel: they cost this entry and one share.
#   counts: of one row of coarser cells, the pixels by channel (the ignored ones last) that come from mixed
#     cells. Those of the others are added only where the coarser cell is mixed too.


@jit()
def _pool(labels, channel, scales, steps, flags, words, shares, kinds, counts):
    """Fill `shares`, which is zero. Returns -1, or a label without a channel.

    `flags` is scratch memory, zero, a byte for each column of a strip; `words` is the same memory, four bytes
    at a time where a cell's side allows.
    """
    height, width = labels.shape
    fine = scales[0]
    inside = np.zeros(width, np.uint8)  # all bits: the pixel to the right is of the same cell
    for x in range(width - 1):
        inside[x] = 255 if (x + 1) % fine else 0
    seen = np.empty(256, np.int16)
    pixels = np.zeros(counts[0].shape[1], np.int32)
    rows = shares[0].shape[1]
    for i in range(rows):
        strip = labels[i * fine : (i + 1) * fine]
        _flag_changes(strip, inside, flags)
        unknown = _finest(
            i, strip, fine, words, channel, steps[0], shares[0], kinds[0], counts[0], seen, pixels
        )
        if unknown >= 0:
            return unknown
        for level in range(1, len(shares)):
            ratio = scales[level] // fine
            if (i + 1) % ratio == 0 or i + 1 == rows:
                _coarser(
                    i // ratio, height, width, scales[level - 1], kinds[level - 1], counts[level - 1],
                    steps[level], shares[level], kinds[level], counts[level],
                )  # fmt: skip
    return -1


@jit()
def _flag_changes(strip, inside, flags):
    """Set `flags` where the cell changes below the strip's first row, or to the right in that row.

    Whole rows at a time, which the compiler turns into vector instructions.
    """
    first = strip[0]
    width = len(first)
    for x in range(width - 1):
        flags[x] = (first[x] ^ first[x + 1]) & inside[x]
    flags[width - 1] = 0
    for y in range(1, len(strip)):
        row = strip[y]
        for x in range(width):
            flags[x] |= first[x] ^ row[x]


@jit()
def _finest(i, strip, fine, words, channel, step, shares, kinds, counts, seen, pixels):
    """Row `i` of the finest cells. `seen` and `pixels` are scratch memory, `pixels` zero before and after."""
    channels = len(shares)
    kind = kinds[i % len(kinds)]
    per_cell = len(words) // len(kind)
    for j in range(len(kind)):
        left, right = j * fine, min((j + 1) * fine, strip.shape[1])
        changes = words[j * per_cell]
        for n in range(j * per_cell + 1, (j + 1) * per_cell):
            changes |= words[n]
        if changes == 0:
            k = channel[strip[0, left]]
            if k < 0:
                return int(strip[0, left])
            kind[j] = k
            if k < channels:
                shares[k, i, j] = 1
            continue
        kind[j] = _MIXED
        distinct = 0
        for y in range(len(strip)):
            for x in range(left, right):
                k = channel[strip[y, x]]
                if k < 0:
                    return int(strip[y, x])
                if pixels[k] == 0:
                    seen[distinct] = k
                    distinct += 1
                pixels[k] += 1
        total = len(strip) * (right - left)
        if channels < len(pixels):
            total -= pixels[channels]
        for n in range(distinct):
            k = seen[n]
            counts[j // step, k] += pixels[k]
            if k < channels:
                shares[k, i, j] = np.float32(pixels[k]) / np.float32(total)
            pixels[k] = 0
    return -1


@jit()
def _coarser(i, height, width, below, children, count, step, shares, kinds, counts):
    """Row `i` of coarser cells, from the `children`'s kinds and the `count` of their mixed pixels, which is
    cleared; `below` is the children's scale."""
    channels = len(shares)
    kind = kinds[i % len(kinds)]
    ratio = len(children)
    rows = min(ratio, -(-height // below) - i * ratio)
    for j in range(len(kind)):
        start, stop = j * ratio, min((j + 1) * ratio, children.shape[1])
        k = children[0, start]
        for y in range(rows):
            for x in range(start, stop):
                if children[y, x] != k:
                    k = _MIXED
        kind[j] = k
        if k != _MIXED:
            if k < channels:
                shares[k, i, j] = 1
            continue
        pixels = count[j]
        for y in range(rows):
            for x in range(start, stop):
                if children[y, x] != _MIXED:
                    top, left = (i * ratio + y) * below, x * below
                    area = (min(top + below, height) - top) * (min(left + below, width) - left)
                    pixels[children[y, x]] += area
        total = 0
        for c in range(channels):
            total += pixels[c]
        for c in range(len(pixels)):
            n = pixels[c]
            if n > 0:
                pixels[c] = 0
                counts[j // step, c] += n
                if c < channels:
                    shares[c, i, j] = np.float32(n) / np.float32(total)
