"""Loss scaling for fp16, whose smallest gradients would otherwise be zero (Micikevicius et al., "Mixed
Precision Training", 2018).

The rule is that of `torch.amp.GradScaler`, whose state is one device's. DeepSpeed has others, an own one for
each of its stages: with torch's autocast its stages 1 to 3 take the norm for clipping of scaled gradients,
and never lower the scale. Here a training is the same in any layout, and its checkpoint goes on in any other.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fullres.pipeline.train.config import Precision

_FIRST, _GROWTH = 2.0**16, 2000  # the scale of the first step; steps


class LossScale:
    """What losses are multiplied by before the backward pass: a power of two, halved after a step whose
    gradients are no finite numbers, which is skipped, and doubled after 2,000 others in a row. 1, and left at
    that, for other precisions than fp16.

    `good`: steps since it was changed. Raises ValueError where the device has no fp16.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.fp16 = precision == "fp16"
        if self.fp16:
            _check(device)
        self.scale, self.good = _FIRST if self.fp16 else 1.0, 0

    @property
    def least(self) -> bool:
        """What overflows now would do so at any scale."""
        return self.scale <= 1

    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Divide their gradients, in place; whether all are finite, for fp16 alone."""
        if not self.fp16:
            return True
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(1 / self.scale)
        return math.isfinite(nn.utils.get_total_norm(gradients).item())

    def update(self, finite: bool) -> None:
        """After a step, whose gradients were finite or not."""
        if not self.fp16:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good == _GROWTH:
            self.scale, self.good = self.scale * 2, 0

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "good": self.good}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scale, self.good = state["scale"], state["good"]


def _check(device: torch.device) -> None:
    """Raise ValueError where a device computes no convolutions in fp16."""
    layer = nn.Conv2d(4, 4, 3).to(device)
    try:
        with torch.autocast(device.type, torch.float16):
            layer(torch.ones(1, 4, 8, 8, device=device)).float().sum().backward()
    except RuntimeError as error:
        raise ValueError(f"precision is 'fp16': not on this {device.type}, fp32 or bf16") from error
