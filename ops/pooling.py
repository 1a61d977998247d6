"""Split, merge, shrink and expand pooling ("Split-Merge Pooling", Sec. 3.1 and 3.2).

`split` turns one tensor into its split batches, `merge` puts them back; `shrink` keeps one split batch and
`expand` puts it back among zeros. All four work for any window and any height and width: along an axis of
length n, the split batch of phase k has ceil((n - k) / w) elements, so split batches of an odd-sized tensor
differ in size by one and some may be empty. Nothing is padded.

A window is `(rows, columns)`, or one number for both. (The paper writes w x h; arrays here are N x C x H x W,
so rows come first.) A phase is `(k, l)` with 0 <= k < rows and 0 <= l < columns. Split batches are ordered by
k, then by l. Gradients flow through all four.
"""

from collections.abc import Sequence
from functools import reduce
from math import gcd

import torch
from torch import Tensor, nn

Window = int | tuple[int, int]
Phase = tuple[int, int]


def as_window(window: Window) -> tuple[int, int]:
    """`window` as (rows, columns). Raises ValueError unless both are at least 1."""
    rows, columns = (window, window) if isinstance(window, int) else window
    if rows < 1 or columns < 1:
        raise ValueError(f"window is {window}: rows and columns must be at least 1")
    return rows, columns


def phases_of(window: Window) -> list[Phase]:
    """All phases of a window, in the order of the split batches."""
    rows, columns = as_window(window)
    return [(k, l) for k in range(rows) for l in range(columns)]


