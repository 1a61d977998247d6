"""How much a network computes, without computing it."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from fullres.models.memory import on_meta

# Products of two activations (attention) are not counted, as papers leave them out of these figures.
LAYERS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of all convolutions and linear layers for one image in evaluation mode.

    Nothing is computed or stored: the network runs on tensors without data, whatever device it is on.
    """
    copy = on_meta(network).eval()
    for module in copy.modules():
        if isinstance(module, _BatchNorm):  # it counts nothing, and torch takes long to find its shape
            module.forward = _same  # type: ignore[assignment, method-assign]
    image = torch.empty(1, 3, height, width, dtype=next(copy.parameters()).dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy(image)
    return counted_macs(counter)


def _same(x: Tensor) -> Tensor:
    return x


def counted_macs(counter: FlopCounterMode) -> int:
    """Of what ran under the counter, the multiply-adds of convolutions and linear layers."""
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(layer, 0) for layer in LAYERS) // 2
