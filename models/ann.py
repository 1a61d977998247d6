"""Asymmetric non-local network (Zhu et al., ICCV 2019): attention whose keys are few.

- Backbone: ResNet at output stride 8.
- Keys and values are pooled to grids of 1, 3, 6 and 8 bins a side: 110 of them, whatever the
  image's size, for as many queries as pixels.
- AFNB fuses two stages: layer4 asks, layer3 answers. APNB, behind a 3x3 to 512 channels, is self
  attention; its queries and keys are one transform of the input, computed once: mmsegmentation computes it
  twice, and so moves its batch norm's running statistics twice a step (and writes it down twice).
- Query and key are 1x1 convolutions to 256 channels with batch norm and ReLU, values without; what attention
  yields goes through a 1x1 that starts as zero, is put beside the input and mixed by a last 1x1 (with batch
  norm; ReLU in APNB alone). Products are scaled by the root of the channels. All this as in the authors'
  code (MendelXu/ANN).
- Dropout behind both blocks is of whole channels, 0.1 as in mmsegmentation (46.23M parameters with ResNet-50
  and an auxiliary head); the authors' is 0.05, and their interpolation with align_corners.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.auxiliary import AuxiliaryHeads, TrainingOutput, training_output
from fullres.models.backbones.resnet import ResNet
from fullres.models.parts import conv_bn, conv_bn_relu, resize

KEY_BINS = (1, 3, 6, 8)


def pyramid(x: Tensor) -> Tensor:
    """N x C x h x w to its pooled grids, one position after the other: N x 110 x C."""
    return torch.cat([F.adaptive_avg_pool2d(x, n).flatten(2) for n in KEY_BINS], 2).transpose(1, 2)


class PyramidAttention(nn.Module):
    """Queries of `high` to keys and values of `low`: N x C x h x w to N x `out_channels` x h x w.

    Without `high_channels` queries and keys are the same transform of one input.
    """

    def __init__(
        self, low_channels: int, high_channels: int | None, key_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.key = conv_bn_relu(low_channels, key_channels)
        self.query = conv_bn_relu(high_channels, key_channels) if high_channels else None
        self.value = nn.Conv2d(low_channels, key_channels, 1)
        self.out = nn.Conv2d(key_channels, out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        key = self.key(low)
        query = key if self.query is None else self.query(high)
        rows = query.flatten(2).transpose(1, 2)
        context = F.scaled_dot_product_attention(rows, pyramid(key), pyramid(self.value(low)))
        return self.out(context.transpose(1, 2).unflatten(2, high.shape[-2:]))


class AFNB(nn.Module):
    """Asymmetric fusion non-local block: two stages, of equal size, to the channels of `high`."""

    def __init__(self, low_channels: int, high_channels: int, key_channels: int) -> None:
        super().__init__()
        self.attention = PyramidAttention(low_channels, high_channels, key_channels, high_channels)
        self.mix = conv_bn(2 * high_channels, high_channels)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.mix(torch.cat([self.attention(low, high), high], 1))


class APNB(nn.Module):
    """Asymmetric pyramid non-local block: the shape stays."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.attention = PyramidAttention(channels, None, key_channels, channels)
        self.mix = conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.attention(x, x), x], 1))


class ANN(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `TrainingOutput`.

    Attention has half of `channels`. The backbone's last two features must be of one output stride.
    """

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        channels: int = 512,
        align_corners: bool = False,
        auxiliary: AuxiliaryHeads | None = None,
    ) -> None:
        super().__init__()
        _, _, low, high = backbone.channels
        self.align_corners = align_corners
        self.backbone = backbone
        self.fusion = AFNB(low, high, channels // 2)
        self.reduce = nn.Sequential(nn.Dropout2d(0.1), *conv_bn_relu(high, channels, 3))
        self.context = APNB(channels, channels // 2)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = auxiliary

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        features = self.backbone(image)
        x = self.context(self.reduce(self.fusion(features[2], features[3])))
        logits = resize(self.classifier(x), image.shape[-2:], self.align_corners)
        return training_output(logits, features, self.auxiliary) if self.training else logits
