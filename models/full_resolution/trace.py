"""From a torch network to the list of its steps: what `split_merge` builds on.

A step is one call of the network (a convolution, a pool, an elementwise function) together with where it
reads and on which lattice it writes. Only steps that do the same at every position are known; anything else
(interpolation, global pooling, fully connected layers, attention) is refused by name.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fullres.models.full_resolution.geometry import POINT, Sliding
from fullres.ops.errors import FullresError

IMAGE = "<image>"  # no module has such a name
Pair = tuple[int, int]

POINTWISE_MODULES = (
    nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid,
)  # fmt: skip
NOTHING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)
TENSOR: Any = ...  # marks where a tensor goes in the arguments of a call
# What writes over its first input, and what gives the same without.
IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, torch.relu_: torch.relu,
}  # fmt: skip
POINTWISE_FUNCTIONS: set[Any] = {
    torch.relu, torch.sigmoid, torch.tanh, torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.clamp,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.sigmoid, F.tanh, F.softplus,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, *IN_PLACE,
}  # fmt: skip
POINTWISE_METHODS = {
    "relu", "relu_", "sigmoid", "tanh", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
    "neg", "neg_", "clamp", "clamp_",
}  # fmt: skip


class UnsupportedModule(FullresError, ValueError):
    """A part of a network that has no full-resolution form. The message names it and says why."""


@dataclass(frozen=True)
class Step:
    """One call of the network.

    `reach` says where it reads, along rows and columns; `stride` is the lattice it writes on, in pixels of
    the image. `call` takes the input tensors: for convolutions and pools see `models.split_merge`.
    """

    name: str
    op: str  # "convolution", "max_pool", "average_pool" or "pointwise"
    inputs: tuple[str, ...]
    call: Callable[..., Tensor]
    channels: int
    reach: tuple[Sliding, Sliding] = (POINT, POINT)
    stride: Pair = (1, 1)

    def reach_of(self, index: int, axis: int) -> Sliding:
        """Where input `index` is read: a convolution's second input is a shortcut, added element by
        element."""
        return self.reach[axis] if index == 0 or self.op != "convolution" else POINT


class _Proxy(fx.Proxy):
    """Keeps `x += y` apart from `x = x + y`: the first also changes what else is called x."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    autocast = False  # whether a call was traced inside a region of it

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *arguments: Any, **named: Any) -> fx.Node:
        self.autocast |= any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
        return super().create_node(*arguments, **named)


def trace(network: nn.Module, in_channels: int = 3) -> tuple[list[Step], list[str]]:
    """The steps of `network` in order, and the names of its outputs.

    Strides are the coarsest that the readers need: what only a 1x1 pool of stride 2 reads (split pooling in
    place of max pooling) is computed at that pool's stride, so the first two splits of SMP are one.
    Raises UnsupportedModule.
    """
    every = torch.nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        raise UnsupportedModule("global forward hooks are registered, which are not traced: remove them")
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            where = f"module '{name}' ({type(module).__name__})" if name else type(module).__name__
            raise UnsupportedModule(
                f"{where} has no full-resolution form: it has forward hooks, which are not traced"
            )
    tracer = _Tracer()
    try:
        graph = tracer.trace(network)
    except Exception as error:
        raise UnsupportedModule(f"{type(network).__name__} cannot be traced: {error}") from error
    if tracer.autocast:
        raise UnsupportedModule(
            f"{type(network).__name__} is traced under autocast, which would be lost: leave it away, a "
            "precision is chosen where the network is run"
        )
    steps: dict[str, Step] = {}
    value: dict[fx.Node, str] = {}  # the step whose output a node stands for
    outputs: list[str] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            if value:
                raise UnsupportedModule(f"{type(network).__name__} takes more than one input: {node.name}")
            value[node] = IMAGE
        elif node.op == "output":
            result = node.args[0]
            nodes = result if isinstance(result, tuple | list) else [result]
            if not all(isinstance(n, fx.Node) for n in nodes):
                raise UnsupportedModule(
                    f"{type(network).__name__} must return a tensor or a tuple of tensors"
                )
            outputs = [value[n] for n in nodes]
        else:
            step = _step(network, node, value, steps, in_channels)
            if isinstance(step, str):
                value[node] = step
                continue
            if _overwrites(network, node):  # who reads the input from here on, reads the result
                value |= {n: step.name for n, name in value.items() if name == step.inputs[0]}
            steps[step.name] = step
            value[node] = step.name
    if IMAGE in outputs:
        raise UnsupportedModule(f"{type(network).__name__} returns its input")
    return _coarsened(_wanted(list(steps.values()), outputs), outputs), outputs


