"""What training minimises: each paper's objective, and the module that computes it from images and labels.

Logits are N x C x H x W at the labels' size, of any float dtype; labels are N x H x W int64, class ids 0..C-1
and `ignore_index`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.auxiliary import TrainingOutput, enlarge
from fullres.models.catalogue import Loss
from fullres.models.checkpointing import blocks_checkpointed
from fullres.models.downsampler import SamplingOutput
from fullres.models.lattices import Lattice, LatticeOutput
from fullres.models.ocrnet import OCRNetOutput
from fullres.models.seethrough import HEAD_SCALES, SeeThroughNetOutput
from fullres.models.spgnet import SPGNetOutput
from fullres.models.unet import project
from fullres.ops.class_probability import class_probability_tensor
from fullres.ops.losses import (
    class_probability_kl,
    cross_entropy,
    ohem_cross_entropy,
    sampling_energy,
    sampling_tensor_loss,
)
from fullres.ops.nearest import nearest_at_grid
from fullres.ops.replicas import Group, counted_over, divisor
from fullres.ops.rmi import binary_cross_entropy, rmi_loss
from fullres.ops.sampling_solve import sampling_tensor, uniform_tensor

_AUXILIARY = 0.4  # PSPNet, Sec. 5.1
_PER_SCALE = 0.05  # SeeThroughNet, gamma of Eq. 7

Output = LatticeOutput | TrainingOutput | OCRNetOutput | SPGNetOutput | SeeThroughNetOutput | SamplingOutput


class SegmentationLoss(nn.Module):
    """A network and its objective as one module, which is what optimizers, engines and pipelines wrap:
    images N x 3 x H x W (normalised) and labels N x H x W to a scalar with gradient. With a `group` of
    replicas the mean of their scalars is that of the whole batch (`ops.replicas`). `checkpointed`: see
    `models.checkpointing`. `autocast`: the float type that layers compute in where they can; None: fp32.

    All pixels ignored: 0, with zero gradient, but for class probabilities, where the ignored share is
    predicted too.
    """

    def __init__(
        self,
        network: nn.Module,
        ignore_index: int = 255,
        group: Group | None = None,
        checkpointed: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.group = group
        self.autocast = autocast
        self.checkpointed = checkpointed
        self.network = network
        self.ignore_index = ignore_index
        self.align_corners: bool = getattr(network, "align_corners", False)  # of its auxiliary heads
        self.loss: Loss | None = getattr(network, "loss", None)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        sampled = 0.0
        if (sampler := getattr(self.network, "sampler", None)) is not None:
            images, labels, sampled = sampler(images, labels, self.ignore_index)
        with self.casting(images), blocks_checkpointed(self.network) if self.checkpointed else nullcontext():
            output = self.network(images)
        return self.of(output, labels) + sampled

    def of(self, output: Output, labels: Tensor) -> Tensor:
        """What the network returned, to the scalar."""
        with self.casting(labels), counted_over(self.group):
            return objective(output, labels, self.ignore_index, self.align_corners, self.loss)

    def casting(self, like: Tensor) -> AbstractContextManager[Any]:
        """In which layers compute in `autocast`, on the device of `like`."""
        return nullcontext() if self.autocast is None else torch.autocast(like.device.type, self.autocast)


def objective(
    output: Output,
    labels: Tensor,
    ignore_index: int = 255,
    align_corners: bool = False,
    loss: Loss | None = None,
) -> Tensor:
    """The scalar that training minimises, with gradient, by what a network of the catalogue returns in
    training: the named tuples of `models/`.

    - SMP, FCN32s and FCN8s ("Split-Merge Pooling", Sec. 3.2): mean cross entropy over the labelled pixels of
      the lattices that were drawn.
    - Logits alone (HRNet, U-Net): cross entropy.
    - Auxiliary heads, PSPNet's one and others' (Sec. 4): 0.4 times their cross entropy at the labels' size.
      Heads with a channel for ignored pixels: 0.4 times the KL losses of class probabilities, which are
      computed here (SeeThroughNet, Sec. 4.1).
    - OCRNet: the soft regions too, with cross entropy and 0.4.
    - SPGNet: cross entropy with hard example mining, of all stages (Sec. 3.4, 4.4).
    - SeeThroughNet: RMI, class probabilities and both resolutions (Eq. 7).
    - A downsampler: squared distance from the label maps' sampling tensors.

    `align_corners`: how auxiliary heads are resized, the network's attribute of that name. `loss`: what the
    prediction is trained by in place of that, one of the network's `losses` in the catalogue: "ohem" or
    "cross_entropy". SPGNet's is that of all stages; auxiliary heads of others keep their cross entropy.
    SeeThroughNet without RMI has the cross entropy of Eq. 5 alone, of each class against the rest.
    "energy": a downsampler minimises what the label maps' sampling tensors do.
    """
    ohem = loss == "ohem"
    match output:
        case LatticeOutput(lattices):
            return _of_lattices(lattices, labels, ignore_index)
        case TrainingOutput(logits, heads):
            return _with_heads(logits, (), heads, labels, ignore_index, align_corners, ohem)
        case OCRNetOutput(logits, soft_regions, heads):
            return _with_heads(logits, (soft_regions,), heads, labels, ignore_index, align_corners, ohem)
        case SPGNetOutput(stages):
            return spgnet_objective(stages, labels, loss != "cross_entropy", ignore_index)
        case SeeThroughNetOutput(logits, half, full, heads):
            targets = _shares(labels, HEAD_SCALES[: len(heads)], logits.shape[1], ignore_index)
            rmi = loss != "cross_entropy"
            return seethroughnet_objective(
                logits, half, full, heads, targets, labels, output.auxiliary, ignore_index, rmi
            )
        case SamplingOutput():
            return downsampler_objective(output, labels, ignore_index, loss == "energy")


def _of_lattices(lattices: Sequence[Lattice], labels: Tensor, ignore_index: int) -> Tensor:
    truths = [lattice.of(labels) for lattice in lattices]
    total = sum(
        F.cross_entropy(lattice.logits.float(), truth, ignore_index=ignore_index, reduction="sum")
        for lattice, truth in zip(lattices, truths, strict=True)
    )
    count = sum((truth != ignore_index).sum() for truth in truths)
    return total / divisor(torch.as_tensor(count))


def _with_heads(
    logits: Tensor,
    own: Sequence[Tensor],
    heads: Sequence[Tensor],
    labels: Tensor,
    ignore_index: int,
    align_corners: bool,
    ohem: bool,
) -> Tensor:
    """`own`: auxiliary logits at the labels' size."""
    classes = logits.shape[1]
    if heads and heads[0].shape[1] == classes + 1:
        scales = [_scale(head, labels) for head in heads]
        targets = _shares(labels, scales, classes, ignore_index)
        return class_probability_objective(
            logits, heads, targets, labels, own, ignore_index=ignore_index, ohem=ohem
        )
    enlarged = enlarge(heads, labels.shape[-2:], align_corners)
    return auxiliary_objective(logits, [*own, *enlarged], labels, ignore_index, ohem)


