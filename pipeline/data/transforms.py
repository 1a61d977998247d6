"""From uint8 images to what a network reads, and the augmentation of training ("Split-Merge Pooling", Sec.
4.2)."""

import numpy as np
import torch
from torch import Tensor

# ImageNet's, as every published backbone here was trained with (RGB, on a scale of 0 to 255)
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def normalise(image: Tensor, dtype: torch.dtype) -> Tensor:
    """... x H x W x 3 RGB, uint8 or float32 of the same range, to ... x 3 x H x W of `dtype`, channels last.

    Computed in fp32; a float32 image is overwritten."""
    mean = torch.tensor(MEAN, device=image.device)
    scale = 1 / torch.tensor(STD, device=image.device)
    return image.to(torch.float32).sub_(mean).mul_(scale).to(dtype).movedim(-1, -3)


def random_crop(
    image: np.ndarray, labels: np.ndarray, size: tuple[int, int], ignore_index: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The same random window of `image` (H x W x 3) and `labels` (H x W), and with probability 1/2 its mirror
    image.

    Where the image is smaller than `size`, it is padded below and to the right: mean colour, ignored labels.
    """
    h, w = size
    missing = (max(0, h - labels.shape[0]), max(0, w - labels.shape[1]))
    if any(missing):
        padding = ((0, missing[0]), (0, missing[1]))
        channels = [np.pad(image[..., c], padding, constant_values=round(MEAN[c])) for c in range(3)]
        image, labels = np.stack(channels, -1), np.pad(labels, padding, constant_values=ignore_index)
    y = rng.integers(labels.shape[0] - h + 1)
    x = rng.integers(labels.shape[1] - w + 1)
    image, labels = image[y : y + h, x : x + w], labels[y : y + h, x : x + w]
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return image, labels
