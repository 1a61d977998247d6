"""U-Net (Ronneberger et al., MICCAI 2015), and two of them stacked that predict where to sample an image
("Efficient Segmentation: Learning Downsampling Near Semantic Boundaries", Marin et al., ICCV 2019, Fig. 6).

U-Net, the base network of that paper:

- Five levels of 64 to 1024 channels, two 3x3 convolutions each; 2x2 max pooling down, 2x2 transposed
  convolution up, the level's feature beside it.
- Convolutions are padded, so that logits are of the image's size, and have batch norm: the paper says so of
  the stacked ones, the original has neither. Odd lengths are rounded up on the way down, and cut on the way
  up.

The stacked ones, an image of 32 x 32 to a sampling tensor of 8 x 8 points:

- One convolution a block, padded, with batch norm; 256 channels "in all layers except the first and the last
  one". The first has 64 here, as U-Net's, the last 2.
- Depths are in the figure, not in the text. Here the first network goes down to a quarter of the grid, from
  whatever size the image has, and up to the grid; the second, always the same, from the grid to a quarter of
  it and back.
- Its output is added to the uniform tensor, as in the author's later code, and is 0 before training.
- The paper's tables give 0.07 billion operations to this network at 32 x 32. With 256 channels one 3x3
  convolution at 16 x 16 takes 0.15 already; this network takes 0.34.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.auxiliary import TrainingOutput
from fullres.models.parts import conv_bn_relu, kaiming


class UNetBody(nn.Module):
    """N x C x H x W to features of the first level's channels and size, N x channels[0] x H x W.

    `channels` are those of the levels, a block has so many `convolutions`. With `levels_up` the way up ends
    as many levels above the last, with that level's channels and size.
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], convolutions: int, levels_up: int | None = None
    ) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            rest = (conv_bn_relu(after, after, 3) for _ in range(convolutions - 1))
            return nn.Sequential(conv_bn_relu(before, after, 3), *rest)

        self.down = nn.ModuleList(
            block(*pair) for pair in zip([in_channels, *channels], channels, strict=False)
        )
        pairs = list(pairwise(reversed(channels)))[:levels_up]
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(before, after, 2, 2) for before, after in pairs)
        self.up = nn.ModuleList(block(2 * after, after) for _, after in pairs)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if skips else x)
            skips.append(x)
        for enlarge, block, skip in zip(self.enlarge, self.up, skips[-2::-1], strict=False):
            height, width = skip.shape[-2:]
            x = block(torch.cat([skip, enlarge(x)[..., :height, :width]], 1))
        return x


class UNet(nn.Module):
    """N x 3 x H x W to logits N x classes x H x W; in training to a `TrainingOutput` without heads.

    `width` multiplies every channel count.
    """

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        first = int(64 * width)
        if first < 1:
            raise ValueError(f"U-Net width is {width}: at least 1/64")
        channels = [first * 2**i for i in range(5)]
        self.body = UNetBody(3, channels, 2)
        self.classifier = nn.Conv2d(channels[0], num_classes, 1)
        kaiming(self)

    def forward(self, image: Tensor) -> Tensor | TrainingOutput:
        logits = self.classifier(self.body(image))
        return TrainingOutput(logits, ()) if self.training else logits


def project(phi: Tensor) -> Tensor:
    """The closest sampling tensor that covers the image (Eq. 3): ... x h x w x 2 in [0, 1], outer rows and
    columns on the image's border."""
    lower, upper = torch.zeros_like(phi), torch.ones_like(phi)
    upper[..., 0, :, 0], lower[..., -1, :, 0] = 0, 1
    upper[..., 0, 1], lower[..., -1, 1] = 0, 1
    return phi.clamp(lower, upper)


class DoubleUNet(nn.Module):
    """A small image N x 3 x H x W to a sampling tensor N x ceil(H / s) x ceil(W / s) x 2, s = 2 ** halvings.

    With 2 halvings, 32 x 32 pixels give the 8 x 8 points of the paper; with 3 it is 64 x 64. Component 0 is
    the row; coordinates are relative, in fp32 at least. In evaluation the tensor is projected on the covering
    constraints (footnote 1), in training it is as predicted, for `sampling_tensor_loss`. Images are to be
    large enough for two points a side.
    """

    def __init__(self, halvings: int = 2, channels: int = 256) -> None:
        super().__init__()
        self.first = UNetBody(3, [channels // 4, *[channels] * (halvings + 2)], 1, levels_up=2)
        self.second = UNetBody(channels, [channels] * 3, 1)
        self.shift = nn.Conv2d(channels, 2, 1)
        kaiming(self)
        nn.init.zeros_(self.shift.weight)

    def forward(self, image: Tensor) -> Tensor:
        shift = self.shift(self.second(self.first(image))).permute(0, 2, 3, 1)
        # Coordinates of bf16 are 8 pixels apart in 2,048.
        phi = _uniform(shift) + shift
        return phi if self.training else project(phi)


def _uniform(shift: Tensor) -> Tensor:
    """h x w x 2: the points of the regular grid of `shift`, N x h x w x 2."""
    dtype = torch.promote_types(shift.dtype, torch.float32)
    axes = (torch.linspace(0, 1, n, dtype=dtype, device=shift.device) for n in shift.shape[1:3])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
