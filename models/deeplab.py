"""DeepLabV3+ (Chen et al., ECCV 2018): spatial pyramid of atrous convolutions, and a light decoder.

- Backbone: Xception-65, ResNet or MobileNetV2 at output stride 16 or 8.
- Atrous spatial pyramid pooling of the last feature: 1x1, three 3x3 with dilation 6, 12, 18 at output stride
  16 and 12, 24, 36 at 8 (`rates`), and the image's mean through a 1x1; 256 channels each, then a projection.
- Decoder (Fig. 2, Sec. 4.1): the result at output stride 4, beside the first feature reduced to 48 channels
  by a 1x1; two 3x3 convolutions to 256, 1x1 classifier.
- The 3x3 convolutions are separable, in pyramid and decoder, as in the paper's best networks (Table 5, with
  SC), with batch norm and ReLU behind both parts as in the authors' code; `separable=False` has plain ones.
- The defaults are the authors' (tensorflow/models, research/deeplab). mmsegmentation's network, the one that
  SeeThroughNet is compared with, has twice the channels and projects by a plain 3x3:
  `channels=512, projection=3, rates=(12, 24, 36)` on a ResNet at output stride 8, 43.59M parameters with
  ResNet-50 and an auxiliary head. `catalogue.build(name, classes, like="mmseg")` is that, with all that its
  ResNet and MobileNetV2 have otherwise.
- Dropout 0.1 of whole channels before the classifier is mmsegmentation's; the authors drop single values
  behind the projection. Interpolation is without align_corners; the authors' is with it.
"""

import torch
from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads, TrainingOutput, training_output
from fullres.models.backbones.mobilenet import MobileNetV2
from fullres.models.backbones.resnet import ResNet
from fullres.models.backbones.xception import Xception
from fullres.models.parts import conv_bn_relu, resize

LOW_LEVEL = 48


def _conv3x3(in_channels: int, channels: int, dilation: int, separable: bool) -> nn.Sequential:
    if not separable:
        return conv_bn_relu(in_channels, channels, 3, 1, dilation)
    each = conv_bn_relu(in_channels, in_channels, 3, 1, dilation, in_channels)
    return nn.Sequential(*each, *conv_bn_relu(in_channels, channels))


class ASPP(nn.Module):
    """N x C x h x w to its views of five reaches side by side, N x 5 channels x h x w: the whole image, the
    pixel, three rates."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: tuple[int, int, int],
        separable: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(in_channels, channels))
        self.pixel = conv_bn_relu(in_channels, channels)
        self.atrous = nn.ModuleList(_conv3x3(in_channels, channels, rate, separable) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        image = resize(self.image(x), x.shape[-2:], self.align_corners)
        return torch.cat([image, self.pixel(x), *(branch(x) for branch in self.atrous)], 1)


class DeepLabV3Plus(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `TrainingOutput`.

    `projection` is the size of the kernel behind the pyramid, 1 or 3.
    """

    def __init__(
        self,
        backbone: ResNet | Xception | MobileNetV2,
        num_classes: int,
        channels: int = 256,
        rates: tuple[int, int, int] = (6, 12, 18),
        separable: bool = True,
        projection: int = 1,
        align_corners: bool = False,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        fine, _, _, coarse = backbone.channels
        self.align_corners = align_corners
        self.backbone = backbone
        self.aspp = ASPP(coarse, channels, rates, separable, align_corners)
        self.projection = conv_bn_relu(5 * channels, channels, projection)
        self.low_level = conv_bn_relu(fine, LOW_LEVEL)
        self.decoder = nn.Sequential(
            _conv3x3(channels + LOW_LEVEL, channels, 1, separable),
            _conv3x3(channels, channels, 1, separable),
        )
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        features = self.backbone(image)
        fine = self.low_level(features[0])
        coarse = resize(self.projection(self.aspp(features[3])), fine.shape[-2:], self.align_corners)
        x = self.decoder(torch.cat([coarse, fine], 1))
        logits = resize(self.classifier(x), image.shape[-2:], self.align_corners)
        return training_output(logits, features, self.auxiliary) if self.training else logits
