"""A network without subsampling, run by torch itself: what the full-resolution form is compared with.

The network's own code runs on an image while every convolution and pool is done at stride 1, its dilation
multiplied by the stride so far. Features keep the size of the image. What is read past the image's border is
zero, or nothing for max pooling. Much slower than split-merge, and it needs no knowledge of the network but
of the functions that have a stride.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from fullres.models.full_resolution.operations import arguments, is_resize
from fullres.models.full_resolution.steps import Pair, pair


class Dilated(TorchDispatchMode):
    """Inside it, networks are run without subsampling on images of one size. Not for gradients."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.size = image.shape[2:]
        self._stride = WeakTensorKeyDictionary()  # that a tensor would have, were it subsampled
        self._pad = WeakTensorKeyDictionary()  # zeros around it, which its reader adds
        self._stride[image] = (1, 1)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor) and t in self._stride]
        own = {
            "convolution": self._convolution, "max_pool2d_with_indices": self._max_pool,
            "avg_pool2d": self._average_pool, "pixel_unshuffle": self._unshuffled,
            "slice": self._sliced, "constant_pad_nd": self._padded,
        }  # fmt: skip
        if tensors and is_resize(function):
            return tensors[0]
        if tensors and name in own and tensors[0].shape[2:] == self.size:
            given = arguments(function, args, kwargs)
            if (result := own[name](tensors[0], given)) is not None:
                return result
        result = function(*args, **kwargs)
        for out in tree_flatten(result)[0] if tensors else []:
            if isinstance(out, Tensor):
                self._stride[out] = self._stride[tensors[0]]
        return result

    def _made(self, out: Tensor, x: Tensor, stride: Sequence[int]) -> Tensor:
        (sy, sx), (ry, rx) = self._stride[x], stride
        self._stride[out] = (sy * ry, sx * rx)
        return out

    def _around(self, x: Tensor, kernel: Pair, padding: Pair, dilation: Pair, value: float = 0.0) -> Tensor:
        """`x` with its padding in front, and behind what a window needs at the last element."""
        left, _, top, _ = self._pad.get(x, (0, 0, 0, 0))
        stride = self._stride[x]
        front = [s * (p + q) for s, p, q in zip(stride, padding, (top, left), strict=True)]
        window = [s * d * (k - 1) for s, d, k in zip(stride, dilation, kernel, strict=True)]
        behind = [w - f for w, f in zip(window, front, strict=True)]
        return F.pad(x, (front[1], behind[1], front[0], behind[0]), value=value)

    def _spread(self, x: Tensor, dilation: Pair) -> Pair:
        (sy, sx), (dy, dx) = self._stride[x], dilation
        return sy * dy, sx * dx

    def _convolution(self, x: Tensor, given: dict[str, Any]) -> Tensor:
        weight, dilation = given["weight"], pair(given["dilation"])
        around = self._around(x, (weight.shape[2], weight.shape[3]), pair(given["padding"]), dilation)
        out = F.conv2d(around, weight, given["bias"], 1, 0, self._spread(x, dilation), given["groups"])
        return self._made(out, x, pair(given["stride"]))

    def _max_pool(self, x: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        kernel, dilation = pair(given["kernel_size"]), pair(given["dilation"])
        value = 0.0 if x in self._pad else -torch.inf
        around = self._around(x, kernel, pair(given["padding"]), dilation, value)
        out, indices = F.max_pool2d_with_indices(around, kernel, (1, 1), (0, 0), self._spread(x, dilation))
        return self._made(out, x, pair(given["stride"] or kernel)), indices

    def _average_pool(self, x: Tensor, given: dict[str, Any]) -> Tensor:
        kernel, padding = pair(given["kernel_size"]), pair(given["padding"])
        ones = torch.ones((x.shape[1], 1, *kernel), dtype=x.dtype, device=x.device)

        def total(values: Tensor) -> Tensor:
            self._stride[values] = self._stride[x]
            around = self._around(values, kernel, padding, (1, 1))
            return F.conv2d(around, ones, None, 1, 0, self._stride[x], x.shape[1])

        divisor = given["divisor_override"] or kernel[0] * kernel[1]
        # ceil_mode counts nothing past the border, so without padding it counts what is inside.
        inside = not given["count_include_pad"] or (given["ceil_mode"] and not any(padding))
        if inside and not given["divisor_override"]:
            divisor = total(torch.ones_like(x))
        return self._made(total(x) / divisor, x, pair(given["stride"] or kernel))

    def _shifted(self, x: Tensor, y: int, right: int) -> Tensor:
        """What lies `y` and `right` elements of its lattice further, zeros behind the border."""
        (sy, sx), (height, width) = self._stride[x], self.size
        return F.pad(x, (0, right * sx, 0, y * sy))[:, :, y * sy :, right * sx :][:, :, :height, :width]

    def _sliced(self, x: Tensor, given: dict[str, Any]) -> Tensor | None:
        dim, step, start = given["dim"] % x.dim(), given["step"], given["start"] or 0
        if dim < 2 or step == 1:
            return None
        shifted = self._shifted(x, start, 0) if dim == 2 else self._shifted(x, 0, start)
        return self._made(shifted.clone(), x, (step, 1) if dim == 2 else (1, step))

    def _unshuffled(self, x: Tensor, given: dict[str, Any]) -> Tensor:
        r = given["downscale_factor"]
        phases = [self._shifted(x, i, j) for i in range(r) for j in range(r)]
        return self._made(torch.stack(phases, 2).flatten(1, 2), x, (r, r))

    def _padded(self, x: Tensor, given: dict[str, Any]) -> Tensor | None:
        pad = given["pad"]
        if not any(pad[:4]):
            return None
        result = self._made(x.clone(), x, (1, 1))
        self._pad[result] = (*pad[:4], *[0] * (4 - len(pad)))
        return result
