"""Xception-65 as DeepLabV3+ modifies it (Chen et al., ECCV 2018, Fig. 4), as a feature extractor.

- Deeper than Chollet's Xception (CVPR 2017): sixteen blocks in the middle flow. Every max pooling is a
  separable convolution with a stride, so that dilation can take the stride's place.
- A separable convolution is a 3x3 on each channel and a 1x1 across them, each with batch norm. In blocks with
  a shortcut a ReLU stands before it and none inside; in the last block, which has no shortcut, ReLUs follow
  both parts. That is the authors' code; the paper's text puts a ReLU behind every 3x3.
- The feature at output stride 4 is what the decoder reads in the authors' code,
  `entry_flow/block2/.../separable_conv2_pointwise`: 256 channels, batch norm without ReLU. (The first block's
  output, 128 channels, has the same stride.)
- Strides turn into dilation as in the authors' code (see `parts.atrous`), without their optional multi-grid.
- Batch norm's epsilon is 1e-3 and convolutions start from a normal distribution with deviation 0.09, cut at
  two deviations, as the authors have them. Their decay of 0.9997 is for very long training; here it is
  torch's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.parts import atrous, conv_bn, drawn


class SeparableConv(nn.Module):
    """3x3 on each channel by itself, then 1x1. ReLU before both, or with `relu_inside` after each."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, relu_inside: bool = False
    ) -> None:
        super().__init__()
        self.depthwise = conv_bn(in_channels, in_channels, 3, stride, dilation, in_channels)
        self.pointwise = conv_bn(in_channels, channels)
        self.relu_inside = relu_inside

    def forward(self, x: Tensor) -> Tensor:
        if self.relu_inside:
            return F.relu(self.pointwise(F.relu(self.depthwise(x))))
        return self.pointwise(self.depthwise(F.relu(x)))


class Block(nn.Module):
    """Three separable convolutions, the last with the stride, and a shortcut: a 1x1 convolution where the
    channels change."""

    def __init__(self, in_channels: int, channels: tuple[int, int, int], stride: int, dilation: int) -> None:
        super().__init__()
        a, b, c = channels
        self.conv1 = SeparableConv(in_channels, a, 1, dilation)
        self.conv2 = SeparableConv(a, b, 1, dilation)
        self.conv3 = SeparableConv(b, c, stride, dilation)
        self.shortcut = conv_bn(in_channels, c, 1, stride) if in_channels != c else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x)


class Xception(nn.Module):
    """N x 3 x H x W to four features N x C x ceil(H / s) x ceil(W / s). `channels` are theirs.

    `width` multiplies every channel count. Raises ValueError for an output stride other than 8, 16 and 32.
    """

    def __init__(self, width: float = 1.0, output_stride: int = 32) -> None:
        super().__init__()
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            int(c * width) for c in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        if c32 < 1:
            raise ValueError(f"Xception width is {width}: at least 1/32")
        entry1, entry2, entry3, middle, exit1, exit2 = atrous((2, 2, 2, 1, 2, 1), 2, output_stride)
        self.channels = [c256, c256, c728, c2048]
        self.conv1 = conv_bn(3, c32, 3, 2)
        self.conv2 = conv_bn(c32, c64, 3)
        self.entry1 = Block(c64, (c128, c128, c128), *entry1)
        self.entry2 = Block(c128, (c256, c256, c256), *entry2)
        self.entry3 = Block(c256, (c728, c728, c728), *entry3)
        self.middle = nn.Sequential(*(Block(c728, (c728, c728, c728), *middle) for _ in range(16)))
        self.exit1 = Block(c728, (c728, c1024, c1024), *exit1)
        self.exit2 = nn.Sequential(
            SeparableConv(c1024, c1536, *exit2, relu_inside=True),
            SeparableConv(c1536, c1536, *exit2, relu_inside=True),
            SeparableConv(c1536, c2048, *exit2, relu_inside=True),
        )
        for convolution in drawn(self):
            nn.init.trunc_normal_(convolution.weight, std=0.09, a=-0.18, b=0.18)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inside the second block of the entry flow, behind it, behind the middle flow and behind the exit
        flow: at output strides 4, 8, 16 and 32 (or no coarser than asked)."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.entry1(x)
        c2 = self.entry2.conv2(self.entry2.conv1(x))
        c3 = self.entry2.conv3(c2) + self.entry2.shortcut(x)
        c4 = self.middle(self.entry3(c3))
        return c2, c3, c4, self.exit2(self.exit1(c4))
