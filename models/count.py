"""How much a network computes, without computing it."""

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

# Products of two activations (attention) are not counted, as papers leave them out of these figures.
LAYERS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of all convolutions and linear layers for one image in evaluation mode.

    Nothing is computed or stored: the network runs on tensors without data, whatever device it is on.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    dtype = next(network.parameters()).dtype
    image = torch.empty(1, 3, height, width, dtype=dtype, device="meta")
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(network, {name: t.to("meta") for name, t in tensors.items()}, image)
    finally:
        for module in training:
            module.training = True
    return counted_macs(counter)


def counted_macs(counter: FlopCounterMode) -> int:
    """Of what ran under the counter, the multiply-adds of convolutions and linear layers."""
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(layer, 0) for layer in LAYERS) // 2
