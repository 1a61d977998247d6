"""What the networks of "Split-Merge Pooling" return in training: logits on lattices of the image."""

from typing import NamedTuple

from torch import Tensor


class Lattice(NamedTuple):
    """Logits N x classes x h x w of the pixels `offset + stride * i` of an image, along rows and columns."""

    logits: Tensor
    offset: tuple[int, int]
    stride: tuple[int, int]

    def of(self, labels: Tensor) -> Tensor:
        """The labels, N x H x W, of the same pixels: expanding (Sec. 3.2) is indexing the labels."""
        return labels[:, self.offset[0] :: self.stride[0], self.offset[1] :: self.stride[1]]


class LatticeOutput(NamedTuple):
    lattices: tuple[Lattice, ...]
