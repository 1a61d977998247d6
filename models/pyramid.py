"""The pyramid pooling module (Zhao et al., CVPR 2017, Sec. 3.2): PSPNet's, and UPerNet's on its top level.

A feature map is pooled to grids of 1 x 1, 2 x 2, 3 x 3 and 6 x 6 bins, whatever its size; bins overlap by one
element where the size is not divisible, and more where there are fewer elements than bins. Each grid goes
through a 1x1 convolution with batch norm and ReLU (the paper's dimension reduction) and back to the map's
size by bilinear interpolation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fullres.models.parts import conv_bn_relu, resize


class PyramidPooling(nn.Module):
    """N x C x h x w to the input and its pooled copies side by side, N x `channels` x h x w.

    `reduced` are the channels of each copy behind its convolution; None leaves it out (Table 1 of the paper,
    rows without DR). `maximum` pools by the maximum (MAX) instead of the mean (AVE).
    """

    def __init__(
        self,
        in_channels: int,
        reduced: int | None,
        bins: Sequence[int] = (1, 2, 3, 6),
        maximum: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        pool = nn.AdaptiveMaxPool2d if maximum else nn.AdaptiveAvgPool2d
        self.align_corners = align_corners
        self.features = nn.ModuleList(
            nn.Sequential(pool(n), *(conv_bn_relu(in_channels, reduced) if reduced else ())) for n in bins
        )
        self.channels = in_channels + len(bins) * (reduced or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        copies = [resize(feature(x), x.shape[-2:], self.align_corners) for feature in self.features]
        return torch.cat([x, *copies], 1)
