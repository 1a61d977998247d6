"""CCNet (Huang et al., ICCV 2019): criss-cross attention, twice.

- Backbone: ResNet at output stride 8.
- A pixel attends to the H + W - 1 pixels of its row and its column; twice with the same weights,
  every pixel has seen every other.
- Queries and keys have an eighth of the channels, values all; products are not scaled. The result is added
  with a learned weight that starts as zero, as in the authors' code (speedinghzl/CCNet).
- Around it: 3x3 2048 -> 512, attention, 3x3 512 -> 512, 3x3 on that beside the backbone's feature, dropout
  0.1 of whole channels, classifier. A ReLU is behind each batch norm, and interpolation without
  align_corners, as in mmsegmentation.
- The authors' own network is `catalogue.build(name, classes, like="ccnet")`: a leaky ReLU of slope 0.01 in
  the head (their in-place batch norm's), align_corners, pooling behind the stem that rounds sizes up, and
  images in Caffe's normalisation, blue first.
- Plain products, no compiled operation: H x W x (H + W) weights an image are stored.
"""

import torch
from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads, TrainingOutput, training_output
from fullres.models.backbones.resnet import ResNet
from fullres.models.parts import conv_bn_relu, resize


class CrissCrossAttention(nn.Module):
    """N x C x H x W to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        height = x.shape[2]
        # Pixel (i, j) with row k of its column, then with column k of its row; itself in the row alone.
        itself = torch.eye(height, dtype=torch.bool, device=x.device)[:, None]
        column = torch.einsum("ncij,nckj->nijk", query, key).masked_fill(itself, float("-inf"))
        row = torch.einsum("ncij,ncik->nijk", query, key)
        column, row = torch.cat([column, row], 3).softmax(3).split([height, x.shape[3]], 3)
        context = torch.einsum("nijk,nckj->ncij", column, value) + torch.einsum("nijk,ncik->ncij", row, value)
        return self.gamma * context + x


class CCNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `TrainingOutput`. `slope`: that of its
    head's ReLUs for negative values."""

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        channels: int = 512,
        recurrence: int = 2,
        align_corners: bool = False,
        slope: float = 0.0,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        in_channels = backbone.channels[3]
        self.recurrence = recurrence
        self.align_corners = align_corners
        self.backbone = backbone
        self.before = conv_bn_relu(in_channels, channels, 3)
        self.attention = CrissCrossAttention(channels)
        self.behind = conv_bn_relu(channels, channels, 3)
        self.join = conv_bn_relu(in_channels + channels, channels, 3)
        if slope:
            for row in (self.before, self.behind, self.join):
                row[2] = nn.LeakyReLU(slope)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        features = self.backbone(image)
        x = self.before(features[3])
        for _ in range(self.recurrence):
            x = self.attention(x)
        x = self.join(torch.cat([features[3], self.behind(x)], 1))
        logits = resize(self.classifier(x), image.shape[-2:], self.align_corners)
        return training_output(logits, features, self.auxiliary) if self.training else logits
