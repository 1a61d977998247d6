"""Each paper's objective, found by what the network returns in training: the named tuples of `models/`."""

from collections.abc import Sequence

from torch import Tensor, nn

from fullres.models.auxiliary import TrainingOutput, enlarge
from fullres.models.ocrnet import OCRNetOutput
from fullres.models.seethrough import HEAD_SCALES, SeeThroughNetOutput
from fullres.models.spgnet import SPGNetOutput
from fullres.ops.class_probability import class_probability_tensor
from fullres.ops.losses import (
    auxiliary_objective,
    class_probability_objective,
    cross_entropy,
    seethroughnet_objective,
    spgnet_objective,
)

Output = Tensor | TrainingOutput | OCRNetOutput | SPGNetOutput | SeeThroughNetOutput


def objective(network: nn.Module, output: Output, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The scalar that training of `network` minimises, with gradient.

    - Logits, and U-Net's: cross entropy.
    - Auxiliary heads, PSPNet's one and others' (Sec. 4): 0.4 times their cross entropy at the labels' size.
      Heads with a channel for ignored pixels: 0.4 times the KL losses of class probabilities, which are
      computed here (SeeThroughNet, Sec. 4.1).
    - OCRNet: the soft regions too, with cross entropy and 0.4.
    - SPGNet: cross entropy with hard example mining, of all stages (Sec. 3.4, 4.4).
    - SeeThroughNet: RMI, class probabilities and both resolutions (Eq. 7).

    Args:
        output: what `network` returned in training for images N x 3 x H x W; logits of any float dtype.
        labels: N x H x W int64, class ids or `ignore_index`.
    """
    match output:
        case Tensor():
            return cross_entropy(output, labels, ignore_index)
        case TrainingOutput(logits, ()):
            return cross_entropy(logits, labels, ignore_index)
        case TrainingOutput(logits, heads):
            return _with_heads(network, logits, (), heads, labels, ignore_index)
        case OCRNetOutput(logits, soft_regions, heads):
            return _with_heads(network, logits, (soft_regions,), heads, labels, ignore_index)
        case SPGNetOutput(stages):
            return spgnet_objective(stages, labels, ignore_index=ignore_index)
        case SeeThroughNetOutput(logits, half, full, heads):
            targets = _shares(labels, HEAD_SCALES[: len(heads)], logits.shape[1], ignore_index)
            return seethroughnet_objective(
                logits, half, full, heads, targets, labels, output.auxiliary, ignore_index
            )


def _with_heads(
    network: nn.Module,
    logits: Tensor,
    own: Sequence[Tensor],
    heads: Sequence[Tensor],
    labels: Tensor,
    ignore_index: int,
) -> Tensor:
    """`own`: auxiliary logits at the labels' size."""
    classes = logits.shape[1]
    if heads and heads[0].shape[1] == classes + 1:
        scales = [_scale(head, labels) for head in heads]
        targets = _shares(labels, scales, classes, ignore_index)
        return class_probability_objective(logits, heads, targets, labels, own, ignore_index=ignore_index)
    align_corners: bool = network.align_corners  # type: ignore[assignment]
    enlarged = enlarge(heads, labels.shape[-2:], align_corners)
    return auxiliary_objective(logits, [*own, *enlarged], labels, ignore_index)


def _scale(head: Tensor, labels: Tensor) -> int:
    """Pixels to a side of a head's cell: features have ceil(side / scale) elements, scale a power of two."""
    sides, cells = labels.shape[-2:], head.shape[-2:]
    return next(s for s in (4, 8, 16, 32) if all(-(-n // s) == m for n, m in zip(sides, cells, strict=True)))


def _shares(labels: Tensor, scales: Sequence[int], classes: int, ignore_index: int) -> list[Tensor]:
    by_scale = {
        s: class_probability_tensor(labels, s, classes, ignore_index=ignore_index) for s in set(scales)
    }
    return [by_scale[s] for s in scales]
