"""A downsampler that goes on learning beside the network that reads where it says."""

from torch import Tensor, nn

from fullres.models.downsampler import Downsampler
from fullres.models.unet import project
from fullres.ops.sampling import resize_tensor, sample_moving, sample_tensor
from fullres.pipeline.train.objectives import downsampler_objective


class LearningSampler(nn.Module):
    """A downsampler that learns with the network behind it: where a training attaches it, a network's
    `sampler`. `size`: h x w points. `weight`: of the downsampler's own loss, the squared distance from the
    label maps' sampling tensors.

    The paper trains the two one after the other. Here the network's loss moves the points too, by the
    gradient that bilinear interpolation of the image would have (`sample_moving`).
    """

    def __init__(self, downsampler: Downsampler, size: tuple[int, int], weight: float) -> None:
        super().__init__()
        self.downsampler, self.size, self.weight = downsampler, size, weight

    def forward(
        self, images: Tensor, labels: Tensor, ignore_index: int = 255
    ) -> tuple[Tensor, Tensor, Tensor]:
        """images: N x 3 x H x W; labels: N x H x W. Both at the points, and the downsampler's own loss."""
        output = self.downsampler(images)
        phi = resize_tensor(project(output.phi), self.size)
        own = self.weight * downsampler_objective(output, labels, ignore_index)
        return sample_moving(images, phi), sample_tensor(labels[:, None], phi)[:, 0], own
