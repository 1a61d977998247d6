"""Batch norm folded into the convolution before it, for inference."""

import copy
from dataclasses import replace

import torch
from torch import nn

from fullres.models.split_merge import FullResolution
from fullres.models.trace import Step


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
            isinstance(step.call, nn.BatchNorm2d)
            and before is not None
            and isinstance(before.call, nn.Conv2d)
            and readers.count(before.name) == 1
        ):
            folded[before.name] = replace(before, call=_folded(before.call, step.call))
            gone[step.name] = before.name
        else:
            kept.append(step)
    result = [
        replace(step, inputs=tuple(gone.get(n, n) for n in step.inputs)) for step in (folded.get(s.name, s) for s in kept)
    ]
    result = [s if s.name in folded else replace(s, call=copy.deepcopy(s.call)) for s in result]
    modules = nn.ModuleList([s.call for s in result if isinstance(s.call, nn.Module)])
    return FullResolution(modules.eval(), result, [gone.get(n, n) for n in tree.outputs])


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    out = copy.deepcopy(conv)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    dtype = conv.weight.dtype
    with torch.no_grad():
        out.weight.copy_((conv.weight.double() * scale[:, None, None, None]).to(dtype))
        out.bias = nn.Parameter(shift.to(dtype))
    return out
