"""What a traced network consists of: steps, and the functions of them that are no convolutions and pools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fullres.models.full_resolution.geometry import POINT, Sliding
from fullres.ops.errors import FullresError

IMAGE = "<image>"  # no module has such a name
Pair = tuple[int, int]


def pair(x: Any) -> Pair:
    """Of rows and columns, where torch takes one number for both."""
    return (x, x) if isinstance(x, int) else (x[0], x[-1])


class UnsupportedModule(FullresError, ValueError):
    """A part of a network that has no full-resolution form. The message names it and says why."""


@dataclass(frozen=True)
class Step:
    """One call of the network.

    `sliding` says where it reads, along rows and columns; `stride` is the lattice it writes on, in pixels of
    the image. `call` takes the input tensors: for convolutions and pools see `models.split_merge`.
    """

    name: str
    op: str  # "convolution", "max_pool", "max_pool_zeros", "average_pool(_inside)" or "pointwise"
    inputs: tuple[str, ...]
    call: Callable[..., Tensor]
    channels: int
    sliding: tuple[Sliding, Sliding] = (POINT, POINT)
    stride: Pair = (1, 1)

    def sliding_of(self, index: int, axis: int) -> Sliding:
        """Where input `index` is read: a convolution's second input is a shortcut, added element by
        element."""
        return self.sliding[axis] if index == 0 or self.op != "convolution" else POINT


# --- expressions: what a pointwise step computes of its inputs ---


@dataclass(frozen=True)
class Input:
    """The features of the step of that name, N x C x H x W."""

    name: str


@dataclass(frozen=True)
class Size:
    """The length of an axis of the inputs (0: N, 2: H, 3: W), which is another one in each part of an
    image."""

    axis: int


@dataclass(frozen=True, eq=False)
class Apply:
    """A call of a function of torch's operator set ("aten.add.Tensor"), or of a module. Arguments hold other
    expressions, tensors that don't depend on the image, and plain values."""

    target: str | nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: int | None = None  # of a function that returns several


@dataclass(frozen=True)
class _Held:
    """A tensor or module that `Pointwise` holds."""

    name: str


@dataclass(frozen=True)
class _WorkingDtype:
    """That of the network when it runs; when it was traced it was another one."""


Expression = Input | Apply


def walk(expression: Any) -> Any:
    """An expression and all that its arguments hold, depth first."""
    yield expression
    parts: Sequence[Any] = ()
    if isinstance(expression, Apply):
        parts = (*expression.args, *expression.kwargs.values())
    elif isinstance(expression, list | tuple):
        parts = expression
    for part in parts:
        yield from walk(part)


class Pointwise(nn.Module):
    """A function that does the same at every position: tensors N x C x H x W to one of N x D x H x W."""

    def __init__(self, root: Apply, inputs: Sequence[str], dtype: torch.dtype) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.register_buffer("working", torch.empty(0, dtype=dtype), persistent=False)
        self._taken: dict[int, Any] = {}
        self.root = self._take(root, dtype)
        del self._taken

    def _take(self, part: Any, dtype: torch.dtype) -> Any:
        """The expression with its tensors and modules held by this module, so that they move with it."""
        if isinstance(part, list | tuple):
            return type(part)(self._take(p, dtype) for p in part)
        if isinstance(part, Tensor | Apply | nn.Module):
            if id(part) not in self._taken:
                self._taken[id(part)] = self._held(part, dtype)
            return self._taken[id(part)]
        return _WorkingDtype() if part == dtype else part

    def _held(self, part: Tensor | Apply | nn.Module, dtype: torch.dtype) -> Any:
        if isinstance(part, Apply):
            named = {k: self._take(v, dtype) for k, v in part.kwargs.items()}
            target = self._take(part.target, dtype)
            return Apply(target, self._take(part.args, dtype), named, part.output)
        name = f"held{len(self._taken)}"
        if isinstance(part, nn.Module):
            self.add_module(name, part)
        elif isinstance(part, nn.Parameter):
            self.register_parameter(name, part)
        else:
            self.register_buffer(name, part, persistent=False)
        return _Held(name)

    @property
    def is_relu(self) -> bool:
        return self.root.target == "aten.relu.default" and isinstance(self.root.args[0], Input)

    @property
    def is_sum(self) -> bool:
        """Of two different tensors, nothing else. They may still be broadcast."""
        of_two = [isinstance(a, Input) for a in self.root.args] == [True, True] and not self.root.kwargs
        return self.root.target == "aten.add.Tensor" and of_two and len(self.inputs) == 2

    @property
    def is_composed(self) -> bool:
        """Of several calls, with results between them."""
        return sum(isinstance(part, Apply) for part in walk(self.root)) > 1

    def forward(self, *tensors: Tensor) -> Tensor:
        result = self._value(self.root, dict(zip(self.inputs, tensors, strict=True)), {})
        memory = result.untyped_storage()._cdata
        # Who reads the result may overwrite it, and must not overwrite the input with it.
        is_view = any(t.untyped_storage()._cdata == memory for t in tensors)
        return result.clone() if is_view else result

    def _value(self, part: Any, given: dict[str, Tensor], known: dict[int, Any]) -> Any:
        """Of an expression. `known`: results by their call, which may be used more than once.

        It is a method, for a function that names itself would keep all of them until a garbage collection.
        """
        if isinstance(part, Input):
            return given[part.name]
        if isinstance(part, Size):
            return given[self.inputs[0]].shape[part.axis]
        if isinstance(part, _Held):
            return getattr(self, part.name)
        if isinstance(part, _WorkingDtype):
            return self.working.dtype
        if isinstance(part, list | tuple):
            return type(part)(self._value(p, given, known) for p in part)
        if not isinstance(part, Apply):
            return part
        if id(part) not in known:
            held = isinstance(part.target, _Held)
            call = self._value(part.target, given, known) if held else _function(part.target)
            named = {name: self._value(v, given, known) for name, v in part.kwargs.items()}
            result = call(*self._value(part.args, given, known), **named)
            known[id(part)] = result if part.output is None else result[part.output]
        return known[id(part)]


@cache
def _function(name: Any) -> Callable[..., Any]:
    """By name, because torch's functions themselves can't be sent to other processes."""
    space, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload)
