"""Which of torch's functions do the same at every position, and where N, H and W stand in their results.

Decided by what a function reads, not by a list of layers: torch marks its elementwise functions itself; those
along a dimension, and those that only arrange, are fine while they leave rows and columns alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from fullres.models.full_resolution.steps import Apply, Expression, Pair, Size

Axes = tuple[int, int, int]  # where N, H and W stand among the dimensions; all others are channels
NCHW: Axes = (0, 2, 3)


class Refused(Exception):
    """Why a function has no full-resolution form."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the image: how it is computed from steps, its shape in the trace, the stride
    of the steps. `pad`: zeros (left, right, top, bottom) around it that its readers are still to add.
    `resized`: it stands for itself resized to the image, which was left out."""

    expression: Expression
    shape: tuple[int, ...]
    stride: Pair
    axes: Axes = NCHW
    dtype: torch.dtype = torch.float32
    pad: tuple[int, int, int, int] | None = None
    resized: bool = False


# torch doesn't mark these as elementwise, but they are.
_ELEMENTWISE = {
    "_prelu_kernel", "hardswish", "log_sigmoid_forward", "zeros_like", "ones_like", "full_like", "detach",
    "alias", "lift_fresh", "_to_copy", "contiguous",
}  # fmt: skip
_ALONG_DIMENSIONS = {
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "linalg_vector_norm",
    "norm", "argmax", "argmin", "prod", "any", "all", "_softmax", "_log_softmax", "cumsum", "flip", "glu",
    "topk", "sort", "select", "slice", "split", "split_with_sizes", "unbind", "index_select", "roll",
    "squeeze",
}  # fmt: skip
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_copy"}


def arguments(function: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """By the names of the function's schema, defaults filled in."""
    schema = function._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    return given | dict(zip((a.name for a in schema), args, strict=False)) | kwargs


def is_resize(function: Any) -> bool:
    return function.overloadpacket.__name__.startswith(("upsample_", "_upsample_"))


def read_values(part: Any) -> list[Value]:
    if isinstance(part, Value):
        return [part]
    if isinstance(part, list | tuple):
        return [v for p in part for v in read_values(p)]
    return [v for p in part.values() for v in read_values(p)] if isinstance(part, dict) else []


