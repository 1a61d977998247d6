"""Auxiliary classifiers on a backbone's features, computed in training alone.

- PSPNet (Zhao et al., CVPR 2017, Sec. 4) has one, behind the fourth stage of a ResNet: stages (2,).
  SeeThroughNet (Han et al., CVPR 2022, Sec. 4.1) gives seven networks one behind each: stages (0, 1, 2, 3).
- 3x3 convolution, batch norm, ReLU, 1x1 convolution; 256 channels and dropout of whole channels before the
  last, as in PSPNet's code and in mmsegmentation, with which SeeThroughNet's figures were made. (That paper
  names no dropout.)
- Their outputs are at the features' own resolution. So they are compared with class probabilities, for which
  `outputs` is the classes and one more for ignored pixels; cross entropy takes them at the labels' size:
  `enlarge`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fullres.models.parts import conv_bn_relu, resize


class TrainingOutput(NamedTuple):
    """What a network returns in training."""

    logits: Tensor  # N x classes x H x W, the image's size
    heads: tuple[Tensor, ...]  # of the auxiliary heads, N x outputs x h x w, each at its features' size


class AuxiliaryHeads(nn.ModuleList):
    """One head for each of `stages`, which count a backbone's features from 0, the finest.

    `in_channels` are those of all features (`backbone.channels`), `outputs` those of each head.
    """

    def __init__(
        self, in_channels: Sequence[int], outputs: int, stages: Sequence[int] = (2,), channels: int = 256
    ) -> None:
        super().__init__(
            nn.Sequential(
                *conv_bn_relu(in_channels[stage], channels, 3),
                nn.Dropout2d(0.1),
                nn.Conv2d(channels, outputs, 1),
            )
            for stage in stages
        )
        self.stages = tuple(stages)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(head(features[stage]) for head, stage in zip(self, self.stages, strict=True))


def training_output(
    logits: Tensor, features: Sequence[Tensor], auxiliary: AuxiliaryHeads | None
) -> TrainingOutput:
    return TrainingOutput(logits, () if auxiliary is None else auxiliary(features))


def enlarge(heads: Sequence[Tensor], size: Sequence[int], align_corners: bool = False) -> list[Tensor]:
    """The heads' outputs at the labels' size. `align_corners` is the network's attribute of that name."""
    return [resize(head, size, align_corners) for head in heads]
