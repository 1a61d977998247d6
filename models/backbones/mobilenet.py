"""MobileNetV2 (Sandler et al., CVPR 2018) as a feature extractor.

- A block widens its input six times by a 1x1 convolution, filters each channel by itself with a 3x3, and
  narrows again by a 1x1 without ReLU; equal shapes are joined by a shortcut (Tables 1 and 2 of the paper).
- Parameter names and the start of training are torchvision's (`features.2.conv.0.0.weight`), so its published
  checkpoint loads.
- The last 1x1 convolution to 1280 channels (`features.18`) belongs to the classifier, as DeepLab takes it:
  the features are the last block's, 320 channels.
- Below an output stride of 32, strides turn into dilation as in DeepLab's code (see `parts.atrous`).
  mmsegmentation dilates the first block of a stage alone, by all strides given up, its own among them:
  `dilate_first`.
- `width` is the paper's width multiplier; channel counts stay multiples of eight, as its authors round them.
"""

from typing import ClassVar

from torch import Tensor, nn

from fullres.models.parts import atrous, conv_bn, kaiming

# Table 2: expansion t, channels c, number of blocks n, stride s of the first of them.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_BEFORE_STRIDE = (3, 6, 13, 17)  # blocks; the last one stands before the classifier


def round_to_eight(channels: float) -> int:
    """The nearest multiple of eight that is no more than 10 % below, and at least eight."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 on each channel, 1x1 down."""

    def __init__(
        self, in_channels: int, channels: int, expansion: int, stride: int, dilation: int, shortcut: bool
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        up = [nn.Sequential(*conv_bn(in_channels, hidden), nn.ReLU6())] if expansion > 1 else []
        each = nn.Sequential(*conv_bn(hidden, hidden, 3, stride, dilation, hidden), nn.ReLU6())
        self.conv = nn.Sequential(*up, each, *conv_bn(hidden, channels))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def _first_dilated(placed: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Strides and dilations of all blocks, with the dilation of a stage's last block in its first alone."""
    result: list[tuple[int, int]] = []
    for _, _, count, _ in STAGES:
        stride, dilation = placed[len(result)][0], placed[len(result) + count - 1][1]
        result += [(stride, dilation), *[(1, 1)] * (count - 1)]
    return result


class MobileNetV2(nn.Module):
    """N x 3 x H x W to four features N x C x ceil(H / s) x ceil(W / s). `channels` are theirs.

    `dilate_first`: of a stage behind strides given up, only the first block is dilated. Raises
    ValueError for an output stride other than 8, 16 and 32.
    """

    # What published checkpoints hold beside the features, by prefix of the key.
    not_features: ClassVar = ("features.18.", "classifier.")

    def __init__(self, width: float = 1.0, output_stride: int = 32, dilate_first: bool = False) -> None:
        super().__init__()
        before = round_to_eight(32 * width)
        blocks: list[nn.Module] = [nn.Sequential(*conv_bn(3, before, 3, 2), nn.ReLU6())]
        rows = [(t, round_to_eight(c * width), s if i == 0 else 1) for t, c, n, s in STAGES for i in range(n)]
        placed = atrous([s for _, _, s in rows], 2, output_stride)
        if dilate_first:
            placed = _first_dilated(placed)
        for (expansion, channels, own_stride), (stride, dilation) in zip(rows, placed, strict=True):
            # Narrow networks have equal channels on both sides of a stride: no shortcut, even if given up.
            shortcut = own_stride == 1 and before == channels
            blocks.append(InvertedResidual(before, channels, expansion, stride, dilation, shortcut))
            before = channels
        self.features = nn.Sequential(*blocks)
        self.channels = [rows[i - 1][1] for i in LAST_BEFORE_STRIDE]
        kaiming(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """At output strides 4, 8, 16 and 32 (or no coarser than asked)."""
        features = []
        for i, block in enumerate(self.features):
            x = block(x)
            if i in LAST_BEFORE_STRIDE:
                features.append(x)
        c2, c3, c4, c5 = features
        return c2, c3, c4, c5
