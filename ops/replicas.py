"""What the replicas of a data-parallel training must share so that together they are one process with the
whole batch: the counts that losses are divided by, batch norm's statistics, and dropout's pattern.

Works with any backend of torch.distributed, gloo on CPUs too, which torch's SyncBatchNorm refuses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup
_COUNTED_OVER: ContextVar[Group | None] = ContextVar("counted_over", default=None)


@contextmanager
def counted_over(group: Group | None) -> Iterator[None]:
    """Inside, losses are means over the labelled pixels of the whole group's batch; None: of this process's.

    Each replica's loss is its own pixels' sum divided by the group's mean count, so the mean of the replicas'
    losses, and of their gradients, which is what data-parallel engines take, is that of the whole batch.
    """
    before = _COUNTED_OVER.set(group)
    try:
        yield
    finally:
        _COUNTED_OVER.reset(before)


def divisor(count: Tensor, least: float = 1) -> Tensor:
    """What a loss that is a sum over `count` things is divided by: their number, and never less than `least`.

    A scalar, without gradient.
    """
    group = _COUNTED_OVER.get()
    if group is None:
        return count.clamp(min=least)
    total = count.detach().to(torch.float64, copy=True)
    dist.all_reduce(total, group=group)
    return total.clamp(min=least) / dist.get_world_size(group)


class _Sum(torch.autograd.Function):
    """The sum over the group of a tensor, whose gradient is the sum of the group's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class ReplicaBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the whole group's batch, N x C x H x W in each
    process, of any sizes. Mean and variance are taken one after the other, in fp32 at least: nothing is lost
    where the mean is far from 0. Raises ValueError where the whole batch has one value a channel.

    `copies`: as many processes of the group hold the same part of the batch; it counts once.
    """

    def __init__(self, like: nn.BatchNorm2d, group: Group) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.group = group
        self.copies = 1
        self.training = like.training
        self._parameters, self._buffers = like._parameters, like._buffers

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = torch.cat([exact.sum((0, 2, 3)), exact.new_tensor([x.numel() / x.shape[1]])])
        sums = _Sum.apply(sums, self.group)
        count = sums[-1].detach()
        distinct = count / self.copies
        if distinct.item() <= 1:
            raise ValueError(f"expected more than one value a channel in training, got {tuple(x.shape)}")
        mean = (sums[:-1] / count)[:, None, None]
        variance = _Sum.apply((exact - mean).square().sum((0, 2, 3)), self.group) / count
        self._track(mean.detach().flatten(), variance.detach() * distinct / (distinct - 1))
        normal = (exact - mean) * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return normal.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None:
            return
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum  # type: ignore[union-attr]
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)  # type: ignore[union-attr]


class ReplicaDropout2d(nn.Dropout2d):
    """Dropout of whole channels whose pattern in training is that of the whole group's batch, of which each
    process has an equal part in the order of ranks. All must draw from equal generators."""

    def __init__(self, p: float, group: Group) -> None:
        super().__init__(p)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        ranks, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        pattern = F.dropout2d(x.new_ones(len(x) * ranks, x.shape[1], 1, 1), self.p)
        return x * pattern[rank * len(x) : (rank + 1) * len(x)]


def shared(network: nn.Module, group: Group) -> nn.Module:
    """`network` itself, every batch norm and dropout in it replaced by one that the group shares; parameters,
    buffers and their names stay. Before an engine or optimizer is made of it."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, ReplicaBatchNorm2d(child, group))
            elif type(child) is nn.Dropout2d:
                setattr(module, name, ReplicaDropout2d(child.p, group).train(child.training))
    return network
