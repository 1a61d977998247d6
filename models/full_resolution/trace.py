"""From a torch network to the list of its steps: what `split_merge` builds on.

A step is one call of the network (a convolution, a pool, an elementwise function) together with where it
reads and on which lattice it writes. Only steps that do the same at every position are known; anything else
(interpolation, global pooling, fully connected layers, attention) is refused by name.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten_with_path

from fullres.models.full_resolution.geometry import POINT
from fullres.models.full_resolution.neighbours import unpadded
from fullres.models.full_resolution.operations import NCHW, Refused, Value
from fullres.models.full_resolution.record import Recorder
from fullres.models.full_resolution.steps import (
    IMAGE,
    Input,
    Pair,
    Pointwise,
    Step,
    UnsupportedModule,
    walk,
)

# Two batches of images without memory. What a network does must not depend on their sizes.
_IMAGES = ((2, 384, 640), (3, 512, 320))


class _Failed(UnsupportedModule):
    """The network itself fails with such an image."""


@dataclass(frozen=True)
class Trace:
    """The steps of a network in order, the names of its outputs, the image's channels, and the modules whose
    weights are computed from parameters in their forward, to which gradients would not come."""

    steps: list[Step]
    outputs: list[str]
    in_channels: int
    computed: list[str]


def trace(network: nn.Module, in_channels: int | None = None, output: str | None = None) -> Trace:
    """What `network` does in evaluation mode to images of `in_channels` channels (None: those of its first
    convolution).

    Strides are the coarsest that the readers need: what only a 1x1 pool of stride 2 reads (split pooling in
    place of max pooling) is computed at that pool's stride, so the first two splits of SMP are one.
    Raises UnsupportedModule.
    """
    network = unwrapped(network)
    _refuse_hooks(network)
    _refuse_inputs(network)
    if in_channels is None:
        in_channels = _in_channels(network)
    one, other = (_run(network, (n, in_channels, *size), output) for n, *size in _IMAGES)
    if [_signature(s) for s in one.steps] != [_signature(s) for s in other.steps]:
        raise UnsupportedModule(
            f"{type(network).__name__} does other things to images of {_IMAGES[0][1:]} than of "
            f"{_IMAGES[1][1:]} pixels (H, W)"
        )
    return one


def unwrapped(network: nn.Module) -> nn.Module:
    """What DataParallel, DistributedDataParallel or torch.compile wrap."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(network, parallel) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(network, parallel) else network._orig_mod  # type: ignore[assignment]
    return network


def _refuse_hooks(network: nn.Module) -> None:
    every = torch.nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        raise UnsupportedModule("global forward hooks are registered, which are not traced: remove them")
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            where = f"module '{name}' ({type(module).__name__})" if name else type(module).__name__
            raise UnsupportedModule(
                f"{where} has no full-resolution form: it has forward hooks, which are not traced"
            )


def _refuse_inputs(network: nn.Module) -> None:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = inspect.signature(network.forward).parameters.values()
    needed = [p.name for p in taken if p.kind in kinds and p.default is inspect.Parameter.empty]
    if len(needed) > 1:
        raise UnsupportedModule(f"{type(network).__name__} takes more than one input: {needed[1]}")