def _scale(head: Tensor, labels: Tensor) -> int:
    """Pixels to a side of a head's cell: features have ceil(side / scale) elements, scale a power of two."""
    sides, cells = labels.shape[-2:], head.shape[-2:]
    return next(s for s in (4, 8, 16, 32) if all(-(-n // s) == m for n, m in zip(sides, cells, strict=True)))


def _shares(labels: Tensor, scales: Sequence[int], classes: int, ignore_index: int) -> list[Tensor]:
    by_scale = {
        s: class_probability_tensor(labels, s, classes, ignore_index=ignore_index) for s in set(scales)
    }
    return [by_scale[s] for s in scales]


def auxiliary_objective(
    logits: Tensor, auxiliary: Sequence[Tensor], labels: Tensor, ignore_index: int = 255, ohem: bool = False
) -> Tensor:
    """Cross entropy, with `ohem` over the hardest pixels alone, and 0.4 times the cross entropy of each
    auxiliary head, over all pixels.

    PSPNet (Sec. 4 and 5.1) has one, after the fourth stage; OCRNet one, the soft regions; SeeThroughNet's
    baselines with up-sampled logits four (Sec. 4.1).
    """
    loss = ohem_cross_entropy if ohem else cross_entropy
    heads = [cross_entropy(head, labels, ignore_index) for head in auxiliary]
    return loss(logits, labels, ignore_index=ignore_index) + _AUXILIARY * sum(heads)


def spgnet_objective(
    stages: Sequence[Tensor], labels: Tensor, ohem: bool = True, ignore_index: int = 255
) -> Tensor:
    """SPGNet, Sec. 3.4: the sum of the losses of all stages' predictions, the last one's like the others'.

    `ohem`: hard examples at every stage (Sec. 4.4), or all pixels.
    """
    loss = ohem_cross_entropy if ohem else cross_entropy
    return torch.stack([loss(logits, labels, ignore_index=ignore_index) for logits in stages]).sum()


def class_probability_objective(
    logits: Tensor,
    heads: Sequence[Tensor],
    targets: Sequence[Tensor],
    labels: Tensor,
    auxiliary: Sequence[Tensor] = (),
    weight: float = _AUXILIARY,
    ignore_index: int = 255,
    ohem: bool = False,
) -> Tensor:
    """Class probabilities for any network's auxiliary heads, four in SeeThroughNet's Sec. 4.1: the network's
    cross entropy, and the heads' KL losses.

    The paper gives these networks no weights: 0.4 is what the same heads have with cross entropy, which the
    KL loss takes the place of.

    Args:
        heads: logits of the auxiliary heads at their own resolution, as `class_probability_kl` takes them.
        targets: class probabilities at the scale of each head.
        auxiliary: logits at the labels' size that keep their cross entropy: OCRNet's soft regions.
        ohem: the network's cross entropy is over the hardest pixels.
    """
    own = auxiliary_objective(logits, auxiliary, labels, ignore_index, ohem)
    return own + weight * _decoder(heads, targets)


def seethroughnet_objective(
    joint: Tensor,
    half: Tensor,
    full: Tensor,
    heads: Sequence[Tensor],
    targets: Sequence[Tensor],
    labels: Tensor,
    auxiliary: Tensor | None = None,
    ignore_index: int = 255,
    rmi: bool = True,
) -> Tensor:
    """SeeThroughNet, Eq. 7: RMI of the final prediction, KL losses in the decoder, and 0.05 times the cross
    entropy of the two resolutions' own predictions.

    Cross entropies are of each class against the rest, as in the two-scale network that Eq. 7 builds on:
    `joint` is a mixture of `half` and `full`, and RMI takes it through a sigmoid.

    Args:
        joint, half, full: N x C x H x W logits: both resolutions, half resolution (interpolated), full.
        heads: the decoder's coarse predictions, three at each resolution, at their own size.
        targets: class probabilities of those sizes. With scales 4, 8, 16 the heads at full resolution take
            those of (4, 8, 16) and the heads at half resolution those of (8, 16, 32).
        auxiliary: where the OCR head has an auxiliary prediction of its own, its N x C x H x W logits from
            both resolutions, with weight 0.4. Not in Eq. 7, but in the network that it builds on, whose
            objective this is without `heads`.
        rmi: RMI of `joint`, or its cross entropy alone.
    """
    main = rmi_loss if rmi else binary_cross_entropy
    loss = main(joint, labels, ignore_index) + _decoder(heads, targets)
    for logits in (half, full):
        loss = loss + _PER_SCALE * binary_cross_entropy(logits, labels, ignore_index)
    if auxiliary is not None:
        loss = loss + _AUXILIARY * binary_cross_entropy(auxiliary, labels, ignore_index)
    return loss


def _decoder(heads: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor | float:
    """Eq. 6."""
    return sum(class_probability_kl(*pair) for pair in zip(heads, targets, strict=True))


def downsampler_objective(
    output: SamplingOutput, labels: Tensor, ignore_index: int = 255, energy: bool = False
) -> Tensor:
    """ "Learning Downsampling Near Semantic Boundaries", Sec. 3.1: squared L2 distance of the prediction from
    the tensor that minimises Eq. 2 under Eq. 3 for these label maps; or Eq. 2 itself, of the prediction
    projected on Eq. 3. Targets are computed here, on one core of the host, at a third of a millisecond for a
    label map of two megapixels.
    """
    phi, classes = output.phi, output.target_classes or None
    if labels.is_meta:  # somebody asks for memory, not for the loss
        return sampling_tensor_loss(phi, torch.zeros_like(phi))
    grid = (phi.shape[1], phi.shape[2])
    maps = [label.to("cpu", torch.uint8).numpy() for label in labels]
    if not energy:
        targets = [sampling_tensor(m, grid, output.smoothness, ignore_index, classes) for m in maps]
        return sampling_tensor_loss(phi, _stacked(targets, phi))
    nearest = []
    for m in maps:
        found = nearest_at_grid(m, grid, ignore_index, classes)
        relative = None if found is None else found / np.maximum(np.subtract(m.shape, 1), 1)
        nearest.append(uniform_tensor(*grid) if relative is None else relative)
    return sampling_energy(project(phi), _stacked(nearest, phi), output.smoothness)


def _stacked(tensors: Sequence[np.ndarray], like: Tensor) -> Tensor:
    return torch.from_numpy(np.stack(tensors)).to(like.device, torch.float32)
