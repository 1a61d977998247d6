"""What several networks are built from."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    in_channels: int, channels: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size (but for its stride) and its batch norm: `0` and `1`."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(channels),
    )


def conv_bn_relu(
    in_channels: int, channels: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """`conv_bn` and a ReLU: `0`, `1` and `2`."""
    return nn.Sequential(*conv_bn(in_channels, channels, kernel, stride, dilation, groups), nn.ReLU())


def drawn(network: nn.Module) -> Iterator[nn.Conv2d]:
    """Its convolutions, whose weights are to be drawn: none of a network on the meta device, which has no
    values. To draw there too torch would import its compiler, a second or more."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            yield module


def kaiming(network: nn.Module) -> None:
    """The usual start of residual networks: every convolution normal with variance 2 / fan-out (He et al.,
    ICCV 2015)."""
    for convolution in drawn(network):
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)


def atrous(strides: Sequence[int], stem: int, output_stride: int) -> list[tuple[int, int]]:
    """Stride and dilation of each block of a network that is to end at `output_stride`.

    `strides` are the blocks' own, behind a stem of stride `stem`. A block that would go beyond keeps the
    dilation before it and gives up its stride, and everything behind it is dilated by as much: on every
    stride-th pixel the outputs are then exactly those of the strided network (Chen et al., TPAMI 2018,
    Sec. 3.1). Raises ValueError for an output stride other than 8, 16 and 32.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output stride is {output_stride}: one of 8, 16, 32")
    reached, dilation = stem, 1
    result = []
    for stride in strides:
        if reached * stride <= output_stride:
            result.append((stride, dilation))
            reached *= stride
        else:
            result.append((1, dilation))
            dilation *= stride
    return result


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation of N x C x h x w to N x C x size."""
    if not torch.compiler.is_exporting() and tuple(x.shape[-2:]) == tuple(size):
        return x  # a graph would hold for the sizes alone at which that is so
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def concatenate(features: Sequence[Tensor], align_corners: bool = False) -> Tensor:
    """Features of several output strides, finest first, as the channels of one tensor of the finest."""
    size = features[0].shape[-2:]
    return torch.cat([resize(x, size, align_corners) for x in features], 1)
