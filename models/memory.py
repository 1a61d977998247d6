"""How much memory a network's activations take at the worst moment, without computing them."""

import weakref
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """While active: bytes of all tensors made since, as they come and go. Views count once; what was there
    before counts nothing.

    `live`: now; `peak`: at the worst moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def spike(self, nbytes: int) -> None:
        """As if so many bytes had come and gone."""
        self.peak = max(self.peak, self.live + nbytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is aten.convolution.default and any(_is_channels_last(t) for t in args[:2]):
            out = out.contiguous(memory_format=torch.channels_last)  # on a CPU it is
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in before | self._known:
                self._born(tensor.untyped_storage())
        self.spike(_scratch(func, args, out))
        return out

    def _born(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()

        def gone() -> None:
            self._known.remove(key)
            self.live -= nbytes

        self._known.add(key)
        self.live += nbytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, gone)


def _is_channels_last(tensor: Tensor) -> bool:
    return suggest_memory_format(tensor) is torch.channels_last


def _scratch(func: Any, args: Any, out: Any) -> int:
    """What an operation needs beside its input and output on a CPU, as measured with torch 2.13 (oneDNN)."""
    if func is aten.convolution.default:
        x, weight, groups = args[0], args[1], args[8]
        reordered = 0 if _is_channels_last(x) else x.nbytes
        return reordered + _laid_out(weight) + weight.nbytes + (out.nbytes if groups > 1 else 0)
    if func is aten.convolution_backward.default:
        # Weights and their gradient, as the kernels have them.
        weight = args[2]
        return weight.nbytes + (weight.nbytes if weight[0, 0].numel() > 1 else 0) + _laid_out(weight)
    if func is aten._softmax.default:
        x, dim = args[:2]
        return 0 if dim in (-1, x.dim() - 1) and x.is_contiguous() else x.nbytes
    if func is aten.bmm.default:
        return sum(x.nbytes for x in args if not x.is_contiguous())
    if func is aten.mean.dim and args[0].dtype != torch.float32:
        return args[0].numel() * 4
    return 0


def _laid_out(weight: Tensor) -> int:
    """A convolution's weights channels last, if they are not."""
    return 0 if weight.is_contiguous(memory_format=torch.channels_last) else weight.nbytes


def on_meta(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and no data."""
    tensors = [*network.parameters(), *network.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return deepcopy(network, memo)
