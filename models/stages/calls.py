"""The calls that a network's forward makes, in order: what a pipeline's stages divide among them.

The network itself runs, in training mode, on images without memory, and a function mode sees every torch
function that reads features or parameters. Batch norms and dropouts are seen whole, as one call each: what is
inside one differs between one process and a group of replicas.

When a stage runs (`stage.py`), the network's own Python code makes the same calls again, and those of other
stages are passed over. So a network needs no second description of itself for being cut.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fullres.models.count import counted_macs

# What a tensor is: the number of the call that returned it, and its place among that call's tensors. Tensors
# have it as their attribute `made`.
Made = tuple[int, int]
IMAGES: Made = (-1, 0)
_WHOLE = (_BatchNorm, nn.Dropout2d)


@dataclass
class Call:
    """One call of a network's forward.

    `what`: the function, or the name of a module that is seen whole. `result`: what it returns, with tensors
    without memory in the place of tensors. `reads`: which features. `uses`: the names of the parameters and
    buffers. `macs`: multiply-adds. `nbytes`: of features that it makes.
    """

    what: Any
    result: Any
    reads: frozenset[Made] = frozenset()
    uses: frozenset[str] = frozenset()
    macs: int = 0
    nbytes: int = 0


@dataclass
class Calls:
    """`images`: what the network read. `output`: what it returned. `tensors`: of everything made its stand-in
    without memory. `together`: numbers of calls that one stage must make, as they write to one memory.
    `queries`: functions that make no features, as that for a shape. They are no calls, every stage asks.
    `sizes`: of each parameter how many numbers."""

    images: FakeTensor
    output: Any = None
    calls: list[Call] = field(default_factory=list)
    tensors: dict[Made, Tensor] = field(default_factory=dict)
    together: list[list[int]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    # A tensor without memory answers this one by itself.
    queries: set[Any] = field(default_factory=lambda: {Tensor.device.__get__})


class Uncuttable(ValueError):
    """The network can't be cut into stages."""


def calls_of(
    network: nn.Module, shape: tuple[int, ...], device: torch.device, autocast: torch.dtype | None = None
) -> Calls:
    """What `network` does in training to images of this shape (N, 3, H, W) and of its parameters' dtype.
    `autocast`: what layers compute in. Nothing is computed, and its running statistics stay. Parameters must
    be on `device`.

    Raises Uncuttable where it decides by the values of features.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        images = torch.empty(shape, dtype=next(network.parameters()).dtype, device=device)
        recorder = _Recorder(network, images)
        try:
            with whole_modules(network, recorder.module), recorder:
                recorder.found.output = network(images)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise Uncuttable(f"{type(network).__name__} can't be cut into stages: {line}") from error
    return recorder.found


@contextmanager
def whole_modules(network: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Inside, batch norms and dropouts run as `call(name, forward, x)`."""
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, _WHOLE):
                module.forward = partial(call, name, module.forward)  # type: ignore[method-assign]
                stack.callback(module.__dict__.pop, "forward")
        yield


def names_of(network: nn.Module) -> dict[int, str]:
    """Of its parameters and buffers, by their ids."""
    return {
        id(t): name for named in (network.named_parameters(), network.named_buffers()) for name, t in named
    }


def tensors_in(values: Any) -> list[Tensor]:
    """Those in tuples, lists and dictionaries, one in the other."""
    found: list[Tensor] = []
    mapped(lambda tensor: found.append(tensor), values)
    return found


def mapped(function: Callable[[Tensor], Any], values: Any) -> Any:
    """The same with what `function` makes of every tensor. A tenth of the time of torch's own, which looks
    for more kinds of containers, for every call of a network."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, tuple | list):
        parts = [mapped(function, value) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    if isinstance(values, dict):
        return {name: mapped(function, value) for name, value in values.items()}
    return values


class _Recorder(TorchFunctionMode):
    def __init__(self, network: nn.Module, images: Any) -> None:
        super().__init__()
        self.found = Calls(images, sizes={name: p.numel() for name, p in network.named_parameters()})
        self.names = names_of(network)
        self.of_module = {
            name: frozenset(f"{name}.{n}" for n, _ in (*module.named_parameters(), *module.named_buffers()))
            for name, module in network.named_modules()
            if isinstance(module, _WHOLE)
        }
        self._inside = False  # a module that is seen whole
        self._touching: dict[int, list[int]] = {}  # by memory: the calls that read or wrote it
        images.made = IMAGES
        self.found.tensors[IMAGES] = images

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = tensors_in((args, kwargs))
        uses = frozenset(self.names[id(t)] for t in read if id(t) in self.names)
        features = [t for t in read if hasattr(t, "made")]
        if self._inside:
            return function(*args, **kwargs)
        if not uses and not features:
            with unset_fake_temporarily():  # a constant: drawn phases, positions
                return function(*args, **kwargs)
        versions = [t._version for t in features]
        with FlopCounterMode(display=False) as counter:
            result = function(*args, **kwargs)
        # A constant or parameter as it was, `weight.to(x)` say: of those there are many, this is one call's.
        result = mapped(lambda t: t if isinstance(t, FakeTensor) else t.clone(), result)
        written = [t for t, version in zip(features, versions, strict=True) if t._version != version]
        if not written and not tensors_in(result):
            self.found.queries.add(function)
        else:
            self._add(Call(function, result, uses=uses, macs=counted_macs(counter)), features, written)
        return result

    def module(self, name: str, forward: Callable[..., Any], x: Tensor) -> Tensor:
        self._inside = True
        try:
            result = torch.empty_like(x)
            self._add(Call(name, result, uses=self.of_module[name]), [x], [])
            return result
        finally:
            self._inside = False

    def _add(self, call: Call, features: list[Any], written: list[Any]) -> None:
        number = len(self.found.calls)
        self.found.calls.append(call)
        call.reads = frozenset(t.made for t in features)
        memories = {_memory(t) for t in features}
        for place, tensor in enumerate(tensors_in(call.result)):
            if not hasattr(tensor, "made") or any(tensor is t for t in written):
                tensor.made = (number, place)  # type: ignore[attr-defined]
                self.found.tensors[number, place] = tensor
            if _memory(tensor) not in memories:
                memories.add(_memory(tensor))
                call.nbytes += tensor.nbytes
        for memory in memories:
            self._touching.setdefault(memory, []).append(number)
        for tensor in written:
            # What is written in place is made, read and written by one stage.
            self.found.together.append(list(self._touching[_memory(tensor)]))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