def result_of(function: Any, args: Any, kwargs: dict[str, Any], shapes: list[Any]) -> list[Value | None]:
    """The results, of `shapes`, of an elementwise function, or one along channels. A result without a place
    for N, H and W is None. Raises Refused for any other function."""
    name = function.overloadpacket.__name__
    given, values = arguments(function, args, kwargs), read_values((args, kwargs))
    first = values[0]
    axes: Axes | None
    if torch.Tag.nondeterministic_seeded in function.tags or name == "empty_like":
        raise Refused("it is random")
    if torch.Tag.pointwise in function.tags or name in _ELEMENTWISE:
        axes = _broadcast(given.values(), len(shapes[0]))
    elif name in _ALONG_DIMENSIONS:
        axes = _along(given, first, len(shapes[0]))
    elif name in ("cat", "stack"):
        axes = _joined(given, values, name == "stack")
    elif name in _VIEWS:
        axes = _viewed(first, shapes[0])
        args = (args[0], _with_sizes(shapes[0], axes), *args[2:])
    elif name == "expand":
        axes = _moved(first.axes, len(shapes[0]) - len(first.shape))
        args = (args[0], _with_sizes(shapes[0], axes), *args[2:])
    elif name in ("permute", "transpose"):
        order = list(range(len(first.shape)))
        if name == "permute":
            order = [d % len(order) for d in given["dims"]]
        else:
            one, other = (given[d] % len(order) for d in ("dim0", "dim1"))
            order[one], order[other] = other, one
        axes = tuple(order.index(axis) for axis in first.axes)  # type: ignore[assignment]
    elif name == "unsqueeze":
        at = given["dim"] % len(shapes[0])
        axes = tuple(axis + (axis >= at) for axis in first.axes)
    elif name == "native_layer_norm":
        if max(first.axes) >= len(first.shape) - len(given["normalized_shape"]):
            raise Refused("it reads whole rows or columns")
        axes, shapes = first.axes, [shapes[0], *[None] * (len(shapes) - 1)]
    elif name == "constant_pad_nd":
        pairs = range(len(given["pad"]) // 2)
        padded = {len(first.shape) - 1 - i for i in pairs if any(given["pad"][2 * i : 2 * i + 2])}
        if padded & set(first.axes):
            raise Refused("it pads rows, columns or images")
        axes = first.axes
    elif name == "channel_shuffle" and first.axes == NCHW:
        axes = NCHW
    elif name in ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"):
        if first.axes != NCHW or given.get("training", False) or given["running_mean"] is None:
            raise Refused("it normalises with the mean and variance of the whole image")
        axes, shapes = NCHW, [shapes[0], *[None] * (len(shapes) - 1)]
    else:
        raise Refused("it may read other places than its own")
    return _results(function, args, kwargs, values, axes, shapes)


def _results(
    function: Any, args: Any, kwargs: Any, values: list[Value], axes: Axes | None, shapes: list[Any]
) -> list[Value | None]:
    target = str(function)
    if any(v.resized != values[0].resized for v in values):
        raise Refused("it joins what was resized to the image with what was not")
    of = {v.stride for v in values}
    if len(of) > 1:
        raise Refused(f"it joins features of output strides {sorted(of)}")
    calls = [
        Apply(target, plain(args), {k: plain(v) for k, v in kwargs.items()}, i if len(shapes) > 1 else None)
        for i in range(len(shapes))
    ]
    kept = replace(values[0], axes=axes or NCHW)
    return [
        None if shape is None or axes is None else replace(kept, expression=call, shape=tuple(shape))
        for call, shape in zip(calls, shapes, strict=True)
    ]


def plain(part: Any) -> Any:
    """Arguments with the expressions of their values."""
    if isinstance(part, Value):
        return part.expression
    if isinstance(part, list | tuple):
        return tuple(plain(p) for p in part) if isinstance(part, tuple) else [plain(p) for p in part]
    return part


def _broadcast(given: Iterable[Any], dimensions: int) -> Axes:
    """Dimensions are matched from the last one on. What isn't computed from the image must have one value for
    all positions."""
    tensors = [t for t in given if isinstance(t, Value | Tensor)]
    found = {tuple(a - len(v.shape) for a in v.axes) for v in tensors if isinstance(v, Value)}
    if len(found) > 1:
        raise Refused("its inputs have rows and columns at different dimensions")
    (axes,) = found
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            lengths = [tensor.shape[a] for a in axes if tensor.dim() + a >= 0]
            if any(n != 1 for n in lengths):
                raise Refused(
                    f"it reads a tensor of shape {tuple(tensor.shape)} that differs from place to place and "
                    "doesn't come from the image"
                )
    return tuple(dimensions + a for a in axes)  # type: ignore[return-value]


def _along(given: dict[str, Any], value: Value, dimensions: int) -> Axes:
    dims = given.get("dim", given.get("dims"))
    dims = [dims] if isinstance(dims, int) else dims
    if not dims:
        raise Refused("it reads the whole image")
    dims = {d % len(value.shape) for d in dims}
    if dims & set(value.axes):
        raise Refused("it goes along rows, columns or images, only channels (dim 1) are possible")
    if dimensions == len(value.shape):
        return value.axes
    return tuple(a - sum(d < a for d in dims) for a in value.axes)


def _joined(given: dict[str, Any], values: list[Value], is_stack: bool) -> Axes:
    if len({v.axes for v in values}) > 1 or len(values) < len(given["tensors"]):
        raise Refused("not all that it joins is computed from the image alike")
    axes, ndim = values[0].axes, len(values[0].shape)
    dim = given["dim"] % (ndim + is_stack)
    if is_stack:
        return tuple(a + (a >= dim) for a in axes)
    if dim in axes:
        raise Refused(f"dim is {given['dim']}, only channels (1) can be joined")
    return axes


def _viewed(value: Value, shape: Any) -> Axes:
    """A view keeps the order of elements: N, H and W are where as much lies before them as before."""
    axes = []
    for axis in value.axes:
        before = prod(value.shape[:axis])
        places = [i for i, n in enumerate(shape) if n == value.shape[axis] and prod(shape[:i]) == before]
        if not places:
            raise Refused("it mixes rows, columns or images with each other or with channels")
        axes.append(places[0])
    return tuple(axes)  # type: ignore[return-value]


def _moved(axes: Axes, by: int) -> Axes:
    return tuple(a + by for a in axes)  # type: ignore[return-value]


def _with_sizes(shape: Any, axes: Axes) -> list[Any]:
    """`shape` with the lengths of N, H and W left open."""
    open_ = dict(zip(axes, (Size(0), Size(2), Size(3)), strict=True))
    return [open_.get(i, n) for i, n in enumerate(shape)]
