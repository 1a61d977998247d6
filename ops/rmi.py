"""Region mutual information ("Region Mutual Information Loss for Semantic Segmentation", Zhao et al.): L_rmi
of SeeThroughNet's Eq. 5, as the two-scale attention network that it builds on computes it.

A class's truth and its prediction are two images. Their 3x3 regions, nine numbers each, are taken as draws
from a joint Gaussian: the less the prediction's leave open about the truth's, the more mutual information.
Classes are scored one against the rest: sigmoid, not softmax.

Logits are N x C x H x W of any float dtype, labels N x H x W int64: 0..C-1 and `ignore_index`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fullres.ops.replicas import divisor

_RADIUS = 3  # a region's side
_DIMENSIONS = _RADIUS**2
_POOL = 4  # both images are averaged 4x4 to 1 first, padded by 2
_FLOOR = 1e-6  # added to probabilities: what is predicted 0 differs from the padding
_RIDGE = 5e-4  # added to the diagonal of covariance sums: a class that is absent has a covariance of zero
_LAMBDA = 0.5  # Eq. 5


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rmi_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Eq. 5: lambda times `binary_cross_entropy`, 1 - lambda times the regions' mutual information, negated.

    The mutual information is summed over classes and averaged over the images that have a labelled pixel:
    one without is as if it were not in the batch. Ignored pixels are of no class in either image. A class
    absent from an image adds a constant, -1.9. At its best the loss is near -1.9 C, not 0.

    Returns:
        A scalar, fp32 (fp64 for double logits); 0 with zero gradient if all pixels are ignored. Covariances
        are in fp64 throughout, on any device.

    Raises:
        RuntimeError: fewer than 8 x 8 pixels, which hold no region; labels that don't belong.
    """
    logits = at_least_fp32(logits)
    labelled = labels != ignore_index
    truth = _one_hot(logits, labels, labelled)
    prediction = logits.sigmoid() * labelled[:, None] + _FLOOR
    information = -_log_determinant(truth, prediction).sum(1) / (2 * _DIMENSIONS)
    counted = labelled.flatten(1).any(1)
    mean_information = (information * counted).sum() / divisor(counted.sum())
    cross_entropy = _binary_cross_entropy(logits, truth, labelled)
    return _LAMBDA * cross_entropy - (1 - _LAMBDA) * mean_information.to(logits.dtype)


def binary_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross entropy of each class against the rest, summed over classes, mean over labelled pixels.

    L_ce of Eq. 5 and, so that one kind of score is trained everywhere, of Eq. 7.

    Returns:
        A scalar, fp32 (fp64 for double logits); 0 with zero gradient if all pixels are ignored.

    Raises:
        RuntimeError: labels that don't belong.
    """
    logits = at_least_fp32(logits)
    labelled = labels != ignore_index
    return _binary_cross_entropy(logits, _one_hot(logits, labels, labelled), labelled)


def _binary_cross_entropy(logits: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    weight = labelled[:, None].to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum")
    return total / divisor(labelled.sum())


def _one_hot(logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """The truth as the logits' shape and dtype: 1 at a pixel's class, all 0 where it is ignored."""
    place = labels.where(labelled, 0)[:, None]
    return torch.zeros_like(logits).scatter_(1, place, labelled[:, None].to(logits.dtype))


def _log_determinant(truth: Tensor, prediction: Tensor) -> Tensor:
    """log det of the covariance that the truth's regions keep once the prediction's are known: N x C fp64.

    That is the Schur complement of the prediction's block in the joint covariance, and the complement's
    Cholesky factor is the last rows and columns of the joint one's. So nothing is inverted, and nothing that
    might lose its sign to rounding is subtracted.
    """
    joint = torch.cat([_regions(prediction), _regions(truth)], dim=-1)
    joint -= joint.mean(2, keepdim=True)  # in place: these are the largest arrays here
    covariance = joint.mT @ joint  # sums, not means: the ridge is meant for these
    covariance = covariance + _RIDGE * torch.eye(2 * _DIMENSIONS, dtype=joint.dtype, device=joint.device)
    # Unchecked: positive definite unless a logit is nan, which the cross entropy then shows.
    factor = torch.linalg.cholesky_ex(covariance).L
    return 2 * factor.diagonal(dim1=-2, dim2=-1)[..., _DIMENSIONS:].log().sum(-1)


def _regions(images: Tensor) -> Tensor:
    """All 3x3 regions of the pooled images: N x C x regions x 9, fp64."""
    pooled = F.avg_pool2d(images, _POOL, padding=_POOL // 2).double()
    windows = pooled.unfold(2, _RADIUS, 1).unfold(3, _RADIUS, 1)
    return windows.flatten(4).flatten(2, 3)
