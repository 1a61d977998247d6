"""Pyramid scene parsing network (Zhao et al., CVPR 2017) and its baseline, the dilated FCN.

- Backbone: ResNet-50, -101, -152 or -269 with the deep stem at output stride 8 (Sec. 3.3, 5.1).
- Pyramid pooling of layer4 (Sec. 3.2): four grids of bins, averages, each reduced to a quarter of the
  channels (Table 1's best row; the others by `bins`, `maximum` and `reduce`). "1/N of the original one if the
  level size of pyramid is N" is read, as in the authors' code, with N the number of grids.
- Head: 3x3 convolution 4096 -> 512, batch norm, ReLU, dropout 0.1 of whole channels, 1x1 classifier. Neither
  its width nor the dropout are in the paper: they are hszhao/semseg's, the authors' own PyTorch code.
- The baseline is the same without the pooling, 3x3 from 2048. mmsegmentation's FCN has two 3x3 convolutions
  before it, whose result goes beside layer4 through the third: `deeper=True`.
- Auxiliary head behind layer3, loss weight 0.4 (Sec. 4): `AuxiliaryHeads(backbone.channels, num_classes)`.
- Interpolation is with align_corners as in semseg, which wants images of 8 n + 1 pixels a side: then a
  feature lies on every eighth pixel, the border's included. Other sizes work. mmsegmentation, which has the
  same head, interpolates without it; its stem has half the channels (32, 32, 64), so 104,544 parameters less,
  and its dilated layers start otherwise. Like that: `catalogue.build(name, classes, like="mmseg")`.
- Parameter names of the head are semseg's, and `models.publishers` renames the rest of its checkpoints.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads, TrainingOutput, training_output
from fullres.models.backbones.resnet import ResNet
from fullres.models.parts import conv_bn_relu, resize
from fullres.models.pyramid import PyramidPooling


def _head(in_channels: int, channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_bn_relu(in_channels, channels, 3), nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1)
    )


class PSPNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `TrainingOutput`."""

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        channels: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        maximum: bool = False,
        reduce: bool = True,
        align_corners: bool = True,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        in_channels = backbone.channels[3]
        self.align_corners = align_corners
        self.backbone = backbone
        self.ppm = PyramidPooling(
            in_channels, in_channels // len(bins) if reduce else None, bins, maximum, align_corners
        )
        self.cls = _head(self.ppm.channels, channels, num_classes)
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        features = self.backbone(image)
        logits = resize(self.cls(self.ppm(features[3])), image.shape[-2:], self.align_corners)
        return training_output(logits, features, self.auxiliary) if self.training else logits


class DilatedFCN(nn.Module):
    """The baseline of Tables 1, 2 and 4: PSPNet without its pooling. `deeper`: two more 3x3 convolutions."""

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        channels: int = 512,
        deeper: bool = False,
        align_corners: bool = True,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        in_channels = backbone.channels[3]
        self.align_corners = align_corners
        self.backbone = backbone
        self.before: nn.Sequential | None = None
        if deeper:
            self.before = nn.Sequential(
                conv_bn_relu(in_channels, channels, 3), conv_bn_relu(channels, channels, 3)
            )
            in_channels += channels
        self.cls = _head(in_channels, channels, num_classes)
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        features = self.backbone(image)
        x = features[3]
        if self.before is not None:
            x = torch.cat([x, self.before(x)], 1)
        logits = resize(self.cls(x), image.shape[-2:], self.align_corners)
        return training_output(logits, features, self.auxiliary) if self.training else logits
