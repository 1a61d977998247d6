"""Sampling an image or a label map at the points of a sampling tensor ("Learning Downsampling Near Semantic
Boundaries", Eq. 1, Sec. 3 and 3.1).

A sampling tensor phi is h x w x 2: grid point (i, j) reads the pixel closest to row phi[i, j, 0] and column
phi[i, j, 1], both relative: 0 is the centre of the first pixel of the axis, 1 that of the last. Its border
lies on the image's border (Eq. 3): rows 0 and h - 1 have component 0 at 0 and 1, columns 0 and w - 1 have
component 1 at 0 and 1.
"""

from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@overload
def resize_tensor(phi: np.ndarray, size: tuple[int, int]) -> np.ndarray: ...
@overload
def resize_tensor(phi: Tensor, size: tuple[int, int]) -> Tensor: ...
def resize_tensor(phi: np.ndarray | Tensor, size: tuple[int, int]) -> np.ndarray | Tensor:
    """A sampling tensor for a grid of another size, by bilinear interpolation (Sec. 3.1, Fig. 5).

    The corners of the two grids are the same points, so what is exactly 0 or 1 along the border stays so, and
    a uniform tensor stays uniform. Gradients flow through where `phi` is a torch tensor.

    Args:
        phi: (..., h0, w0, 2) float, h0 and w0 at least 2; torch tensors on any device.
        size: (h, w) of the new grid.

    Returns:
        (..., h, w, 2) of the same kind and dtype.

    Raises:
        ValueError: a side of `size` below 2: it could not hold both 0 and 1.
    """
    if min(size) < 2:
        raise ValueError(f"size is {size}: a sampling grid has at least 2 x 2 points")
    if isinstance(phi, np.ndarray):
        return resize_tensor(torch.tensor(phi), size).numpy()  # copied: it may be read-only
    for dim, length in ((-3, size[0]), (-2, size[1])):
        position = torch.arange(length, dtype=torch.float64) * (phi.shape[dim] - 1) / (length - 1)
        low = position.floor().clamp(max=phi.shape[dim] - 2).long()
        weight = (position - low).to(phi).reshape(-1, *[1] * (-1 - dim))
        low = low.to(phi.device)
        # lerp is a + weight * (b - a) or its mirror image: between equal values it gives that very value.
        phi = torch.lerp(phi.index_select(dim, low), phi.index_select(dim, low + 1), weight)
    return phi


def sample(array: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Eq. 1: the pixels closest to the points of `phi`, those exactly between two go to the even one.

    Args:
        array: (H, W) or (H, W, C), any dtype: images and label maps as they are stored.
        phi: (h, w, 2) float in [0, 1].

    Returns:
        (h, w) or (h, w, C), of the array's dtype: values are copied, never converted.
    """
    extent = np.array(array.shape[:2]) - 1
    index = np.rint(phi.astype(np.float64) * extent).astype(np.intp)
    # With one index a pixel this is twice as fast as with two.
    flat = array.reshape(-1, *array.shape[2:])
    return flat.take(index[..., 0] * array.shape[1] + index[..., 1], axis=0)


def sample_tensor(images: Tensor, phi: Tensor) -> Tensor:
    """`sample` for a batch on any device that has float64: the same pixels.

    Args:
        images: (N, C, H, W), any dtype. Gradients flow to it.
        phi: (N, h, w, 2) float in [0, 1], on the same device. No gradient: Eq. 1 is piecewise constant in it.

    Returns:
        (N, C, h, w) of the images' dtype, channels last in memory.
    """
    extent = torch.tensor(images.shape[-2:], device=phi.device) - 1
    index = torch.round(phi.detach().double() * extent).long()
    image = torch.arange(len(images), device=phi.device)[:, None, None]
    return images[image, :, index[..., 0], index[..., 1]].permute(0, 3, 1, 2)


def sample_moving(images: Tensor, phi: Tensor) -> Tensor:
    """`sample_tensor`, with the gradient to `phi` that bilinear interpolation at the points would have: Eq. 1
    itself has none. Floating point images; gradients to them are not computed."""
    points = 2 * phi.flip(-1) - 1  # columns first, -1 to 1
    smooth = F.grid_sample(images.detach(), points.to(images), padding_mode="border", align_corners=True)
    return sample_tensor(images, phi).detach() + smooth - smooth.detach()
