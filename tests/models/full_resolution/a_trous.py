"""Any network without subsampling, for comparison: torch itself runs it, no graph of it is made.

`a_trous(network, image)` runs the network's own code while every convolution and pool is done at stride 1,
its dilation multiplied by the stride accumulated so far. Each tensor carries that stride; feature maps keep
the size of the image. What is read past the image's border is zero, or nothing for max pooling.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def a_trous(network, image):
    with _ATrous():
        image = image.clone()
        image.lattice = (1, 1)
        return network(image)


class _ATrous(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.conv2d:
            return _convolution(*args, **kwargs)
        if func in (F.max_pool2d, torch.max_pool2d):
            return _max_pool(*args, **kwargs)
        if func is F.avg_pool2d:
            return _average_pool(*args, **kwargs)
        lattices = {x.lattice for x in _tensors((args, kwargs)) if hasattr(x, "lattice")}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and lattices:
            (result.lattice,) = lattices  # fails where different strides meet
        return result


def _tensors(values):
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list | dict):
            yield from _tensors(value)


def _pair(x):
    return (x, x) if isinstance(x, int) else tuple(x) * (2 // len(x))


def _padded(x, kernel, padding, dilation, value=0.0):
    """`x` with its own padding in front, and behind what a window needs at the last element."""
    (sy, sx), (py, px) = x.lattice, padding
    bottom, right = (
        s * (d * (k - 1) - p) for s, d, k, p in zip(x.lattice, dilation, kernel, padding, strict=True)
    )
    return F.pad(x, (sx * px, right, sy * py, bottom), value=value)


def _on_lattice(out, x, stride):
    out.lattice = tuple(a * b for a, b in zip(x.lattice, stride, strict=True))
    return out


def _convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    kernel, stride, dilation = weight.shape[2:], _pair(stride), _pair(dilation)
    if padding == "same":
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    elif padding == "valid":
        padding = 0
    wide = [s * d for s, d in zip(x.lattice, dilation, strict=True)]
    padded = _padded(x, kernel, _pair(padding), dilation)
    return _on_lattice(F.conv2d(padded, weight, bias, 1, 0, wide, groups), x, stride)


def _max_pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    kernel, dilation = _pair(kernel_size), _pair(dilation)
    wide = [s * d for s, d in zip(x.lattice, dilation, strict=True)]
    padded = _padded(x, kernel, _pair(padding), dilation, -torch.inf)
    return _on_lattice(F.max_pool2d(padded, kernel, 1, 0, wide), x, _pair(stride or kernel))


def _average_pool(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    kernel, padding = _pair(kernel_size), _pair(padding)

    def total(values):
        values.lattice = x.lattice
        ones = torch.ones(values.shape[1], 1, *kernel, dtype=x.dtype)
        return F.conv2d(
            _padded(values, kernel, padding, (1, 1)), ones, dilation=x.lattice, groups=values.shape[1]
        )

    divisor = divisor_override or kernel[0] * kernel[1]
    # ceil_mode counts no element past the border, so without padding it counts what is inside
    if not divisor_override and (not count_include_pad or (ceil_mode and padding == (0, 0))):
        divisor = total(torch.ones_like(x))
    return _on_lattice(total(x.clone()) / divisor, x, _pair(stride or kernel))
