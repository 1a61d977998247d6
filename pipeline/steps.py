"""One training step: images and labels in, loss out. Knows no loop, no optimizer, no device placement."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fullres.models.catalogue import Network
from fullres.models.fcn import combine
from fullres.models.smp import SMP
from fullres.ops.resample import bilinear_at


def segmentation_loss(
    network: Network,
    images: Tensor,
    labels: Tensor,
    phases: Sequence[int],
    loss_stride: int = 1,
    ignore_index: int = 255,
) -> Tensor:
    """Mean cross entropy over labelled pixels; a scalar with gradient.

    images: N x 3 x H x W, normalised. labels: N x H x W, class ids (int64) or `ignore_index`. SMP (Sec. 3.2):
    expanding is indexing the labels on the lattices that shrink pooling drew, `phases[i]` of them a split.
    FCN32s and FCN8s: scores interpolated to full resolution, at every pixel or, with a `loss_stride` above 1,
    on one random lattice of that stride. All pixels ignored: 0, with zero gradient.
    """
    if isinstance(network, SMP):
        drawn = [
            (p.tensor, _on_lattice(labels, p.offsets[0], p.stride)) for p in network.shrink(images, phases)
        ]
    else:
        size = (images.shape[-2], images.shape[-1])
        scores = combine(network.scores(images))
        y, x = torch.randint(loss_stride, (2,)).tolist()
        rows, columns = (torch.arange(o, n, loss_stride) for o, n in zip((y, x), size, strict=True))
        in_size = (scores.shape[-2], scores.shape[-1])
        logits = bilinear_at(scores, (0, 0), in_size, size, rows, columns)
        drawn = [(logits, _on_lattice(labels, (y, x), (loss_stride, loss_stride)))]
    total = sum(_cross_entropy_sum(logits, truth, ignore_index) for logits, truth in drawn)
    count = sum((truth != ignore_index).sum() for _, truth in drawn)
    return total / torch.as_tensor(count).clamp(min=1)


def _on_lattice(labels: Tensor, offset: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    return labels[:, offset[0] :: stride[0], offset[1] :: stride[1]]


def _cross_entropy_sum(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