def _step(
    network: nn.Module, node: fx.Node, value: dict[fx.Node, str], steps: dict[str, Step], in_channels: int
) -> Step | str:
    """The step of one node, or the name of the step that it merely passes on."""
    where, module = f"{node.op} {node.target}", None
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        where = f"module '{node.target}' ({type(module).__name__})"
    else:
        if node.op == "call_function":
            where = f"function {getattr(node.target, '__name__', node.target)}"
        if owners := [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]:
            where += f" in module '{owners[-1]}'"

    def refuse(why: str) -> UnsupportedModule:
        return UnsupportedModule(f"{where} has no full-resolution form: {why}")

    read: list[fx.Node] = []  # one for each place of the call, unlike node.all_input_nodes
    fx.node.map_arg((node.args, node.kwargs), read.append)
    inputs = tuple(value[n] for n in read)
    channels = [steps[i].channels if i in steps else in_channels for i in inputs]
    strides = {steps[i].stride if i in steps else (1, 1) for i in inputs}
    if len(strides) > 1:
        raise refuse(f"it joins features of output strides {sorted(strides)}")
    if not inputs:
        raise refuse("it reads no features")
    stride = next(iter(strides))
    name = str(node.target) if module is not None and str(node.target) not in steps else node.name

    if module is not None and not _is_ordinary(module):
        raise refuse("its forward is not that of torch's module")
    if (module is not None and isinstance(module, NOTHING_MODULES)) or node.target in (
        F.dropout,
        F.dropout2d,
    ):
        return inputs[0]
    if node.op == "call_method" and node.target == "contiguous":
        return inputs[0]
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        raise refuse("without running statistics it depends on the whole image; track_running_stats=True")
    if isinstance(module, POINTWISE_MODULES):
        return Step(name, "pointwise", inputs, module, channels[0], stride=stride)
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            raise refuse(f"padding_mode is '{module.padding_mode}', only 'zeros' is possible")
        sliding = _convolution_reach(module)
        return _sliding(
            Step(name, "convolution", inputs, module, module.out_channels), sliding, stride, refuse
        )
    if getattr(module, "return_indices", False):
        raise refuse("it returns indices, which are another thing on each lattice")
    pool = _pool(module, node)
    if pool is not None:
        op, call, sliding = pool
        return _sliding(Step(name, op, inputs, call, channels[0]), sliding, stride, refuse)
    if node.target is torch.cat:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if dim not in (1, -3):
            raise refuse(f"dim is {dim}, only channels (1) can be joined")
        return Step(name, "pointwise", inputs, _join_channels, sum(channels), stride=stride)
    if node.target in POINTWISE_FUNCTIONS or (node.op == "call_method" and node.target in POINTWISE_METHODS):
        if len(set(channels)) > 1:
            raise refuse(f"it joins features of {channels} channels")
        target = node.target if callable(node.target) else getattr(torch.Tensor, str(node.target).rstrip("_"))
        target = IN_PLACE.get(target, target)
        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "out")}
        args, kwargs = fx.node.map_arg((node.args, kwargs), lambda _: TENSOR)
        return Step(name, "pointwise", inputs, FunctionCall(target, args, kwargs), channels[0], stride=stride)
    known = (
        "convolutions, max and average pools, batch norm, activations, sums, differences, products, "
        "quotients, clamp and concatenation have one"
    )
    raise refuse(known)


