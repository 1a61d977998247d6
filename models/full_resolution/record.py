"""Watching a network run once: the steps that its image goes through.

The network really runs, on a tensor without memory (`FakeTensorMode`), so shapes, default arguments and
assertions are what they are; a decision by the image's values can't be taken and is refused by torch. What
doesn't depend on the image is computed as it is and becomes a constant.
"""

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from fullres.models.full_resolution.neighbours import (
    average_pool,
    convolution,
    convolution_sliding,
    max_pool,
    padded,
    resize,
    sliced,
    slid,
    unpadded,
    unshuffled,
)
from fullres.models.full_resolution.operations import (
    NCHW,
    Refused,
    Value,
    arguments,
    is_resize,
    read_values,
    result_of,
)
from fullres.models.full_resolution.steps import (
    IMAGE,
    Apply,
    Input,
    Pointwise,
    Step,
    UnsupportedModule,
    walk,
)
from fullres.ops.replicas import ReplicaBatchNorm2d

# Taken as they are: they work otherwise in training, or their parameters are computed.
NORMS = (ReplicaBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)
_WHOLE = (nn.Conv2d, *NORMS, nn.PReLU, nn.Linear)
_BATCH_NORM = (torch.ops.aten.native_batch_norm, torch.ops.aten._native_batch_norm_legit_no_training)


