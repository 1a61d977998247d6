"""Residual networks (He et al., CVPR 2016) as feature extractors: no average pooling, no classifier.

Parameter names are torchvision's (`conv1.weight`, `layer1.0.bn1.running_mean`,
`layer2.0.downsample.0.weight`), so its published checkpoints load. Bottlenecks carry their stride on the 3x3
convolution, as torchvision's and most published weights do ("ResNet v1.5").
"""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """The features of a residual network: N x 3 x H x W to N x C x ceil(H / 32) x ceil(W / 32).

    `pool` stands between conv1 and layer1: max pooling as published unless given. `width` multiplies every
    channel count. `channels` are those of layer1 to layer4. Raises ValueError for an unknown depth.
    """

    def __init__(self, depth: int, width: float = 1.0, pool: nn.Module | None = None) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"ResNet depth is {depth}: one of {', '.join(map(str, DEPTHS))}")
        block, repeats = DEPTHS[depth]
        stem = int(64 * width)
        if stem < 1:
            raise ValueError(f"ResNet width is {width}: at least 1/64")
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.pool = pool or nn.MaxPool2d(3, 2, 1)
        self.channels = [stem * 2**i * block.expansion for i in range(4)]
        in_channels = stem
        layers = []
        for i, count in enumerate(repeats):
            out_channels, stride = self.channels[i], 1 if i == 0 else 2
            blocks = []
            for j in range(count):
                step = stride if j == 0 else 1
                downsample = None
                if step != 1 or in_channels != out_channels:
                    downsample = nn.Sequential(
                        nn.Conv2d(in_channels, out_channels, 1, step, bias=False),
                        nn.BatchNorm2d(out_channels),
                    )
                blocks.append(block(in_channels, stem * 2**i, step, downsample))
                in_channels = out_channels
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs of layer1 to layer4, at output strides 4, 8, 16 and 32."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)
