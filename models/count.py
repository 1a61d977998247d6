"""How much a network computes, without computing it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fullres.models.memory import on_meta

# Products of two activations (attention) are not counted, as papers leave them out of these figures.
LAYERS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of all convolutions and linear layers for one image in evaluation mode.

    Nothing is computed or stored: the network runs on tensors without data, whatever device it is on.
    """
    copy = on_meta(network).eval()
    image = torch.empty(1, 3, height, width, dtype=next(copy.parameters()).dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _ShapesAlone():
        copy(image)
    return counted_macs(counter)


class _ShapesAlone(TorchFunctionMode):
    """What counts nothing is passed over where its shape is plain: torch would take long to find it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and func in (F.relu, F.batch_norm):
            return args[0]
        if args and func is F.interpolate and isinstance(kwargs.get("size"), tuple):
            return args[0].new_empty((*args[0].shape[:2], *kwargs["size"]))
        return func(*args, **kwargs)


def counted_macs(counter: FlopCounterMode) -> int:
    """Of what ran under the counter, the multiply-adds of convolutions and linear layers."""
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(layer, 0) for layer in LAYERS) // 2
