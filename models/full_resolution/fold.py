"""A tree made ready for inference: batch norm folded into convolutions, sums and ReLUs done by them.

Its levels may be cut elsewhere than those of the tree it was made from: a stage of convolution, batch norm
and ReLU has become one step. So a plan and its run are both of the inference form.
"""

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fullres.models.full_resolution.record import NORMS
from fullres.models.full_resolution.split_merge import FullResolution, is_relu
from fullres.models.full_resolution.steps import Pointwise, Step
from fullres.ops.convolution import Convolution


def inference_form(tree: FullResolution) -> FullResolution:
    """`tree` with batch norm folded, sums and ReLUs fused: a copy with its own parameters. What plans are
    made from and workers run; a tree that is one already is returned as it is."""
    if tree.for_inference:
        return tree
    ready = fuse(fold_batch_norm(tree))
    ready.for_inference, ready.every_phase = True, tree.every_phase
    ready.output_stride = tree.output_stride
    return ready


def fold_batch_norm(tree: FullResolution) -> FullResolution:
    """A copy of `tree` with its own parameters, in which no batch norm follows directly on a convolution.

    conv(x) w + b with w = gamma / sqrt(var + eps), b = beta - mean w, computed in fp64. A batch norm behind
    anything else, or behind a convolution that is read elsewhere too, stays as it is.
    """
    steps = [step for level in tree.levels for step in level.steps]
    by_name = {s.name: s for s in steps}
    readers = [name for s in steps for name in s.inputs] + list(tree.outputs)
    folded: dict[str, Step] = {}
    gone: dict[str, str] = {}  # batch norm -> the convolution that now does its work
    kept: list[Step] = []
    for step in steps:
        before = by_name.get(step.inputs[0])
        if (
            isinstance(step.call, NORMS)
            and before is not None
            and isinstance(before.call, nn.Conv2d)
            and readers.count(before.name) == 1
        ):
            folded[before.name] = replace(before, call=_folded(before.call, step.call))
            gone[step.name] = before.name
        else:
            kept.append(step)
    result = [
        replace(step, inputs=tuple(gone.get(n, n) for n in step.inputs))
        for step in (folded.get(s.name, s) for s in kept)
    ]
    result = [s if s.name in folded else replace(s, call=_copied(s.call)) for s in result]
    modules = nn.ModuleList([s.call for s in result if isinstance(s.call, nn.Module)])
    return FullResolution(modules.eval(), result, [gone.get(n, n) for n in tree.outputs], tree.in_channels)


def _copied(call: Any) -> Any:
    return _plain(call, call.weight, call.bias) if isinstance(call, nn.Conv2d) else copy.deepcopy(call)


def fuse(tree: FullResolution) -> FullResolution:
    """A copy of `tree` in which each convolution does the sum with a shortcut and the ReLU that follow it.

    Only what nobody else reads is taken in. The sum moves to the later of its two convolutions.
    """
    steps = [step for level in tree.levels for step in level.steps]
    position = {s.name: i for i, s in enumerate(steps)}
    stride = {s.name: s.stride for s in steps}
    channels = {s.name: s.channels for s in steps}
    readers = Counter([name for s in steps for name in s.inputs] + list(tree.outputs))
    alias: dict[str, str] = {}  # a sum or ReLU -> the convolution that does it
    fused: dict[str, Step] = {}
    relu: set[str] = set()
    for step in steps:
        inputs = tuple(alias.get(name, name) for name in step.inputs)
        if isinstance(step.call, nn.Conv2d):
            fused[step.name] = replace(step, inputs=inputs)
            continue
        last = max(inputs, key=lambda name: position.get(name, -1))
        host = fused.get(last)
        alone = host is not None and all(readers[n] == 1 for n in step.inputs if alias.get(n, n) == last)
        same = (
            host is not None
            and isinstance(host.call, nn.Conv2d)
            and last not in relu
            and all(stride.get(name, (1, 1)) == host.stride == step.stride for name in inputs)
        )
        if (
            alone
            and same
            and host is not None
            and _is_sum(step)
            and all(channels.get(name) == step.channels for name in inputs)
            and len(host.inputs) == 1
            and len(set(inputs)) == 2
        ):
            (other,) = (name for name in inputs if name != last)
            fused[last] = replace(host, inputs=(host.inputs[0], other))
            alias[step.name] = last
        elif alone and same and is_relu(step.call):
            relu.add(last)
            alias[step.name] = last
        else:
            fused[step.name] = replace(step, inputs=inputs)
    result = [
        replace(s, call=Convolution(s.call, s.name in relu)) if isinstance(s.call, nn.Conv2d) else s
        for s in fused.values()
    ]
    modules = nn.ModuleList([s.call for s in result if isinstance(s.call, nn.Module)])
    return FullResolution(modules.eval(), result, [alias.get(n, n) for n in tree.outputs], tree.in_channels)


def _is_sum(step: Step) -> bool:
    return isinstance(step.call, Pointwise) and step.call.is_sum and len(step.inputs) == 2


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.Conv2d:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    return _plain(conv, conv.weight.double() * scale[:, None, None, None], shift)


def _plain(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A convolution like `conv` with these values as its parameters, whatever computes those of `conv`:
    weight or spectral normalisation, say."""
    dtype, device = conv.weight.dtype, conv.weight.device
    sliding: Any = {n: getattr(conv, n) for n in ("kernel_size", "stride", "padding", "dilation", "groups")}
    out = nn.Conv2d(
        conv.in_channels, conv.out_channels, **sliding, bias=bias is not None, device=device, dtype=dtype
    )
    out.weight = nn.Parameter(weight.detach().to(dtype, copy=True))
    if bias is not None:
        out.bias = nn.Parameter(bias.detach().to(dtype, copy=True))
    return out.train(conv.training)