class Recorder(TorchDispatchMode):
    """Inside it, `steps` grows with what is done to `image`."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in network.named_modules()}
        self.steps: dict[str, Step] = {}
        self.resized: list[str] = []  # resizes to the image's size, which are left out
        self.computed: set[str] = set()  # modules whose weights are computed from parameters
        self.image = image
        self._within: list[nn.Module] = []
        self._whole: nn.Module | None = None  # the module among `_WHOLE` that runs
        # Tensors are kept, or their ids would be given to others. Of each: what it is, and how often its
        # memory had been written to.
        self._known: dict[int, tuple[Tensor, Value, int]] = {}
        self._writes: dict[int, int] = {}
        self._derived: dict[int, Tensor] = {}  # computed from parameters
        self._set(image, Value(Input(IMAGE), tuple(image.shape), (1, 1), dtype=image.dtype))

    # --- what a tensor is ---

    def _set(self, tensor: Tensor, value: Value) -> None:
        self._known[id(tensor)] = (tensor, value, self._writes.get(_memory(tensor), 0))

    def value(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._known:
            raise Refused("it reads a tensor whose origin is not known")
        _, value, writes = self._known[id(tensor)]
        if writes != self._writes.get(_memory(tensor), 0):
            raise Refused("it reads a tensor that was written to through a part or another view of it")
        if not (value.dtype == self.image.dtype or value.dtype == torch.bool):
            raise Refused(f"it reads {str(value.dtype).removeprefix('torch.')}, not features")
        return value

    def features(self, tensor: Tensor) -> tuple[str, Value]:
        """The step that makes a tensor N x C x H x W."""
        value = self.value(tensor)
        if value.axes != NCHW or len(value.shape) != 4 or not isinstance(value.expression, Input):
            raise Refused("only features N x C x H x W are possible")
        if value.resized:
            raise Refused(f"it reads what was resized: {self.resized[-1]}")
        return value.expression.name, value

    # --- modules ---

    @contextmanager
    def modules(self) -> Any:
        """Knows which module runs."""
        with ExitStack() as stack:
            register = torch.nn.modules.module
            stack.enter_context(_removed(register.register_module_forward_pre_hook(self._enter)))
            stack.enter_context(_removed(register.register_module_forward_hook(self._leave)))
            yield

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            raise UnsupportedModule(
                f"{self.where(module)} runs under autocast, which would be lost: leave it away, a precision "
                "is chosen where the network is run"
            )
        self._within.append(module)
        if self._whole is None and _is_whole(module):
            self._whole = module

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._within.pop()
        if self._whole is module:
            self._whole = None
            if isinstance(inputs[0], FakeTensor):
                with self._named(self.where(module)):
                    self._module(module, inputs[0], output)

    def where(self, module: nn.Module | None = None, function: str = "") -> str:
        """The place in words: a module of torch's, or a function and the module that calls it."""
        module = module or (self._within[-1] if self._within else None)
        path = self.names.get(id(module), "")
        own = type(module).__module__.startswith("torch.nn")
        if module is not None and (own or not function) and not isinstance(module, nn.Sequential):
            return f"module '{path}' ({type(module).__name__})" if path else type(module).__name__
        return f"function {function}" + (f" in module '{path}'" if path else "")

    @contextmanager
    def _named(self, where: str) -> Any:
        try:
            yield
        except Refused as why:
            raise UnsupportedModule(
                f"{where} has no full-resolution form: {why}. `split_merge` takes the part of a network "
                "before it"
            ) from None

    def _module(self, module: nn.Module, x: Tensor, out: Tensor) -> None:
        if isinstance(module, nn.Linear):
            value = self.value(x)
            if value.axes[2] == len(value.shape) - 1:
                raise Refused("it reads whole rows")
            called = replace(value, expression=Apply(module, (value.expression,)), shape=tuple(out.shape))
            self._set(out, self.settled(called, "linear"))
            return
        name, value = self.features(x)
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                raise Refused(f"padding_mode is '{module.padding_mode}', only 'zeros' is possible")
            step = Step("", "convolution", (name,), module, module.out_channels)
            self._set(out, slid(self, step, value, convolution_sliding(module), out))
            return
        unpadded(value)
        if isinstance(module, NORMS) and module.running_mean is None:
            raise Refused(
                "without running statistics it depends on the whole image; track_running_stats=True"
            )
        self._set(out, self.added(Step("", "pointwise", (name,), module, out.shape[1]), value, out))

    # --- functions ---

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if not any(isinstance(t, FakeTensor) for t in read):
            with unset_fake_temporarily():
                result = function(*args, **kwargs)
            if any(t.requires_grad or id(t) in self._derived for t in read) and isinstance(result, Tensor):
                self._derived[id(result)] = result
            return result
        if self._whole is not None:
            if function.overloadpacket in _BATCH_NORM:  # of its input's size: torch takes long to find out
                return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
            return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        with self._named(self.where(None, name.strip("_"))):
            if function._schema.is_mutable:
                return self._written(function, args, kwargs)
            result = function(*args, **kwargs)
            tensors = [t for t in tree_flatten(result)[0] if isinstance(t, FakeTensor)]
            if tensors:
                for tensor, value in zip(
                    tensors, self._results(function, args, kwargs, tensors), strict=True
                ):
                    if value is not None:
                        self._set(tensor, value)
            return result

    def _written(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A function that writes over its first argument, which is another thing from now on."""
        packet = function.overloadpacket.__name__
        if not packet.endswith("_") or packet in ("copy_", "fill_", "zero_"):
            raise Refused("it writes into a part of a tensor")
        space = getattr(torch.ops, function.namespace)
        same = getattr(getattr(space, packet[:-1]), function._overloadname)
        target = args[0]
        if not isinstance(target, FakeTensor):
            raise Refused("it writes features into a tensor of the network")
        (value,) = self._results(same, args, kwargs, [same(*args, **kwargs)])
        result = function(*args, **kwargs)
        self._writes[_memory(target)] = self._writes.get(_memory(target), 0) + 1
        assert value is not None
        self._set(target, value)
        return result

    def _results(self, function: Any, args: Any, kwargs: Any, out: Sequence[Tensor]) -> list[Value | None]:
        name = function.overloadpacket.__name__
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "layout")}
        given = arguments(function, args, kwargs)
        x = next(t for t in tree_flatten((args, kwargs))[0] if isinstance(t, FakeTensor))
        sliding = {
            "convolution": convolution, "max_pool2d_with_indices": max_pool,
            "avg_pool2d": average_pool, "pixel_unshuffle": unshuffled,
        }  # fmt: skip
        if name in sliding:
            return [sliding[name](self, given, x, out[0]), *[None] * (len(out) - 1)]
        if is_resize(function):
            return [resize(self, name, x, out[0])]
        if name == "slice" and given["dim"] % x.dim() in self.value(x).axes:
            return [sliced(self, given, x, out[0])]
        args, kwargs = tree_map_only(FakeTensor, self.value, (args, kwargs))
        for value in read_values((args, kwargs)):
            unpadded(value)
        if name == "constant_pad_nd" and (around := padded(given, args[0], out[0])):
            return [around]
        self.constants(args)
        results = result_of(function, args, kwargs, [t.shape for t in out])
        for tensor in out:
            if tensor.dtype.is_floating_point and tensor.dtype != self.image.dtype:
                raise Refused(f"it changes the precision to {str(tensor.dtype).removeprefix('torch.')}")
        return [
            None if value is None else self.settled(replace(value, dtype=tensor.dtype), name)
            for value, tensor in zip(results, out, strict=True)
        ]

    def constants(self, args: Any) -> None:
        """Notes whose constants are computed from parameters: gradients would not reach those."""
        if any(id(t) in self._derived for t in tree_flatten(args)[0] if isinstance(t, Tensor)):
            self.computed.add(self.where())

    def settled(self, value: Value, name: str) -> Value:
        """As a step of its own where it is N x C x H x W; anything between stays an expression."""
        if value.axes != NCHW or len(value.shape) != 4:
            return value
        root = value.expression
        assert isinstance(root, Apply)
        inputs = list(dict.fromkeys(part.name for part in walk(root) if isinstance(part, Input)))
        with unset_fake_temporarily():
            call = Pointwise(root, inputs, self.image.dtype)
        step = Step("", "pointwise", tuple(inputs), call, value.shape[1], stride=value.stride)
        return replace(value, expression=Input(self.append(step, name.strip("_"))))

    def added(self, step: Step, value: Value, out: Tensor) -> Value:
        step = replace(step, stride=value.stride) if step.op == "pointwise" else step
        name = self.append(step, "")
        return Value(Input(name), tuple(out.shape), step.stride, dtype=out.dtype)

    def append(self, step: Step, function: str) -> str:
        path = self.names.get(id(step.call)) or self.names.get(
            id(self._within[-1] if self._within else None), ""
        )
        base = ".".join(part for part in (path, function) if part) or type(step.call).__name__
        name, count = base, 1
        while name in self.steps:
            count += 1
            name = f"{base}#{count}"
        self.steps[name] = replace(step, name=name)
        return name


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _removed(handle: Any) -> Any:
    with handle:
        yield


def _is_whole(module: nn.Module) -> bool:
    """Whether a module does what the class among `_WHOLE` does that it is taken for."""
    kind = next((kind for kind in _WHOLE if isinstance(module, kind)), None)
    if kind is None or "forward" in vars(module) or type(module).forward is not kind.forward:
        return False
    return not isinstance(module, nn.Conv2d) or type(module)._conv_forward is nn.Conv2d._conv_forward
