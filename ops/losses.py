"""Training losses. The papers' objectives, sums of these, are in `pipeline.train.objectives`.

Unless said otherwise logits are N x C x H x W, at the labels' size (how they get there is the network's own)
and of any float dtype; labels are N x H x W int64, class ids 0..C-1 and `ignore_index`. A loss is a scalar,
computed in fp32, or in fp64 of double logits. If all pixels are ignored it is 0, and so is its gradient.
"Of the batch" means of all replicas' where they train together (`ops.replicas.counted_over`).
Labels that don't belong are torch's to refuse: an IndexError or RuntimeError on CPU, an assertion on CUDA.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fullres.ops.replicas import divisor
from fullres.ops.rmi import at_least_fp32


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Softmax cross entropy, mean over labelled pixels of the batch."""
    labelled = labels != ignore_index
    return _pixel_losses(logits, labels, ignore_index).sum() / divisor(labelled.sum())


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    threshold: float = 0.9,
    least_kept: int = 131072,
    ignore_index: int = 255,
) -> Tensor:
    """Cross entropy with online hard example mining (SPGNet, Sec. 4.4), by HRNet's rule: mean over the pixels
    whose true class is given a probability below `threshold`, or over the `least_kept` hardest if those are
    more.

    SPGNet prints neither number; the defaults are HRNet's. The hardest are those of the batch, all labelled
    pixels if there are no more than `least_kept`. HRNet's code leaves out the easiest pixel where all are
    kept, and all pixels as easy as the easiest kept one, which can be every one: here exactly `least_kept`
    count. Each replica of a training has its own hardest, as in HRNet's code.
    """
    losses = _pixel_losses(logits, labels, ignore_index)  # 0 where ignored: never among the hard ones
    hard = losses > -math.log(threshold)
    few = hard.sum() < least_kept
    hardest = losses.flatten().topk(min(least_kept, losses.numel()), sorted=False).values
    kept = torch.where(few, (labels != ignore_index).sum().clamp(max=least_kept), hard.sum())
    return torch.where(few, hardest.sum(), (losses * hard).sum()) / divisor(kept)


def class_probability_kl(logits: Tensor, target: Tensor) -> Tensor:
    """L_cpp: how far the prediction is from the shares of the classes in each cell (SeeThroughNet, Eq. 2).

    KL(target || prediction): Eq. 2 prints it the other way round, which is infinite wherever a class is
    absent from a cell. Zero shares add nothing here.

    Ignored pixels are a class of their own or left out, as the logits have a channel for them or not:

    - C + 1 channels, as the paper has it (20 for Cityscapes): the network predicts the ignored share too, and
      every cell counts alike, the mean over N x h x w.
    - C channels: the prediction is compared with the shares of the labelled pixels, and a cell counts by its
      labelled share. So labelled pixels count alike, wherever they are, and ignored ones not at all; the
      gradient is that of the pixels' cross entropy with the logits repeated over each (whole) cell.

    Args:
        logits: N x C x h x w or N x (C + 1) x h x w.
        target: N x (C + 1) x h x w float, the last channel the ignored share. Of `class_probability`
            with "renormalise", N x C x h x w, empty cells are left out.

    Raises:
        ValueError: shapes that don't go together.
    """
    n, channels, height, width = logits.shape
    if target.shape not in ((n, channels, height, width), (n, channels + 1, height, width)):
        raise ValueError(
            f"logits are {tuple(logits.shape)}, target is {tuple(target.shape)}: they must be alike, or the "
            f"target has one channel more, for ignored pixels"
        )
    log_prediction = F.log_softmax(at_least_fp32(logits), dim=1)
    shares = target[:, :channels].to(log_prediction.dtype)
    weight = shares.sum(1)
    # With t = w p: w KL(p || q) = sum t log t - sum t log q - w log w, and nothing is divided by a w of 0.
    total = F.kl_div(log_prediction, shares, reduction="sum") - torch.xlogy(weight, weight).sum()
    return total / divisor(weight.sum(), torch.finfo(weight.dtype).tiny)


def sampling_tensor_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared L2 distance of sampling tensors, mean over the batch ("Learning Downsampling Near Semantic
    Boundaries", Sec. 3.1).

    A sum over the grid, as the energy is that the target minimises.

    Args:
        prediction, target: N x h x w x 2 float, relative coordinates.
    """
    difference = at_least_fp32(prediction) - target
    return difference.square().sum() / len(target)


def sampling_energy(phi: Tensor, nearest: Tensor, smoothness: float) -> Tensor:
    """Eq. 2 of the same paper as a loss, mean over the batch: the energy whose minimum is the target of
    `sampling_tensor_loss`. Neighbours are the 4 beside a point, each pair once, as in `ops.sampling_solve`.

    Args:
        phi, nearest: N x h x w x 2 float, relative coordinates: sampling tensors, and of each point of the
            uniform grid the nearest point on a boundary.
        smoothness: lambda.
    """
    phi = at_least_fp32(phi)
    steps = phi.diff(dim=1).square().sum() + phi.diff(dim=2).square().sum()
    return ((phi - nearest).square().sum() + smoothness * steps) / len(phi)


def _pixel_losses(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross entropy of each pixel, N x H x W; 0 where it is ignored."""
    return F.cross_entropy(at_least_fp32(logits), labels, ignore_index=ignore_index, reduction="none")
