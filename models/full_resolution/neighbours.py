"""What reads neighbours, in a network that is watched: convolutions, pools, picks, padding, resizes.

Each function takes the recorder, a call's arguments by name, the tensor that it reads and the one it gives,
and returns what that is. Raises Refused.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from fullres.models.full_resolution.geometry import Sliding
from fullres.models.full_resolution.operations import NCHW, Refused, Value
from fullres.models.full_resolution.steps import Apply, Input, Pair, Size, Step, pair

if TYPE_CHECKING:
    from fullres.models.full_resolution.record import Recorder


def unpadded(value: Value) -> None:
    if value.pad:
        raise Refused("it reads padded features; only convolutions and pools may follow on padding")


def slid(
    recorder: "Recorder", step: Step, value: Value, sliding: tuple[Sliding, Sliding], out: Tensor
) -> Value:
    """A step that slides over `value`, whose own padding it takes over."""
    left, right, top, bottom = value.pad or (0, 0, 0, 0)
    for axis, extra in zip(sliding, (top + bottom, left + right), strict=True):
        wanted, padding = axis.dilation * (axis.kernel - 1), 2 * axis.padding + extra
        if axis.stride == 1 and axis.kernel > 1 and axis.kernel % 2 == 1 and padding != wanted:
            raise Refused(
                f"kernel {axis.kernel} with padding {axis.padding} and dilation {axis.dilation} does not "
                f"keep the size; padding {wanted // 2} would"
            )
    rows = replace(sliding[0], padding=sliding[0].padding + top)
    columns = replace(sliding[1], padding=sliding[1].padding + left)
    for axis in (rows, columns):
        if axis.receptive_field[1] < 0:
            raise Refused(
                f"kernel {axis.kernel} with padding {axis.padding} reads padding alone at the border"
            )
    stride = (value.stride[0] * rows.stride, value.stride[1] * columns.stride)
    return recorder.added(replace(step, sliding=(rows, columns), stride=stride), value, out)


def convolution(recorder: "Recorder", given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
    name, value = recorder.features(x)
    weight, bias = given["weight"], given["bias"]
    if given["transposed"]:
        raise Refused("it is a transposed convolution, which adds what lies between pixels")
    if isinstance(weight, FakeTensor) or isinstance(bias, FakeTensor):
        raise Refused("its weights are computed from the image")
    recorder.constants([weight, bias])
    conv = nn.Conv2d(
        weight.shape[1] * given["groups"], weight.shape[0], tuple(weight.shape[2:]), given["stride"],
        given["padding"], given["dilation"], given["groups"], bias is not None, device="meta",
    ).eval()  # fmt: skip
    with unset_fake_temporarily():
        conv.weight = _parameter(weight)
        conv.bias = None if bias is None else _parameter(bias)
    step = Step("", "convolution", (name,), conv, conv.out_channels)
    return slid(recorder, step, value, convolution_sliding(conv), out)


def max_pool(recorder: "Recorder", given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
    name, value = recorder.features(x)
    kernel, stride, padding, dilation = _window(given)
    if value.pad and any(padding):
        raise Refused("it pads with nothing what was padded with zeros")
    call = partial(torch.max_pool2d, kernel_size=kernel, dilation=dilation)
    step = Step("", "max_pool_zeros" if value.pad else "max_pool", (name,), call, out.shape[1])
    return slid(recorder, step, value, _sliding(kernel, stride, padding, dilation), out)


def average_pool(recorder: "Recorder", given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
    name, value = recorder.features(x)
    kernel, stride, padding, _ = _window(given)
    divisor = given["divisor_override"]
    inside = not given["count_include_pad"] or (given["ceil_mode"] and not any(padding))
    if value.pad and inside:
        raise Refused("it counts only what lies inside padded features")
    op = "average_pool_inside" if inside and divisor is None else "average_pool"
    call = partial(F.avg_pool2d, kernel_size=kernel, divisor_override=divisor)
    step = Step("", op, (name,), call, out.shape[1])
    return slid(recorder, step, value, _sliding(kernel, stride, padding, (1, 1)), out)


def pick(recorder: "Recorder", x: Value, start: Pair, stride: Pair) -> Value:
    """Every stride-th element: a pool of one. Behind the border there are zeros."""
    assert isinstance(x.expression, Input)
    call = partial(torch.max_pool2d, kernel_size=(1, 1))
    op = "max_pool" if start == (0, 0) else "max_pool_zeros"
    sliding = (Sliding(1, stride[0], -start[0]), Sliding(1, stride[1], -start[1]))
    own = (x.stride[0] * stride[0], x.stride[1] * stride[1])
    name = recorder.append(Step("", op, (x.expression.name,), call, x.shape[1], sliding, own), "pick")
    rows, columns = (-(-(n - o) // s) for n, o, s in zip(x.shape[2:], start, stride, strict=True))
    return replace(x, expression=Input(name), shape=(*x.shape[:2], rows, columns), stride=own)


def sliced(recorder: "Recorder", given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
    value = recorder.value(x)
    dim, step, start = given["dim"] % x.dim(), given["step"], given["start"] or 0
    length = value.shape[dim]
    end = length if given["end"] is None else given["end"]
    if dim == value.axes[0] or start < 0 or start >= step or not (end >= length):
        raise Refused("it takes a part of the rows, columns or images")
    if step == 1:
        return value
    unpadded(value)
    recorder.features(x)
    along = (step, 1) if dim == 2 else (1, step)
    return pick(recorder, value, (start, 0) if dim == 2 else (0, start), along)


def unshuffled(recorder: "Recorder", given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
    """Space to depth: each of the r x r phases as channels."""
    _, value = recorder.features(x)
    unpadded(value)
    r = given["downscale_factor"]
    picks = [pick(recorder, value, (i, j), (r, r)) for i in range(r) for j in range(r)]
    stacked = Apply("aten.stack.default", ([p.expression for p in picks], 2))
    joined = Apply("aten.view.default", (stacked, [Size(0), out.shape[1], Size(2), Size(3)]))
    return recorder.settled(replace(picks[0], expression=joined, shape=tuple(out.shape)), "pixel_unshuffle")


def padded(given: dict[str, Any], value: Value, out: Tensor) -> Value | None:
    """Zeros around rows and columns, for the reader to add; None if only channels are padded."""
    pad = given["pad"]
    if not any(pad[:4]) and value.axes == NCHW:
        return None
    if value.axes != NCHW or any(pad[4:]) or given["value"] != 0 or min(pad[:4]) < 0:
        raise Refused("only zeros around rows and columns are possible, or channels")
    if not isinstance(value.expression, Input):
        raise Refused("only features N x C x H x W are possible")
    return replace(value, shape=tuple(out.shape), pad=tuple(pad[:4]))


def resize(recorder: "Recorder", name: str, x: Tensor, out: Tensor) -> Value:
    _, value = recorder.features(x)
    unpadded(value)
    if out.shape[2:] != recorder.image.shape[2:]:
        raise Refused("it resizes features, and not to the image's size at the end")
    recorder.resized.append(recorder.where(None, name.strip("_")))
    return replace(value, shape=tuple(out.shape), resized=True)


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _window(given: dict[str, Any]) -> tuple[Pair, Pair, Pair, Pair]:
    """Kernel, stride, padding and dilation of a pool."""
    kernel = pair(given["kernel_size"])
    stride = pair(given["stride"]) if given["stride"] else kernel
    return kernel, stride, pair(given["padding"]), pair(given.get("dilation", 1))


def _sliding(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Sliding, Sliding]:
    rows, columns = (Sliding(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
    return rows, columns


def convolution_sliding(conv: nn.Conv2d) -> tuple[Sliding, Sliding]:
    kernel, stride, dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
    if isinstance(conv.padding, str):
        # torch pads the odd element of 'same' at the end
        same = conv.padding == "same"
        padding = tuple(d * (k - 1) // 2 if same else 0 for k, d in zip(kernel, dilation, strict=True))
    else:
        padding = pair(conv.padding)
    return _sliding(kernel, stride, (padding[0], padding[1]), dilation)
