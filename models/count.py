"""How much a network computes, without computing it."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

# Products of two activations (attention) are not counted, as papers leave them out of these figures.
LAYERS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of all convolutions and linear layers for one image in evaluation mode.

    Nothing is computed or stored: the network runs on tensors without data, whatever device it is on.
    """
    like = next(network.parameters())
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            image = torch.empty(1, 3, height, width, dtype=like.dtype, device=like.device)
            with FlopCounterMode(display=False) as counter:
                network(image)
    finally:
        for module in training:
            module.training = True
    return counted_macs(counter)


def counted_macs(counter: FlopCounterMode) -> int:
    """Of what ran under the counter, the multiply-adds of convolutions and linear layers."""
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(layer, 0) for layer in LAYERS) // 2
