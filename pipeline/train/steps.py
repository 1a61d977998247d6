"""One training step: images and labels in, loss out. Knows no loop, no optimizer, no device placement."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.fcn import FCN8s, FCN32s, combine
from fullres.models.smp import SMP
from fullres.ops.resample import bilinear_at
from fullres.pipeline.train.objectives import objective


def segmentation_loss(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    phases: Sequence[int] = (1, 1, 1, 1),
    loss_stride: int = 1,
    ignore_index: int = 255,
) -> Tensor:
    """The loss of a batch by the objective of the network's paper; a scalar with gradient.

    images: N x 3 x H x W, normalised. labels: N x H x W, class ids (int64) or `ignore_index`. All pixels
    ignored: 0, with zero gradient, but for class probabilities, where the ignored share is predicted too.

    SMP, FCN32s and FCN8s ("Split-Merge Pooling", Sec. 3.2): mean cross entropy over labelled pixels of the
    lattices that are drawn. SMP's are those of shrink pooling, `phases[i]` of them a split: expanding is
    indexing the labels there. FCN's scores are interpolated to full resolution, at every pixel or, with a
    `loss_stride` above 1, on one random lattice of that stride. All others, in training mode: `objective`.
    """
    if isinstance(network, SMP):
        drawn = [
            (p.tensor, _on_lattice(labels, p.offsets[0], p.stride)) for p in network.shrink(images, phases)
        ]
    elif isinstance(network, FCN32s | FCN8s):
        drawn = [_on_random_lattice(combine(network.scores(images)), labels, loss_stride)]
    else:
        return objective(network, network(images), labels, ignore_index)
    total = sum(_cross_entropy_sum(logits, truth, ignore_index) for logits, truth in drawn)
    count = sum((truth != ignore_index).sum() for _, truth in drawn)
    return total / torch.as_tensor(count).clamp(min=1)


def _on_random_lattice(scores: Tensor, labels: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Interpolated scores and labels of the same pixels."""
    size = (labels.shape[-2], labels.shape[-1])
    y, x = torch.randint(stride, (2,)).tolist()
    rows, columns = (torch.arange(o, n, stride) for o, n in zip((y, x), size, strict=True))
    in_size = (scores.shape[-2], scores.shape[-1])
    logits = bilinear_at(scores, (0, 0), in_size, size, rows, columns)
    return logits, _on_lattice(labels, (y, x), (stride, stride))


def _on_lattice(labels: Tensor, offset: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    return labels[:, offset[0] :: stride[0], offset[1] :: stride[1]]


def _cross_entropy_sum(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
