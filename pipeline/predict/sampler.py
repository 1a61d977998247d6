"""Where an image is sampled, and what is read there ("Learning Downsampling Near Semantic Boundaries",
Fig. 4): at a uniform grid of points, or where a downsampler says."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fullres.models.downsampler import Downsampler
from fullres.models.full_resolution.steps import Pair
from fullres.models.weights import WeightsError, load_own_network
from fullres.ops.interpolate import interpolate_labels
from fullres.ops.normalisation import normalise
from fullres.ops.resample import all_shrunk, shrunk
from fullres.ops.sampling import resize_tensor, sample, sample_tensor
from fullres.ops.sampling_solve import uniform_tensor
from fullres.pipeline.predict.published import local_weights


@dataclass(frozen=True)
class Sampler:
    """`size`: h x w points. `downsampler`: in evaluation mode, fp32, as coordinates of bf16 are pixels apart;
    None: the points are a uniform grid."""

    size: Pair
    downsampler: Downsampler | None = None

    def at(self, image: np.ndarray) -> np.ndarray:
        """The sampling tensor of an image, H x W x 3 uint8: h x w x 2 float32, which covers it (Eq. 3)."""
        return self.points(self.grid(image))

    def points(self, grid: np.ndarray | None) -> np.ndarray:
        """The sampling tensor of the image that has this `grid`: h x w x 2 float32."""
        if grid is None:
            return uniform_tensor(*self.size).astype(np.float32)
        return resize_tensor(grid, self.size)

    def grid(self, image: np.ndarray) -> np.ndarray | None:
        """What the downsampler says of an image, H x W x 3 uint8: a sampling tensor of as many points as it
        was trained for, float32. None: no downsampler."""
        if self.downsampler is None:
            return None
        small = shrunk(image, self.downsampler.small)
        pixels = torch.from_numpy(small)[None].to(next(self.downsampler.parameters()).device)
        return self._grids(self.downsampler, pixels)[0].cpu().numpy()

    def both(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of N x H x W x 3 uint8 images and N x H x W labels those at the points: N x h x w x 3, N x h x w
        (Eq. 1)."""
        if self.downsampler is None:
            uniform = torch.from_numpy(self.points(None)).to(images.device)
            phi = uniform.expand(len(images), -1, -1, -1)
        else:
            small = all_shrunk(images, self.downsampler.small)
            phi = resize_tensor(self._grids(self.downsampler, small), self.size)
        sampled = sample_tensor(images.permute(0, 3, 1, 2), phi).permute(0, 2, 3, 1)
        return sampled, sample_tensor(labels[:, None], phi)[:, 0]

    @staticmethod
    @torch.no_grad()
    def _grids(downsampler: Downsampler, images: Tensor) -> Tensor:
        return downsampler(normalise(images, torch.float32))


def sampled_and_back(labels: np.ndarray, phi: np.ndarray, classes: int) -> np.ndarray:
    """What sampling at these points leaves of a label map, H x W uint8, when all that is sampled is known:
    the most that a network can reach on them. A point without a class says nothing."""
    points = sample(labels, phi)
    scores = (points == np.arange(classes, dtype=np.uint8)[:, None, None]).astype(np.float32)
    return interpolate_labels(scores, phi, (labels.shape[0], labels.shape[1]))


def sampler_of(size: Pair, auxiliary: str | Path | None, device: torch.device) -> Sampler:
    """With the downsampler of those weights, a file or what `local_weights` takes. Raises WeightsError."""
    return Sampler(size, None if auxiliary is None else load_downsampler(str(auxiliary), device))


@lru_cache(2)
def load_downsampler(weights: str, device: torch.device) -> Downsampler:
    """From a file that a training of one wrote, on a device. Raises WeightsError."""
    path, _ = local_weights(weights)
    network, _ = load_own_network(path)
    if not isinstance(network, Downsampler):
        raise WeightsError(f"weights {path}: of a network that labels images, not of a downsampler")
    return network.to(device).requires_grad_(False)