def lattice_length(length: int, offset: int, stride: int) -> int:
    """How many of offset, offset + stride, offset + 2 stride, ... lie below `length`."""
    return max(0, -(-(length - offset) // stride))


def split(x: Tensor, window: Window = 2) -> list[Tensor]:
    """Eq. 1: the split batches of `x`, one for each phase, as views of `x` (no copy).

    x: (..., H, W). Returns rows * columns tensors (..., ceil((H - k) / rows), ceil((W - l) / columns)).
    """
    return [shrink(x, window, phase) for phase in phases_of(window)]


def merge(batches: Sequence[Tensor], window: Window = 2) -> Tensor:
    """Eq. 2, the inverse of `split`: (..., H, W) from its rows * columns split batches.

    Raises ValueError if the number or the sizes of the batches are not those of one split tensor.
    """
    rows, columns = as_window(window)
    if len(batches) != rows * columns:
        raise ValueError(
            f"merge with window {rows}x{columns} takes {rows * columns} batches, got {len(batches)}"
        )
    height = sum(b.shape[-2] for b in batches[::columns])
    width = sum(b.shape[-1] for b in batches[:columns])
    merged = batches[0].new_empty((*batches[0].shape[:-2], height, width))
    for (k, l), batch in zip(phases_of(window), batches, strict=True):
        place = merged[..., k::rows, l::columns]
        if place.shape != batch.shape:
            raise ValueError(
                f"split batch ({k}, {l}) is {tuple(batch.shape)}, but a tensor of {height}x{width} "
                f"split by {rows}x{columns} has {tuple(place.shape)} there"
            )
        place.copy_(batch)
    return merged


def shrink(x: Tensor, window: Window, phase: Phase) -> Tensor:
    """Sec. 3.2: the one split batch of `x` (..., H, W) at `phase`, a view. Raises ValueError outside the
    window."""
    rows, columns = as_window(window)
    k, l = phase
    if not (0 <= k < rows and 0 <= l < columns):
        raise ValueError(f"phase {phase} is outside the window {rows}x{columns}")
    return x[..., k::rows, l::columns]


def expand(x: Tensor, window: Window, phase: Phase, size: tuple[int, int]) -> Tensor:
    """Sec. 3.2, the partner of `shrink`: (..., *size), zero but for the split batch `x` at `phase`.

    Only the sparse elements carry gradient back. Raises ValueError if `x` is not the size of that split
    batch.
    """
    rows, columns = as_window(window)
    out = x.new_zeros((*x.shape[:-2], *size))
    place = shrink(out, (rows, columns), phase)
    if place.shape != x.shape:
        raise ValueError(
            f"cannot expand {tuple(x.shape)} to {size}: "
            f"window {rows}x{columns}, phase {phase} holds {tuple(place.shape)}"
        )
    place.copy_(x)
    return out


Batches = Tensor | Sequence[Tensor]


def _as_list(batches: Batches) -> Sequence[Tensor]:
    return [batches] if isinstance(batches, Tensor) else batches


class SplitPool2d(nn.Module):
    """Split pooling as a layer. Takes one tensor or a list of split batches, N x C x h x w each.

    "If the input consists of multiple batches, the split pooling splits each separately and returns all"
    (Sec. 3.1): a list rows * columns times as long, the split batches of one input side by side.
    """

    def __init__(self, window: Window = 2) -> None:
        super().__init__()
        self.window = as_window(window)

    def forward(self, batches: Batches) -> list[Tensor]:
        return [part for batch in _as_list(batches) for part in split(batch, self.window)]

    def extra_repr(self) -> str:
        return f"window={self.window}"


class MergePool2d(nn.Module):
    """Merge pooling as a layer, the inverse of `SplitPool2d`: a list rows * columns times shorter.

    As many merges as there were splits leave a list of one, the full-resolution tensor.
    """

    def __init__(self, window: Window = 2) -> None:
        super().__init__()
        self.window = as_window(window)

    def forward(self, batches: Sequence[Tensor]) -> list[Tensor]:
        n = self.window[0] * self.window[1]
        if not batches or len(batches) % n:
            raise ValueError(
                f"merge with window {self.window} takes a multiple of {n} batches, got {len(batches)}"
            )
        return [merge(batches[i : i + n], self.window) for i in range(0, len(batches), n)]

    def extra_repr(self) -> str:
        return f"window={self.window}"


class ShrinkPool2d(nn.Module):
    """Shrink pooling as a layer: in place of `SplitPool2d` while training.

    `phases` of the window's split batches (1: the paper's shrink; rows * columns: split) are drawn without
    replacement in each forward pass from torch's random generator, the same for every batch, and kept in
    `.drawn` for the partner, together with the input sizes. In evaluation mode the first ones are taken.
    """

    def __init__(self, window: Window = 2, phases: int = 1) -> None:
        super().__init__()
        self.window = as_window(window)
        if not 1 <= phases <= self.window[0] * self.window[1]:
            raise ValueError(
                f"phases is {phases}: between 1 and {self.window[0] * self.window[1]} for {self.window}"
            )
        self.phases = phases
        self.drawn: list[Phase] = []
        self.sizes: list[tuple[int, int]] = []

    def forward(self, batches: Batches) -> list[Tensor]:
        batches = _as_list(batches)
        self.drawn = (
            draw_phases(self.window, self.phases) if self.training else phases_of(self.window)[: self.phases]
        )
        self.sizes = [(b.shape[-2], b.shape[-1]) for b in batches]
        return [shrink(batch, self.window, phase) for batch in batches for phase in self.drawn]

    def extra_repr(self) -> str:
        return f"window={self.window}, phases={self.phases}"


class ExpandPool2d(nn.Module):
    """Expand pooling as a layer: the inverse of its partner's last forward pass, zero where nothing was
    kept."""

    def __init__(self, partner: ShrinkPool2d) -> None:
        super().__init__()
        self._partner = (partner,)  # in a tuple: the partner stays a layer of its own place in the network

    def forward(self, batches: Sequence[Tensor]) -> list[Tensor]:
        (partner,) = self._partner
        n = len(partner.drawn)
        if not n or len(batches) != n * len(partner.sizes):
            raise ValueError(
                f"expand takes the {n * len(partner.sizes)} batches of its shrink layer, got {len(batches)}"
            )
        expanded = []
        for i, size in enumerate(partner.sizes):
            parts = zip(partner.drawn, batches[i * n : (i + 1) * n], strict=True)
            expanded.append(
                reduce(torch.add, (expand(part, partner.window, phase, size) for phase, part in parts))
            )
        return expanded


def draw_phases(window: Window, count: int) -> list[Phase]:
    """`count` different phases of a window, in the order of the split batches, from torch's random
    generator."""
    every = phases_of(window)
    return [every[i] for i in sorted(torch.randperm(len(every))[:count].tolist())]


def shares_of_phases(counts: Sequence[int], shares: int) -> list[int]:
    """Among how many of `shares` processes the phases of each split are divided, where the splits follow each
    other and have `counts` phases: their product is `shares`. The first splits are divided first, as
    what comes before a division is computed by all.

    Raises ValueError where the phases can't be divided evenly.
    """
    divided, left = [], shares
    for count in counts:
        divided.append(gcd(left, count))
        left //= divided[-1]
    if left > 1:
        raise ValueError(f"phases are {tuple(counts)}: {shares} workers can't share them evenly")
    return divided


def share_of_phases(phases: Sequence[Sequence[Phase]], index: int, shares: int) -> list[list[Phase]]:
    """The phases of each split that process `index` of `shares` takes: each combination of them is one
    process's. Raises as `shares_of_phases`."""
    own = []
    for of_split, divided in zip(phases, shares_of_phases([len(p) for p in phases], shares), strict=True):
        index, place = divmod(index, divided)
        own.append(list(of_split[place::divided]))
    return own
