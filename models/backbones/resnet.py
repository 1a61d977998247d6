"""Residual networks (He et al., CVPR 2016) as feature extractors: no average pooling, no classifier.

- Parameter names are torchvision's (`conv1.weight`, `layer1.0.bn1.running_mean`,
  `layer2.0.downsample.0.weight`), so its published checkpoints load.
- Bottlenecks carry their stride on the 3x3 convolution, as torchvision's and most published weights do
  ("ResNet v1.5").
- The deep stem of PSPNet (Zhao et al., CVPR 2017; "v1c") is three 3x3 convolutions with 64, 64 and 128
  channels in place of the 7x7 one; names are those of its authors (hszhao/semseg).
- Depth 269 is PSPNet's (Sec. 5.2).
- At output stride 8, layer3 and layer4 trade their stride for dilation as in PSPNet's code: 2 on every 3x3 of
  layer3, 4 on every 3x3 of layer4. (At 16 it is layer4 alone, with 2.) mmsegmentation and timm leave the
  first block of a layer at the dilation before it: `contract_dilation`, which is mmsegmentation's word.
- mmsegmentation's deep stem has half the channels, 32, 32 and 64: `stem_channels=64`, its last ones.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.parts import conv_bn, kaiming


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, and a shortcut."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


Block = type[BasicBlock] | type[Bottleneck]

DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    269: (Bottleneck, (3, 30, 48, 8)),
}


def residual_layer(
    block: Block,
    in_channels: int,
    width: int,
    count: int,
    stride: int = 1,
    dilation: int = 1,
    first_dilation: int | None = None,
) -> nn.Sequential:
    """`count` blocks of `width * block.expansion` channels. The first has the stride, a dilation of its own
    if one is given, and a 1x1 convolution for its shortcut where size or channels change."""
    channels = width * block.expansion
    blocks = []
    for i in range(count):
        step = stride if i == 0 else 1
        changes = step != 1 or in_channels != channels
        downsample = conv_bn(in_channels, channels, 1, step) if changes else None
        own = first_dilation if i == 0 and first_dilation is not None else dilation
        blocks.append(block(in_channels, width, step, own, downsample))
        in_channels = channels
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """The features of a residual network: N x 3 x H x W to N x C x ceil(H / 32) x ceil(W / 32), or / 16, / 8.

    `width` multiplies every channel count; `channels` are those of layer1 to layer4. `pool` stands between
    the stem and layer1: max pooling as published unless given. `stem_channels` are the last of a deep stem,
    whose first two convolutions have half as many: 128 unless given, times `width` as all others.
    `contract_dilation`: the first block of a dilated layer keeps the dilation before it. Raises ValueError
    for a depth, width or output stride that does not exist.
    """

    # What published checkpoints hold beside the features, by prefix of the key.
    not_features: ClassVar = ("fc.",)

    def __init__(
        self,
        depth: int,
        width: float = 1.0,
        pool: nn.Module | None = None,
        output_stride: int = 32,
        deep_stem: bool = False,
        stem_channels: int = 128,
        contract_dilation: bool = False,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"ResNet depth is {depth}: one of {', '.join(map(str, DEPTHS))}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"ResNet output stride is {output_stride}: one of 8, 16, 32")
        block, repeats = DEPTHS[depth]
        base, stem = int(64 * width), int(stem_channels // 2 * width)
        if min(base, stem) < 1:
            raise ValueError(f"ResNet width is {width}: at least 1/{min(64, stem_channels // 2)}")
        self.deep_stem = deep_stem
        if deep_stem:
            self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(stem)
            self.conv2 = nn.Conv2d(stem, stem, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(stem)
            self.conv3 = nn.Conv2d(stem, stem * 2, 3, 1, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(stem * 2)
        else:
            self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(base)
        self.pool = pool or nn.MaxPool2d(3, 2, 1)
        self.channels = [base * 2**i * block.expansion for i in range(4)]
        in_channels = [stem * 2 if deep_stem else base, *self.channels]
        layers = []
        for i, count in enumerate(repeats):
            dilation = max(1, 4 * 2**i // output_stride)
            stride = 1 if i == 0 or dilation > 1 else 2
            first = max(1, dilation // 2) if contract_dilation else dilation
            layers.append(residual_layer(block, in_channels[i], base * 2**i, count, stride, dilation, first))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        kaiming(self)

    def stem(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to output stride 4."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.deep_stem:
            x = F.relu(self.bn2(self.conv2(x)))
            x = F.relu(self.bn3(self.conv3(x)))
        return self.pool(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs of layer1 to layer4, at output strides 4, 8, 16 and 32 (or no coarser than asked)."""
        c2 = self.layer1(self.stem(x))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)
