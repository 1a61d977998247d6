"""From uint8 images to what a network reads."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from fullres.ops.errors import NetworkError

# ImageNet's, as every published backbone here was trained with (RGB, on a scale of 0 to 255)
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Normalisation:
    """How a network reads images: (x - mean) / std of each channel, of values from 0 to 255.

    There are as many channels as means. `order`: "bgr" turns the channels round first, and `mean` and `std`
    are in that order. A network may carry its own as its attribute `normalisation`.

    Raises NetworkError for numbers that are not possible.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) > 0:
            raise NetworkError(f"normalisation has {len(self.mean)} means and {len(self.std)} deviations")
        if not all(isfinite(x) for x in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise NetworkError(
                f"normalisation: mean {self.mean} and std {self.std} must be finite, std above 0"
            )
        if self.order not in ("rgb", "bgr") or (self.order == "bgr" and len(self.mean) != 3):
            raise NetworkError(
                f"normalisation: order is '{self.order}' of {len(self.mean)} channels: rgb, or bgr of 3"
            )

    @property
    def channels(self) -> int:
        return len(self.mean)


IMAGENET = Normalisation()
CAFFE = Normalisation((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), "bgr")


def normalisation_of(network: object, given: Normalisation | None = None) -> Normalisation:
    """What was asked for, what the network says (its attribute `normalisation`), or ImageNet's."""
    return given or getattr(network, "normalisation", None) or IMAGENET


def normalise(image: Tensor, dtype: torch.dtype, how: Normalisation = IMAGENET) -> Tensor:
    """... x H x W x channels, uint8 or float32 of the same range, to ... x channels x H x W of `dtype`,
    channels last.

    Computed in fp32; a float32 image is overwritten, unless its channels are turned round."""
    if how.order == "bgr":
        image = image.flip(-1)
    mean = torch.tensor(how.mean, device=image.device)
    scale = 1 / torch.tensor(how.std, device=image.device)
    return image.to(torch.float32).sub_(mean).mul_(scale).to(dtype).movedim(-1, -3)
