"""Watching a network run once: the steps that its image goes through.

The network really runs, on a tensor without memory (`FakeTensorMode`), so shapes, default arguments and
assertions are what they are; a decision by the image's values can't be taken and is refused by torch. What
doesn't depend on the image is computed as it is and becomes a constant.
"""

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from fullres.models.full_resolution.geometry import Sliding
from fullres.models.full_resolution.operations import (
    NCHW,
    Refused,
    Value,
    arguments,
    read_values,
    result_of,
)
from fullres.models.full_resolution.steps import (
    IMAGE,
    Apply,
    Input,
    Pair,
    Pointwise,
    Size,
    Step,
    UnsupportedModule,
    walk,
)

# Taken as they are: they work otherwise in training, or their parameters are computed.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_WHOLE = (nn.Conv2d, *NORMS, nn.PReLU, nn.Linear)


class Recorder(TorchDispatchMode):
    """Inside it, `steps` grows with what is done to `image`."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in network.named_modules()}
        self.steps: dict[str, Step] = {}
        self.resized: list[str] = []  # resizes to the image's size, which are left out
        self.computed: set[str] = set()  # modules whose weights are computed from parameters
        self._image = image
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
        if not (value.dtype == self._image.dtype or value.dtype == torch.bool):
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
            self._set(out, self._settled(called, "linear"))
            return
        name, value = self.features(x)
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                raise Refused(f"padding_mode is '{module.padding_mode}', only 'zeros' is possible")
            step = Step("", "convolution", (name,), module, module.out_channels)
            self._set(out, self._slid(step, value, _convolution_sliding(module), out))
            return
        self._unpadded(value)
        if isinstance(module, NORMS) and module.running_mean is None:
            raise Refused(
                "without running statistics it depends on the whole image; track_running_stats=True"
            )
        self._set(out, self._added(Step("", "pointwise", (name,), module, out.shape[1]), value, out))

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
            "convolution": self._convolution, "max_pool2d_with_indices": self._max_pool,
            "avg_pool2d": self._average_pool, "pixel_unshuffle": self._unshuffled,
        }  # fmt: skip
        if name in sliding:
            return [sliding[name](given, x, out[0]), *[None] * (len(out) - 1)]
        if name.startswith(("upsample_", "_upsample_")):
            return [self._resize(name, x, out[0])]
        if name == "slice" and given["dim"] % x.dim() in self.value(x).axes:
            return [self._sliced(given, x, out[0])]
        args, kwargs = tree_map_only(FakeTensor, self.value, (args, kwargs))
        for value in read_values((args, kwargs)):
            self._unpadded(value)
        if name == "constant_pad_nd" and (padded := self._padded(given, args[0], out[0])):
            return [padded]
        self._constants(args)
        results = result_of(function, args, kwargs, [t.shape for t in out])
        for tensor in out:
            if tensor.dtype.is_floating_point and tensor.dtype != self._image.dtype:
                raise Refused(f"it changes the precision to {str(tensor.dtype).removeprefix('torch.')}")
        return [
            None if value is None else self._settled(replace(value, dtype=tensor.dtype), name)
            for value, tensor in zip(results, out, strict=True)
        ]

    def _constants(self, args: Any) -> None:
        """Notes whose constants are computed from parameters: gradients would not reach those."""
        if any(id(t) in self._derived for t in tree_flatten(args)[0] if isinstance(t, Tensor)):
            self.computed.add(self.where())

    def _settled(self, value: Value, name: str) -> Value:
        """As a step of its own where it is N x C x H x W; anything between stays an expression."""
        if value.axes != NCHW or len(value.shape) != 4:
            return value
        root = value.expression
        assert isinstance(root, Apply)
        inputs = list(dict.fromkeys(part.name for part in walk(root) if isinstance(part, Input)))
        with unset_fake_temporarily():
            call = Pointwise(root, inputs, self._image.dtype)
        step = Step("", "pointwise", tuple(inputs), call, value.shape[1], stride=value.stride)
        return replace(value, expression=Input(self._append(step, name.strip("_"))))

    def _added(self, step: Step, value: Value, out: Tensor) -> Value:
        step = replace(step, stride=value.stride) if step.op == "pointwise" else step
        name = self._append(step, "")
        return Value(Input(name), tuple(out.shape), step.stride, dtype=out.dtype)

    def _append(self, step: Step, function: str) -> str:
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

    @staticmethod
    def _unpadded(value: Value) -> None:
        if value.pad:
            raise Refused("it reads padded features; only convolutions and pools may follow on padding")

    # --- what reads neighbours ---

    def _slid(self, step: Step, value: Value, sliding: tuple[Sliding, Sliding], out: Tensor) -> Value:
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
        return self._added(replace(step, sliding=(rows, columns), stride=stride), value, out)

    def _convolution(self, given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
        name, value = self.features(x)
        weight, bias = given["weight"], given["bias"]
        if given["transposed"]:
            raise Refused("it is a transposed convolution, which adds what lies between pixels")
        if isinstance(weight, FakeTensor) or isinstance(bias, FakeTensor):
            raise Refused("its weights are computed from the image")
        self._constants([weight, bias])
        conv = nn.Conv2d(
            weight.shape[1] * given["groups"], weight.shape[0], tuple(weight.shape[2:]), given["stride"],
            given["padding"], given["dilation"], given["groups"], bias is not None, device="meta",
        ).eval()  # fmt: skip
        with unset_fake_temporarily():
            conv.weight = _parameter(weight)
            conv.bias = None if bias is None else _parameter(bias)
        step = Step("", "convolution", (name,), conv, conv.out_channels)
        return self._slid(step, value, _convolution_sliding(conv), out)

    def _max_pool(self, given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
        name, value = self.features(x)
        kernel, stride, padding, dilation = _window(given)
        if value.pad and any(padding):
            raise Refused("it pads with nothing what was padded with zeros")
        call = partial(torch.max_pool2d, kernel_size=kernel, dilation=dilation)
        step = Step("", "max_pool_zeros" if value.pad else "max_pool", (name,), call, out.shape[1])
        return self._slid(step, value, _sliding(kernel, stride, padding, dilation), out)

    def _average_pool(self, given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
        name, value = self.features(x)
        kernel, stride, padding, _ = _window(given)
        divisor = given["divisor_override"]
        inside = not given["count_include_pad"] or (given["ceil_mode"] and not any(padding))
        if value.pad and inside:
            raise Refused("it counts only what lies inside padded features")
        op = "average_pool_inside" if inside and divisor is None else "average_pool"
        call = partial(F.avg_pool2d, kernel_size=kernel, divisor_override=divisor)
        step = Step("", op, (name,), call, out.shape[1])
        return self._slid(step, value, _sliding(kernel, stride, padding, (1, 1)), out)

    def _pick(self, x: Value, start: Pair, stride: Pair) -> Value:
        """Every stride-th element: a pool of one. Behind the border there are zeros."""
        assert isinstance(x.expression, Input)
        call = partial(torch.max_pool2d, kernel_size=(1, 1))
        op = "max_pool" if start == (0, 0) else "max_pool_zeros"
        sliding = (Sliding(1, stride[0], -start[0]), Sliding(1, stride[1], -start[1]))
        own = (x.stride[0] * stride[0], x.stride[1] * stride[1])
        name = self._append(Step("", op, (x.expression.name,), call, x.shape[1], sliding, own), "pick")
        rows, columns = (-(-(n - o) // s) for n, o, s in zip(x.shape[2:], start, stride, strict=True))
        return replace(x, expression=Input(name), shape=(*x.shape[:2], rows, columns), stride=own)

    def _sliced(self, given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
        value = self.value(x)
        dim, step, start = given["dim"] % x.dim(), given["step"], given["start"] or 0
        length = value.shape[dim]
        end = length if given["end"] is None else given["end"]
        if dim == value.axes[0] or start < 0 or start >= step or not (end >= length):
            raise Refused("it takes a part of the rows, columns or images")
        if step == 1:
            return value
        self._unpadded(value)
        self.features(x)
        along = (step, 1) if dim == 2 else (1, step)
        return self._pick(value, (start, 0) if dim == 2 else (0, start), along)

    def _unshuffled(self, given: dict[str, Any], x: Tensor, out: Tensor) -> Value:
        """Space to depth: each of the r x r phases as channels."""
        _, value = self.features(x)
        self._unpadded(value)
        r = given["downscale_factor"]
        picks = [self._pick(value, (i, j), (r, r)) for i in range(r) for j in range(r)]
        stacked = Apply("aten.stack.default", ([p.expression for p in picks], 2))
        joined = Apply("aten.view.default", (stacked, [Size(0), out.shape[1], Size(2), Size(3)]))
        return self._settled(replace(picks[0], expression=joined, shape=tuple(out.shape)), "pixel_unshuffle")

    def _padded(self, given: dict[str, Any], value: Value, out: Tensor) -> Value | None:
        """Zeros around rows and columns, for the reader to add; None if only channels are padded."""
        pad = given["pad"]
        if not any(pad[:4]) and value.axes == NCHW:
            return None
        if value.axes != NCHW or any(pad[4:]) or given["value"] != 0 or min(pad[:4]) < 0:
            raise Refused("only zeros around rows and columns are possible, or channels")
        if not isinstance(value.expression, Input):
            raise Refused("only features N x C x H x W are possible")
        return replace(value, shape=tuple(out.shape), pad=tuple(pad[:4]))

    def _resize(self, name: str, x: Tensor, out: Tensor) -> Value:
        _, value = self.features(x)
        self._unpadded(value)
        if out.shape[2:] != self._image.shape[2:]:
            raise Refused("it resizes features, and not to the image's size at the end")
        self.resized.append(self.where(None, name.strip("_")))
        return replace(value, shape=tuple(out.shape), resized=True)


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


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _pair(x: Any) -> Pair:
    return (x, x) if isinstance(x, int) else (x[0], x[-1])


def _window(given: dict[str, Any]) -> tuple[Pair, Pair, Pair, Pair]:
    """Kernel, stride, padding and dilation of a pool."""
    kernel = _pair(given["kernel_size"])
    stride = _pair(given["stride"]) if given["stride"] else kernel
    return kernel, stride, _pair(given["padding"]), _pair(given.get("dilation", 1))


def _sliding(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Sliding, Sliding]:
    rows, columns = (Sliding(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
    return rows, columns


def _convolution_sliding(conv: nn.Conv2d) -> tuple[Sliding, Sliding]:
    kernel, stride, dilation = _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation)
    if isinstance(conv.padding, str):
        # torch pads the odd element of 'same' at the end
        same = conv.padding == "same"
        padding = tuple(d * (k - 1) // 2 if same else 0 for k, d in zip(kernel, dilation, strict=True))
    else:
        padding = _pair(conv.padding)
    return _sliding(kernel, stride, (padding[0], padding[1]), dilation)
