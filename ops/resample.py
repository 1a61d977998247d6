"""Bilinear interpolation of a part of a larger map; means over what a smaller image's pixels cover."""

import cv2
import numpy as np
import torch
from torch import Tensor


def bilinear_reads(start: int, stop: int, in_length: int, out_length: int) -> tuple[int, int]:
    """First and last + 1 input element that outputs start, ..., stop - 1 are interpolated from."""
    low, high, _ = _weights(torch.arange(start, stop), in_length, out_length)
    return int(low.min()), int(high.max()) + 1


def bilinear_reached(start: int, stop: int, in_length: int, out_length: int) -> tuple[int, int]:
    """First and last + 1 output element that is interpolated from any of inputs start, ..., stop - 1; equal
    where there is none."""
    if in_length == out_length:
        return start, stop
    low, high, _ = _weights(torch.arange(out_length), in_length, out_length)  # both rise
    return int(torch.searchsorted(high, start)), int(torch.searchsorted(low, stop))


def bilinear_window(
    x: Tensor,
    origin: tuple[int, int],
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> Tensor:
    """The window `rows` x `columns` (start, stop) of a map of `in_size` resized to `out_size`.

    Equals that window of `F.interpolate(whole, out_size, mode="bilinear", align_corners=False)`. `x` (..., h,
    w) is the part of the map whose first element is at `origin`; it must hold what `bilinear_reads` says.
    """
    return bilinear_at(x, origin, in_size, out_size, torch.arange(*rows), torch.arange(*columns))


def bilinear_at(
    x: Tensor,
    origin: tuple[int, int],
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    """As `bilinear_window`, at the given rows and columns (int64) of the resized map."""
    for axis, dim, positions in ((0, -2, rows), (1, -1, columns)):
        low, high, weight = _weights(positions, in_size[axis], out_size[axis])
        x = _lerp(x, dim, low - origin[axis], high - origin[axis], weight)
    return x


def between_lattice_points(
    x: Tensor, stride: int, origin: tuple[int, int], rows: Tensor, columns: Tensor
) -> Tensor:
    """(..., h, w) on the pixels `origin` + `stride` times (0, 1, ...), to given rows and columns of pixels
    (int64): linear between the lattice's points, which keep their values; beyond the last as at the last."""
    for axis, dim, positions in ((0, -2, rows), (1, -1, columns)):
        at = (positions - origin[axis]).double() / stride
        at = at.clamp(0, x.shape[dim] - 1)
        low = at.floor().long()
        x = _lerp(x, dim, low, (low + 1).clamp(max=x.shape[dim] - 1), at - low)
    return x


def _lerp(x: Tensor, dim: int, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Along `dim`, -2 or -1: from elements `low` to elements `high`, by `weight` of the way."""
    weight = weight.to(x)
    weight = weight[:, None] if dim == -2 else weight
    low, high = low.to(x.device), high.to(x.device)
    return torch.lerp(x.index_select(dim, low), x.index_select(dim, high), weight)


def _weights(positions: Tensor, in_length: int, out_length: int) -> tuple[Tensor, Tensor, Tensor]:
    centre = (positions.double() + 0.5) * (in_length / out_length) - 0.5
    centre = centre.clamp(0, in_length - 1)
    low = centre.floor().long()
    return low, (low + 1).clamp(max=in_length - 1), centre - low


def area_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """N x C x H x W float to N x C x size: each pixel the mean of what it covers of the image, parts of
    pixels by their share. Where an image is smaller, of the one or two pixels that a new one lies on."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    rows, columns = (_shares(n, m).to(images) for n, m in zip(images.shape[-2:], size, strict=True))
    return rows @ images @ columns.T


def shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H x W x C uint8 to `size` x C: as `area_resize`, rounded to whole numbers. An image with a side shorter
    than that stays as it is."""
    if min(np.subtract(image.shape[:2], size)) < 0:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, -1)


def all_shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    """N x H x W x C uint8 on any device, each as `shrunk`; a GPU may round a value halfway the other way."""
    if min(np.subtract(images.shape[1:3], size)) < 0:
        return images
    if images.device.type == "cpu":
        return torch.from_numpy(np.stack([shrunk(image, size) for image in images.numpy()]))
    means = area_resize(images.movedim(-1, 1).float(), size)
    return means.round().to(torch.uint8).movedim(1, -1)


def _shares(in_length: int, out_length: int) -> Tensor:
    """Which share of an output each input is, out_length x in_length."""
    bounds = torch.arange(out_length + 1, dtype=torch.float64) * in_length / out_length
    pixels = torch.arange(in_length, dtype=torch.float64)
    covered = torch.minimum(bounds[1:, None], pixels + 1) - torch.maximum(bounds[:-1, None], pixels)
    return covered.clamp(min=0) * out_length / in_length
