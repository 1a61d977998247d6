"""The baselines of "Split-Merge Pooling", Sec. 4.1: FCN32s and FCN8s (Long et al., CVPR 2015) on ResNets.

FCN32s: "removing the average pooling and fully connected layer and replacing them by a 1x1 convolutional
layer which maps the output channels of layer4 to the number of semantic classes"; predictions at output
stride 32 are "upsampled to full resolution using bilinear interpolation".

FCN8s: "two extra 1x1 convolution layers to map the features of layer2 and layer3"; "the output of the network
and these new convolutions are resized to the same size" (that of layer2, output stride 8) "and are added
together". All three classifiers have a bias: 11.186M and 11.193M parameters for ResNet-18 (Tables 1 and 2).

Interpolation is with align_corners=False, the field's default.
"""

import torch
from torch import Tensor, nn

from fullres.models.backbones.resnet import ResNet
from fullres.models.full_resolution.split_merge import FullResolution, split_merge
from fullres.models.lattices import Lattice, LatticeOutput
from fullres.models.parts import resize
from fullres.ops.resample import bilinear_at


def combine(scores: tuple[Tensor, ...]) -> Tensor:
    """The scores of all output strides, resized to the finest and added."""
    fine, *coarser = scores
    for score in coarser:
        fine = fine + resize(score, fine.shape[-2:])
    return fine


class _Scores(nn.Module):
    """A network's classifiers' outputs before interpolation."""

    def __init__(self, network: "FCN32s") -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.network.scores(image)


class FCN32s(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W. In training they are interpolated at every pixel, or with
    a `loss_stride` above 1 on one random lattice of that stride."""

    def __init__(self, backbone: ResNet, num_classes: int) -> None:
        super().__init__()
        self.loss_stride = 1
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[3], num_classes, 1)

    def scores(self, image: Tensor) -> tuple[Tensor, ...]:
        """The classifiers' outputs before interpolation, the finest output stride first: (at 32,)."""
        return (self.classifier(self.backbone(image)[3]),)

    def strided(self) -> nn.Module:
        """N x 3 x H x W to `scores`."""
        return _Scores(self)

    def full_resolution(self) -> FullResolution:
        """The tree whose first leaf has the scores; shares this network's parameters."""
        tree = split_merge(self.strided())
        tree.every_phase = False
        return tree

    def forward(self, image: Tensor) -> Tensor | LatticeOutput:
        size = (image.shape[-2], image.shape[-1])
        scores = combine(self.scores(image))
        if not self.training:
            return resize(scores, size)
        stride = (self.loss_stride, self.loss_stride)
        y, x = torch.randint(self.loss_stride, (2,)).tolist()
        rows, columns = (torch.arange(o, n, s) for o, n, s in zip((y, x), size, stride, strict=True))
        within = (scores.shape[-2], scores.shape[-1])
        logits = bilinear_at(scores, (0, 0), within, size, rows, columns)
        return LatticeOutput((Lattice(logits, (y, x), stride),))


class FCN8s(FCN32s):
    """As FCN32s, with classifiers of finer features too."""

    def __init__(self, backbone: ResNet, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.classifier8 = nn.Conv2d(backbone.channels[1], num_classes, 1)
        self.classifier16 = nn.Conv2d(backbone.channels[2], num_classes, 1)

    def scores(self, image: Tensor) -> tuple[Tensor, ...]:
        """(at 8, at 16, at 32)."""
        _, c3, c4, c5 = self.backbone(image)
        return self.classifier8(c3), self.classifier16(c4), self.classifier(c5)
