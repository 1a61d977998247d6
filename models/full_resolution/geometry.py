"""Where a sliding operation reads: integer arithmetic along one axis, in pixels of the image or of a lattice.

A *lattice* is every stride-th pixel from an offset: `offset + stride * i`. The elements of a split batch lie
on one. Both axes are handled alike and separately, so everything here speaks of one axis.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np


class Span(NamedTuple):
    """Elements start, start + 1, ..., stop - 1 of a lattice (or pixels of the image)."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return max(0, self.stop - self.start)

    def hull(self, other: "Span") -> "Span":
        """The smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def clip(self, length: int) -> "Span":
        return Span(min(max(self.start, 0), length), min(max(self.stop, 0), length))

    def outward(self, stride: int) -> "Span":
        """The smallest span that holds this one and starts and stops at multiples of `stride`."""
        return Span(self.start // stride * stride, -(-self.stop // stride) * stride)


class Spans(NamedTuple):
    """Many spans at once, as integer arrays."""

    start: np.ndarray
    stop: np.ndarray

    @property
    def length(self) -> np.ndarray:
        return np.maximum(0, self.stop - self.start)

    def hull(self, other: "Spans") -> "Spans":
        return Spans(np.minimum(self.start, other.start), np.maximum(self.stop, other.stop))

    def clip(self, length: np.ndarray) -> "Spans":
        return Spans(*(np.minimum(np.maximum(side, 0), length) for side in self))


AnySpan = TypeVar("AnySpan", Span, Spans)


@dataclass(frozen=True)
class Sliding:
    """A convolution or pool along one axis. Reads `kernel` elements, `dilation` apart, from `padding`
    before."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def receptive_field(self) -> tuple[int, int]:
        """First and last element read, relative to the element written."""
        return -self.padding, self.dilation * (self.kernel - 1) - self.padding

    def reads(self, out: AnySpan, shift: Any = 0, stride: int = 1) -> AnySpan:
        """Input elements read for output elements `out`, unclipped, when the input has `stride` elements for
        one output element and output element 0 lies on input element `shift`."""
        first, last = self.receptive_field
        return type(out)(stride * out.start + shift + first, stride * (out.stop - 1) + shift + last + 1)


POINT = Sliding()
