"""One training step: images and labels in, loss out. Knows no loop, no optimizer, no device placement."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fullres.models.catalogue import Network
from fullres.models.smp import SMP


def segmentation_loss(
    network: Network, images: Tensor, labels: Tensor, phases: Sequence[int], ignore_index: int = 255
) -> Tensor:
    """Mean cross entropy over the labelled pixels that the network predicts; a scalar with gradient.

    images: N x 3 x H x W, normalised. labels: N x H x W, class ids (int64) or `ignore_index`.
    SMP (Sec. 3.2): expanding is indexing the labels on the lattices that shrink pooling drew, `phases[i]` of them
    a split. FCN32s and FCN8s: every pixel, after interpolation to full resolution; `phases` plays no part.
    All pixels ignored: 0, with zero gradient.
    """
    if isinstance(network, SMP):
        pieces = network.shrink(images, phases)
        total = sum(_cross_entropy_sum(p.tensor, _on_lattice(labels, p.offsets[0], p.stride), ignore_index) for p in pieces)
        count = sum((_on_lattice(labels, p.offsets[0], p.stride) != ignore_index).sum() for p in pieces)
    else:
        total = _cross_entropy_sum(network(images), labels, ignore_index)
        count = (labels != ignore_index).sum()
    return total / torch.as_tensor(count).clamp(min=1)


def _on_lattice(labels: Tensor, offset: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    return labels[:, offset[0] :: stride[0], offset[1] :: stride[1]]


def _cross_entropy_sum(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
