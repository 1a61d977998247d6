"""The auxiliary network of adaptive downsampling: where to sample an image ("Efficient Segmentation: Learning
Downsampling Near Semantic Boundaries", Marin et al., ICCV 2019, Sec. 3.1, Fig. 4).

- The image, of any size, is uniformly downsampled to a small one, and the double U-Net makes a sampling
  tensor of it (`models.unet`). The small image has four times the grid's points a side, as 32 x 32 pixels
  give 8 x 8 points in the paper.
- Downsampling takes the mean over the pixels that a small one covers. The paper does not say how; a pixel
  picked in each place would leave out most of a large image.
- It learns from label maps alone (`pipeline.train.objectives`): from their sampling tensors, or from the
  energy that those minimise.
"""

from typing import NamedTuple

from torch import Tensor, nn

from fullres.models.unet import DoubleUNet
from fullres.ops.resample import area_resize

# Pixels of the small image to a point of the grid, along each side.
PIXELS_A_POINT = 4


class SamplingOutput(NamedTuple):
    """What the network returns in training."""

    phi: Tensor  # N x grid x grid x 2, not on the covering constraints
    smoothness: float  # lambda of Eq. 2
    target_classes: tuple[int, ...]  # whose boundaries count; none: all


class Downsampler(nn.Module):
    """N x 3 x H x W of any size to a sampling tensor N x grid x grid x 2 that covers the image (Eq. 3); in
    training to a `SamplingOutput`.

    `grid`: 8, 16 or 32. `channels` are those of all layers but the first and the last. `smoothness` and
    `target_classes` are what a training sets.
    """

    def __init__(self, grid: int = 8, channels: int = 256) -> None:
        super().__init__()
        self.grid, self.channels = grid, channels
        self.smoothness = 1.0
        self.target_classes: tuple[int, ...] = ()
        self.network = DoubleUNet(2, channels)

    @property
    def small(self) -> tuple[int, int]:
        """Height and width of the small image."""
        return self.grid * PIXELS_A_POINT, self.grid * PIXELS_A_POINT

    def forward(self, image: Tensor) -> Tensor | SamplingOutput:
        phi = self.network(area_resize(image, self.small))
        return SamplingOutput(phi, self.smoothness, self.target_classes) if self.training else phi