def _in_channels(network: nn.Module) -> int:
    """Those of the first convolution, if the network takes such an image, else 3: that convolution may read
    an image whose blocks of pixels have become channels."""
    first = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)
    if first == 3:
        return 3
    try:
        _run(network, (1, first, *_IMAGES[0][1:]), None)
    except _Failed:
        return 3
    except UnsupportedModule:
        pass
    return first


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards as before."""
    before = {module: module.training for module in network.modules()}
    for module in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _silent() -> Iterator[None]:
    """Torch logs pages of what fails on tensors without memory; the error says it in one line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Not the caller's modes: inference mode hides what functions consist of, autocast adds others."""
    with ExitStack() as stack:
        stack.enter_context(_silent())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _run(network: nn.Module, shape: tuple[int, ...], output: str | None) -> Trace:
    like = next((t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()), None)
    dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
    name = type(network).__name__
    with _plain_torch(), evaluation(network), FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.empty(shape, dtype=dtype, device=device)
        recorder = Recorder(network, image)
        try:
            with recorder.modules(), recorder:
                result = network(image)
        except UnsupportedModule:
            raise
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise _Failed(
                f"{recorder.where()} cannot be traced with {shape[0]} images of {shape[1]} channels, "
                f"{shape[2]} x {shape[3]}: {type(error).__name__}: {lines[0]}"
            ) from error
        outputs = [_output(name, path, recorder, tensor) for path, tensor in _chosen(name, result, output)]
    if shape[0] == _IMAGES[0][0] and any(value.resized for value in outputs):
        warnings.warn(
            f"{recorder.resized[-1]} resizes to the image's size: it is left out, the full-resolution form "
            "has every pixel",
            stacklevel=4,
        )
    names = [value.expression.name for value in outputs]  # type: ignore[union-attr]
    if IMAGE in names:
        raise UnsupportedModule(f"{name} returns its input")
    steps = _coarsened(_wanted(list(recorder.steps.values()), names), names)
    return Trace(steps, names, shape[1], sorted(recorder.computed))


def _chosen(name: str, result: Any, output: str | None) -> list[tuple[str, Tensor]]:
    """The tensors that a network returns, by their names: 'out' of a dictionary or named tuple, '0' of a
    tuple, 'aux.0' of one inside the other."""
    leaves = [(path_of(path), leaf) for path, leaf in tree_flatten_with_path(result)[0] if leaf is not None]
    others = [f"{path} ({type(leaf).__name__})" for path, leaf in leaves if not isinstance(leaf, Tensor)]
    tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]
    if output is not None:
        tensors = [(path, leaf) for path, leaf in tensors if path == output]
        if not tensors:
            there = ", ".join(path or "the tensor itself" for path, _ in leaves)
            raise UnsupportedModule(f"{name} has no output '{output}': there are {there}")
    elif others or not tensors:
        raise UnsupportedModule(
            f"{name} must return tensors, not {', '.join(others) or type(result).__name__}"
        )
    return tensors


def path_of(keys: Any) -> str:
    """'aux.0' of the keys, indices or names of fields that lead to an output."""
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in keys)


def _output(name: str, path: str, recorder: Recorder, tensor: Tensor) -> Value:
    where = f"output '{path}' of {name}" if path else f"the output of {name}"
    try:
        value = recorder.value(tensor)
        unpadded(value)
    except Refused as why:
        raise UnsupportedModule(f"{where} has no full-resolution form: {why}") from None
    if not isinstance(value.expression, Input) or value.axes != NCHW or value.dtype == torch.bool:
        raise UnsupportedModule(
            f"{where} is not N x C x H x W features but {tuple(tensor.shape)} {tensor.dtype}"
        )
    return value


def _signature(step: Step) -> tuple[Any, ...]:
    """What a step does, but for the tensors that it holds."""
    call: Any = ()
    if isinstance(step.call, Pointwise):
        call = str(
            [
                (getattr(p, "target", ""), getattr(p, "output", "")) if hasattr(p, "target") else p
                for p in walk(step.call.root)
                if not isinstance(p, list | tuple | nn.Module)
            ]
        )
    elif isinstance(step.call, nn.Module):
        call = type(step.call)
    return step.name, step.op, step.inputs, step.sliding, step.stride, step.channels, call


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
            points = (step.sliding[a] == replace(POINT, stride=step.sliding[a].stride) for a in (0, 1))
            rows, columns = (step.stride[a] if point else natural[name][a] for a, point in enumerate(points))
            read(name, (rows, columns))
    return [coarse[s.name] for s in steps]
