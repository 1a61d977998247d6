"""DMNet (He et al., ICCV 2019): filters of several sizes, made from the image itself.

- Backbone: ResNet at output stride 8.
- Four dynamic convolutional modules side by side, k = 1, 3, 5, 7. Each reduces the last feature to
  512 channels, and filters each of them by a k x k filter of its own, that is the feature pooled to k x k and
  brought to 512 channels by a 1x1; batch norm and ReLU behind.
- The four beside the feature, 3x3 to 512, dropout 0.1 of whole channels, 1x1 classifier.
- This is mmsegmentation's head (53.18M parameters with ResNet-50 and an auxiliary head): its option of a 1x1
  behind each module is off there, and the filters are not normalised.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads, TrainingOutput, training_output
from fullres.models.backbones.resnet import ResNet
from fullres.models.parts import conv_bn_relu, resize


class DynamicConvolution(nn.Module):
    """N x C x h x w to N x `channels` x h x w, each image and channel filtered by its own `kernel` (odd)."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.filters = nn.Conv2d(in_channels, channels, 1)
        self.reduce = conv_bn_relu(in_channels, channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        filters = self.filters(F.adaptive_avg_pool2d(x, self.kernel))
        x = self.reduce(x)
        # One group for each channel of each image: the batch as channels of one image.
        n, c, _, _ = x.shape
        out = F.conv2d(
            x.flatten(0, 1)[None],
            filters.flatten(0, 1)[:, None],
            padding=self.kernel // 2,
            groups=n * c,
        )
        return F.relu(self.norm(out.unflatten(1, (n, c))[0]))


class DMNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `TrainingOutput`."""

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        channels: int = 512,
        kernels: tuple[int, ...] = (1, 3, 5, 7),
        align_corners: bool = False,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        in_channels = backbone.channels[3]
        self.align_corners = align_corners
        self.backbone = backbone
        self.scales = nn.ModuleList(DynamicConvolution(in_channels, channels, k) for k in kernels)
        self.join = conv_bn_relu(in_channels + len(kernels) * channels, channels, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        features = self.backbone(image)
        x = self.join(torch.cat([features[3], *(scale(features[3]) for scale in self.scales)], 1))
        logits = resize(self.classifier(x), image.shape[-2:], self.align_corners)
        return training_output(logits, features, self.auxiliary) if self.training else logits
