"""Activation checkpointing: of a block of a network only what it reads is kept, and the rest is computed once
more for the gradients (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

Results, gradients and running statistics are those of the network without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def blocks_checkpointed(network: nn.Module) -> Iterator[None]:
    """Inside, `network`'s blocks are checkpointed: the smallest items of its lists and sequences that hold
    several convolutions. Their backward pass may come later."""
    blocks = _blocks(network)
    for block in blocks:
        block.forward = partial(recomputed, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's is behind it


def recomputed(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """What `function`, a part of `module`, returns. Of its inputs and results only the inputs are kept."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(
        function, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _untracked(module))
    )


def _blocks(network: nn.Module) -> list[nn.Module]:
    items = [
        item
        for parent in network.modules()
        if isinstance(parent, nn.Sequential | nn.ModuleList)
        for item in parent
        if sum(isinstance(module, nn.Conv2d) for module in item.modules()) > 1
    ]
    return [item for item in items if not any(m in items for m in item.modules() if m is not item)]


@contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    """Inside, batch norm's running statistics stay: they have seen this batch. They are still read, as what
    is computed once more must be what was computed."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [
        (norm, norm.momentum, count, count.clone())
        for norm in norms
        if (count := norm.num_batches_tracked) is not None
    ]
    for norm, *_ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, of_batches in before:
            norm.momentum = momentum
            count.copy_(of_batches)
