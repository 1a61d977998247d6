"""One stage of a pipeline: the network's own forward, in which calls of other stages are passed over.

What such a call returns is a tensor without memory. Where a call of this stage reads one, it gets what an
earlier stage has sent. The stage holds no parameters but its own.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from fullres.models.stages.calls import (
    IMAGES,
    Call,
    Made,
    Uncuttable,
    mapped,
    names_of,
    tensors_in,
    whole_modules,
)
from fullres.models.stages.partition import Partition


class Stage(nn.Module):
    """Stage `index` of `partition`; takes `network` over, which keeps this stage's parameters and buffers
    alone, under their names.

    Takes the images, N x 3 x H x W as the partition was made for, or what the stage before returned; returns
    what the next one takes, of the last stage the network's output. What travels is one flat tensor: engines
    walk a stage's graph once for each tensor that it sends. It has the widest dtype of what is in it.

    Draws from torch's generator are those of the whole network, if it is in one state in all stages.
    """

    def __init__(self, network: nn.Module, partition: Partition, index: int) -> None:
        super().__init__()
        self.partition, self.index = partition, index
        self.network = network
        self.absent = _without(network, partition.uses(index))
        self.received = partition.crossing[index - 1] if index else []
        self.sent = partition.crossing[index] if index + 1 < partition.stages else None

    def forward(self, x: Tensor) -> Any:
        images: Any = x.view_as(x) if not self.index else self.partition.calls.images
        images.made = IMAGES
        run = _Run(self, self._unpacked(x) if self.index else {IMAGES: images}, x.device)
        with whole_modules(self.network, run.module), run:
            output = self.network(images)
        if self.sent is None:
            return mapped(run.found, output)
        return self._packed([run.known[made] for made in self.sent])

    def train(self, mode: bool = True) -> "Stage":
        """Stays as it is: some of the network's batch norms may be frozen, and engines call this."""
        return self

    def _packed(self, tensors: list[Tensor]) -> Tensor:
        flat = torch.cat([t.to(_widest(tensors)).flatten() for t in tensors])
        # Images alone have no gradient, and an engine brings one.
        return flat if flat.requires_grad else flat.detach().requires_grad_(torch.is_grad_enabled())

    def _unpacked(self, flat: Tensor) -> dict[Made, Tensor]:
        known = self.partition.calls.tensors
        parts = flat.split([known[made].numel() for made in self.received])
        return {
            made: part.to(known[made].dtype).view(known[made].shape)
            for made, part in zip(self.received, parts, strict=True)
        }


class _Run(TorchFunctionMode):
    """One forward pass. `known`: what was received, and of what is made here that which is sent."""

    def __init__(self, stage: Stage, received: dict[Made, Tensor], device: torch.device) -> None:
        super().__init__()
        self.stage, self.known, self.device = stage, received, device
        self.sent = set(stage.sent or ())
        self.of_network = {id(t) for t in stage.absent} | names_of(stage.network).keys()
        self.number = 0
        self._inside = False  # a module that is seen whole

    def found(self, tensor: Tensor) -> Tensor:
        """In the place of one without memory what was received."""
        return self.known[tensor.made] if isinstance(tensor, FakeTensor) else tensor  # type: ignore[attr-defined]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = tensors_in((args, kwargs))
        seen = any(hasattr(t, "made") or id(t) in self.of_network for t in read)
        if self._inside or not seen or function in self.stage.partition.calls.queries:
            return function(*args, **kwargs)
        call, is_own = self._next(function)
        return self._make(call, function, args, kwargs) if is_own else call.result

    def module(self, name: str, forward: Callable[..., Any], x: Tensor) -> Any:
        call, is_own = self._next(name)
        self._inside = True
        try:
            if is_own:
                return self._make(call, forward, (x,), {})
            if isinstance(self.stage.network.get_submodule(name), nn.Dropout2d):
                # Draws here come behind those of other stages, as in the whole network.
                forward(torch.ones((*x.shape[:2], 1, 1), dtype=x.dtype, device=self.device))
            return call.result
        finally:
            self._inside = False

    def _next(self, what: Any) -> tuple[Call, bool]:
        partition = self.stage.partition
        calls, number = partition.calls.calls, self.number
        if number == len(calls) or calls[number].what != what:
            name = what if isinstance(what, str) else what.__name__
            raise Uncuttable(
                f"{name} is call {number} of the network, and was not when it was cut into stages"
            )
        self.number += 1
        return calls[number], partition.stage_of[number] == self.stage.index

    def _make(self, call: Call, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = mapped(self.found, args), mapped(self.found, kwargs)
        result = function(*args, **kwargs)
        for tensor, stand_in in zip(tensors_in(result), tensors_in(call.result), strict=True):
            tensor.made = made = stand_in.made  # type: ignore[attr-defined]
            if made in self.sent:
                self.known[made] = tensor
        return result


def _widest(tensors: list[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (t.dtype for t in tensors))


def _without(network: nn.Module, kept: set[str]) -> list[Tensor]:
    """Take all parameters and buffers but these out of `network`; in their places are tensors without memory,
    which are returned."""
    own = {key for key, name in names_of(network).items() if name in kept}
    absent: list[Tensor] = []
    fakes = FakeTensorMode()
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in list(held.items()):
                if tensor is not None and id(tensor) not in own:
                    del held[name]
                    stand_in = fakes.from_tensor(tensor)
                    module.__dict__[name] = stand_in
                    absent.append(stand_in)
    return absent
