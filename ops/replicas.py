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
    counts = _of_all(count.detach().double().reshape(1), group)
    return counts.sum().clamp(min=least) / len(counts)


def _of_all(own: Tensor, group: Group) -> Tensor:
    """Own vectors, C, of all processes, P x C. For a few numbers gloo takes twice as long to sum them."""
    parts = own.new_empty(dist.get_world_size(group), len(own))
    dist.all_gather(list(parts), own, group=group)
    return parts


class _Normalised(torch.autograd.Function):
    """x N x C x H x W, normalised by the mean and variance of the whole group's, times weight, plus bias.

    One exchange in each direction. Forward: of each process the count, mean and sum of squared deviations of
    its part, which are joined without loss where the mean is far from 0 (Chan et al., "Updating Formulae",
    1979). Backward: the sums that statistics depend on each pixel by. Gradients of weight and bias are those
    of this process's part, as all parameters' are.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        # The kernel of torch's own batch norm: on CPUs a tenth of the time of `var_mean`.
        mean, variance = torch.batch_norm_update_stats(exact, None, None, 0.0)
        own = torch.cat([mean, variance, exact.new_tensor([x.numel() / x.shape[1]])])
        parts = _of_all(own, group)
        counts, means, variances = parts[:, -1:], parts[:, : len(mean)], parts[:, len(mean) : -1]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        y = F.batch_norm(exact, mean, variance, weight, bias, training=False, eps=eps).to(x.dtype)
        ctx.group = group
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        exact, gradient = x.to(mean.dtype), gradient.to(mean.dtype)
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient,
            exact,
            torch.ones_like(mean),
            None,
            None,
            mean,
            scale,
            True,
            ctx.eps,
            [False, True, True],
        )
        both = _of_all(torch.cat([of_bias, of_weight]), ctx.group).sum(0)
        from_mean, from_scale = both.div_(count).chunk(2)
        of_x = exact - mean[:, None, None]
        of_x.mul_((-from_scale * scale)[:, None, None]).add_(gradient).sub_(from_mean[:, None, None])
        of_x.mul_((scale if weight is None else scale * weight)[:, None, None])
        affine = weight is not None
        return of_x.to(x.dtype), of_weight if affine else None, of_bias if affine else None, None, None


class ReplicaBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the whole group's batch, N x C x H x W in each
    process, of any sizes, in fp32 at least. Raises ValueError where the whole batch has one value a channel.

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
        y, mean, variance, count = _Normalised.apply(x, self.weight, self.bias, self.eps, self.group)
        distinct = count / self.copies
        if distinct.item() <= 1:
            raise ValueError(f"expected more than one value a channel in training, got {tuple(x.shape)}")
        self._track(mean, variance * distinct / (distinct - 1))
        return y

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