def _is_ordinary(module: nn.Module) -> bool:
    """Whether a module does what the torch class does that it is taken for."""
    known = (*POINTWISE_MODULES, *NOTHING_MODULES, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    taken_for = next((kind for kind in known if isinstance(module, kind)), type(module))
    return "forward" not in vars(module) and type(module).forward is taken_for.forward


def _join_channels(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, 1)


def _overwrites(network: nn.Module, node: fx.Node) -> bool:
    """Whether a call writes its result over its first input."""
    if node.op == "call_module":
        return getattr(network.get_submodule(str(node.target)), "inplace", False)
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return bool(node.kwargs.get("inplace", False)) or node.target in IN_PLACE


@dataclass(frozen=True)
class FunctionCall:
    """A function with its constant arguments in place; `TENSOR` marks where a tensor goes."""

    target: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def is_relu(self) -> bool:
        return self.target in (F.relu, torch.relu, torch.Tensor.relu)

    @property
    def is_sum(self) -> bool:
        """Of two tensors, nothing else."""
        return self.target in (operator.add, torch.add) and self.args == (TENSOR, TENSOR) and not self.kwargs

    def __call__(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        args = [next(given) if a is TENSOR else a for a in self.args]
        return self.target(*args, **{k: next(given) if a is TENSOR else a for k, a in self.kwargs.items()})


def _pair(x: Any) -> Pair:
    return (x, x) if isinstance(x, int) else (x[0], x[-1])


def _convolution_reach(conv: nn.Conv2d) -> tuple[Sliding, Sliding]:
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    if isinstance(conv.padding, str):
        # torch pads the odd element of 'same' at the end
        same = conv.padding == "same"
        padding = tuple(d * (k - 1) // 2 if same else 0 for k, d in zip(kernel, dilation, strict=True))
    else:
        padding = _pair(conv.padding)
    return tuple(Sliding(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))  # type: ignore[return-value]


def _pool(
    module: nn.Module | None, node: fx.Node
) -> tuple[str, Callable[..., Tensor], tuple[Sliding, Sliding]] | None:
    """Kind, call (with kernel and stride left open) and reach of a max or average pool; None if it is no
    pool."""
    names = ["kernel_size", "stride", "padding", "dilation", "ceil_mode"]
    if isinstance(module, nn.MaxPool2d):
        given, maximum = {n: getattr(module, n) for n in names}, True
    elif isinstance(module, nn.AvgPool2d):
        names = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"]
        given, maximum = {n: getattr(module, n) for n in names}, False
    elif node.target in (F.max_pool2d, torch.max_pool2d):
        given, maximum = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}, True
    elif node.target is F.avg_pool2d:
        names = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"]
        given, maximum = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}, False
    else:
        return None
    kernel = _pair(given["kernel_size"])
    stride = _pair(given["stride"]) if given.get("stride") else kernel
    padding, dilation = _pair(given.get("padding", 0)), _pair(given.get("dilation", 1))
    sliding = tuple(Sliding(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
    if maximum:
        return "max_pool", partial(torch.max_pool2d, kernel_size=kernel, dilation=dilation), sliding  # type: ignore[return-value]
    divisor = given.get("divisor_override")
    inside = not given.get("count_include_pad", True) or (given.get("ceil_mode") and padding == (0, 0))
    op = "average_pool_inside" if inside and divisor is None else "average_pool"
    return op, partial(F.avg_pool2d, kernel_size=kernel, divisor_override=divisor), sliding  # type: ignore[return-value]


def _sliding(
    step: Step, sliding: tuple[Sliding, Sliding], stride: Pair, refuse: Callable[[str], UnsupportedModule]
) -> Step:
    for axis in sliding:
        if axis.reach[1] < 0:
            raise refuse(
                f"kernel {axis.kernel} with padding {axis.padding} reads padding alone at the border"
            )
        if axis.stride == 1 and axis.kernel > 1 and axis.kernel % 2 == 1 and not axis.keeps_size:
            raise refuse(
                f"kernel {axis.kernel} with padding {axis.padding} and dilation {axis.dilation} does not "
                f"keep the size; padding {axis.dilation * (axis.kernel - 1) // 2} would"
            )
    out = (stride[0] * sliding[0].stride, stride[1] * sliding[1].stride)
    return replace(step, reach=sliding, stride=out)


def _wanted(steps: list[Step], outputs: list[str]) -> list[Step]:
    """Only the steps that an output needs."""
    wanted, kept = set(outputs), []
    for step in reversed(steps):
        if step.name in wanted:
            wanted.update(step.inputs)
            kept.append(step)
    return kept[::-1]


def _coarsened(steps: list[Step], outputs: list[str]) -> list[Step]:
    """Each step at the coarsest stride that its readers need."""
    needed: dict[str, Pair] = {}

    def read(name: str, stride: Pair) -> None:
        old = needed.get(name, stride)
        needed[name] = (gcd(old[0], stride[0]), gcd(old[1], stride[1]))

    natural = {s.name: s.stride for s in steps} | {IMAGE: (1, 1)}
    for name in outputs:
        read(name, natural[name])
    coarse: dict[str, Step] = {}
    for step in reversed(steps):
        step = replace(step, stride=needed[step.name])
        coarse[step.name] = step
        for name in step.inputs:
            points = (step.reach[a] == replace(POINT, stride=step.reach[a].stride) for a in (0, 1))
            rows, columns = (step.stride[a] if point else natural[name][a] for a, point in enumerate(points))
            read(name, (rows, columns))
    return [coarse[s.name] for s in steps]
