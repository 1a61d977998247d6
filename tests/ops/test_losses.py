import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullres.ops.class_probability import class_probability_tensor
from fullres.ops.losses import (
    class_probability_kl,
    cross_entropy,
    ohem_cross_entropy,
    sampling_energy,
    sampling_tensor_loss,
)
from fullres.ops.sampling_solve import solve
from tests.ops.batches import IGNORE, K, batch

torch.set_num_threads(1)

seeds = st.integers(0, 2**32)


def pixel_losses(logits, labels):
    """Minus log softmax at the true class, of each labelled pixel in turn."""
    losses = []
    for n, y, x in np.ndindex(*labels.shape):
        if labels[n, y, x] != IGNORE:
            scores = logits[n, :, y, x].tolist()
            top = max(scores)
            losses.append(top + math.log(sum(math.exp(s - top) for s in scores)) - scores[labels[n, y, x]])
    return np.array(losses)


def kl_loop(logits, target):
    """Cell by cell: KL from the renormalised shares to the softmax, weighted by the shares' sum."""
    total, weights = 0.0, 0.0
    channels = logits.shape[1]
    for n, y, x in np.ndindex(logits.shape[0], *logits.shape[2:]):
        scores = np.exp(logits[n, :, y, x] - logits[n, :, y, x].max())
        q = scores / scores.sum()
        weight = target[n, :channels, y, x].sum()
        weights += weight
        for k in range(channels):
            if target[n, k, y, x] > 0:
                p = target[n, k, y, x] / weight
                total += weight * p * math.log(p / q[k])
    return total / weights


# Cross entropy


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_cross_entropy_is_the_mean_over_labelled_pixels(seed):
    logits, labels = batch(seed)
    expected = pixel_losses(logits, labels).mean()
    torch.testing.assert_close(cross_entropy(logits, labels).item(), expected)


# Hard examples


def mined(logits, labels, threshold, least_kept):
    """By sorting probabilities of the true class."""
    probabilities = np.sort(np.exp(-pixel_losses(logits, labels)))
    kept = max(least_kept, np.count_nonzero(probabilities < threshold))
    return -np.log(probabilities[:kept]).mean()


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(0.01, 1), st.integers(1, 250), st.sampled_from([0, 0.3, 0.97]))
def test_mining_equals_sorting(seed, threshold, least_kept, ignored):
    logits, labels = batch(seed, ignored=ignored)
    labels[0, 0, 0] = 0
    loss = ohem_cross_entropy(logits, labels, threshold, least_kept).item()
    torch.testing.assert_close(loss, mined(logits, labels, threshold, least_kept))


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 20), st.sampled_from([0.2, 0.5, 0.9]))
def test_mining_equals_sorting_among_equals(seed, least_kept, threshold):
    """Few kinds of pixels, so that the last one kept is as hard as others."""
    rng = np.random.default_rng(seed)
    kinds = torch.from_numpy(rng.standard_normal((3, K)))
    logits = kinds[torch.from_numpy(rng.integers(3, size=(2, 3, 4)))].movedim(-1, 1)
    labels = torch.zeros(2, 3, 4, dtype=torch.int64)
    loss = ohem_cross_entropy(logits, labels, threshold, least_kept).item()
    torch.testing.assert_close(loss, mined(logits, labels, threshold, least_kept))


def test_only_mined_pixels_learn():
    logits, labels = batch(0)
    logits.requires_grad_()
    ohem_cross_entropy(logits, labels, 0.2, 5).backward()
    learns = logits.grad.abs().sum(1) > 0
    probability = logits.detach().softmax(1).gather(1, labels.where(labels != IGNORE, 0)[:, None])[:, 0]
    assert learns.sum() > 5
    assert torch.equal(learns, (probability < 0.2) & (labels != IGNORE))

    logits.grad = None
    ohem_cross_entropy(logits, labels, 1e-9, 5).backward()
    learns = logits.grad.abs().sum(1) > 0
    assert learns.sum() == 5
    assert probability[learns].max() < probability[~learns & (labels != IGNORE)].min()


def test_mining_a_batch_that_is_right_everywhere():
    """Every pixel's probability rounds to 1: no pixel is below the others."""
    labels = torch.zeros(2, 5, 5, dtype=torch.int64)
    logits = torch.zeros(2, K, 5, 5)
    logits[:, 0] = 200
    assert ohem_cross_entropy(logits, labels, least_kept=10) == 0


def test_mining_keeps_all_of_few_pixels():
    logits, labels = batch(1)
    torch.testing.assert_close(ohem_cross_entropy(logits, labels, 0.5), cross_entropy(logits, labels))


# Class probabilities


@pytest.mark.parametrize("channels", [K, K + 1])
@settings(deadline=None, max_examples=40)
@given(seed=seeds, scale=st.sampled_from([1, 2, 4, 5]))
def test_kl_equals_a_plain_loop(channels, seed, scale):
    labels = batch(seed)[1]
    target = class_probability_tensor(labels, scale, K).double()
    logits = batch(seed + 1, size=target.shape[2:], channels=channels)[0]
    loss = class_probability_kl(logits, target)
    torch.testing.assert_close(loss.item(), kl_loop(logits.numpy(), target.numpy()))


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_empty_cells_are_left_out(seed):
    """Shares of labelled pixels only: a cell counts wholly or not at all."""
    labels = batch(seed, ignored=0.8)[1]
    target = class_probability_tensor(labels, 2, K, "renormalise").double()
    logits = batch(seed, size=target.shape[2:])[0]
    loss = class_probability_kl(logits, target)
    torch.testing.assert_close(loss.item(), kl_loop(logits.numpy(), target.numpy()))
    empty = target.sum(1) == 0
    assert empty.any()
    torch.testing.assert_close(class_probability_kl(logits + 9 * empty[:, None], target), loss)


@pytest.mark.parametrize("channels", [K, K + 1])
def test_kl_is_zero_at_the_target_and_positive_elsewhere(channels):
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.dirichlet(np.ones(K + 1), (2, 3, 4))).movedim(-1, 1)
    best = target[:, :channels].log()
    torch.testing.assert_close(class_probability_kl(best, target).item(), 0.0)
    for _ in range(20):
        assert class_probability_kl(best + torch.from_numpy(rng.standard_normal(best.shape)), target) > 0


def test_kl_is_from_the_target():
    """KL((1, 0) || (1/4, 3/4)) = log 4; the other way round it is infinite."""
    logits = torch.tensor([1.0, 3.0]).log().view(1, 2, 1, 1)
    target = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(class_probability_kl(logits, target).item(), math.log(4))


def test_a_partly_ignored_cell_counts_by_its_labelled_share():
    labels = torch.tensor([[[0, 1, 2, IGNORE], [1, 1, IGNORE, IGNORE]]])
    target = class_probability_tensor(labels, 2, K)
    logits = batch(0, n=1, size=(1, 2))[0]
    left = class_probability_kl(logits[..., :1], target[..., :1])
    right = class_probability_kl(logits[..., 1:], target[..., 1:])
    torch.testing.assert_close(right, -logits[0, :, 0, 1].log_softmax(0)[2])
    torch.testing.assert_close(class_probability_kl(logits, target), (4 * left + right) / 5)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_kl_teaches_what_every_pixel_of_the_cell_would(scale):
    labels = batch(2)[1]
    target = class_probability_tensor(labels, scale, K)
    logits = batch(3, size=target.shape[2:])[0].requires_grad_()
    repeated = logits.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    (by_pixels,) = torch.autograd.grad(cross_entropy(repeated, labels), logits)
    (by_cells,) = torch.autograd.grad(class_probability_kl(logits, target), logits)
    torch.testing.assert_close(by_cells, by_pixels, rtol=1e-6, atol=1e-9)


def test_predicting_the_ignored_share():
    """A channel for it: every cell counts, and so does what is predicted on ignored ones."""
    target = class_probability_tensor(torch.tensor([[[0, IGNORE]]]), 1, K)
    logits = batch(0, n=1, size=(1, 2), channels=K + 1)[0]
    log_softmax = logits.log_softmax(1)[0, :, 0]
    expected = -(log_softmax[0, 0] + log_softmax[K, 1]) / 2
    torch.testing.assert_close(class_probability_kl(logits, target), expected)


@pytest.mark.parametrize("shape", [(2, K + 2, 3, 4), (2, K - 1, 3, 4), (2, K, 1, 4), (1, K, 3, 4)])
def test_shapes_that_do_not_go_together_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits are \(2, 4, 3, 4\), target is .*one channel more"):
        class_probability_kl(torch.zeros(2, K, 3, 4), torch.zeros(shape))


# All of them

LABEL_LOSSES = [cross_entropy, ohem_cross_entropy, lambda x, y: ohem_cross_entropy(x, y, 0.7, 20)]


def kl_of_labels(logits, labels):
    return class_probability_kl(logits, class_probability_tensor(labels, 1, K))


@pytest.mark.parametrize("loss", [*LABEL_LOSSES, kl_of_labels])
def test_gradient(loss):
    logits, labels = batch(4, size=(4, 5))
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("loss", [*LABEL_LOSSES, kl_of_labels])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nothing_but_ignored_pixels(loss, dtype):
    logits, labels = batch(5, ignored=1)
    logits = logits.to(dtype).requires_grad_()
    total = loss(logits, labels)
    total.backward()
    assert total == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", [*LABEL_LOSSES, kl_of_labels])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(loss, dtype):
    logits, labels = batch(6)
    logits = (1e4 * logits.sign()).to(dtype).requires_grad_()
    total = loss(logits, labels)
    total.backward()
    assert 1e3 < total < 2.1e4
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [*LABEL_LOSSES, kl_of_labels])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_computed_in_single_precision_at_least(loss, dtype, autocast):
    logits, labels = batch(7)
    logits = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total = loss(logits, labels)
    total.backward()
    assert total.dtype == torch.float32
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(total.double(), loss(logits.detach().double(), labels), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [*LABEL_LOSSES, kl_of_labels])
def test_what_is_predicted_on_ignored_pixels_does_not_matter(loss):
    logits, labels = batch(8)
    other = torch.where((labels == IGNORE)[:, None], batch(0)[0], logits)
    torch.testing.assert_close(loss(other, labels), loss(logits, labels))


@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_a_network_gone_wrong_shows(loss):
    logits, labels = batch(9, ignored=0)
    logits[0, :, 3, 3] = math.nan
    assert loss(logits, labels).isnan()


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_an_ignored_id_among_the_classes(loss):
    logits, labels = batch(10)
    swapped = torch.where(labels == IGNORE, 0, torch.where(labels == 0, 2, labels))
    merged = torch.where(labels == 0, 2, labels)
    torch.testing.assert_close(loss(logits, swapped, ignore_index=0), loss(logits, merged))


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_labels_that_do_not_belong_are_refused(loss):
    logits, labels = batch(11)
    labels[0, 0, 0] = K
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        loss(logits, labels)


# Objectives


def test_sampling_tensors_are_a_sum_over_the_grid():
    rng = np.random.default_rng(0)
    prediction, target = torch.from_numpy(rng.random((2, 3, 8, 8, 2)))
    expected = sum((a - b) ** 2 for a, b in zip(prediction.ravel(), target.ravel(), strict=True)) / 3
    torch.testing.assert_close(sampling_tensor_loss(prediction, target), expected)
    assert torch.autograd.gradcheck(
        lambda x: sampling_tensor_loss(x, target[:, :2]), prediction[:, :2].requires_grad_()
    )
    assert sampling_tensor_loss(prediction.bfloat16(), target.float()).dtype == torch.float32


@pytest.mark.parametrize("smoothness", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (8, 8)])
def test_sampling_energy(grid, smoothness):
    """Written out pair by pair; and its minimum under the constraints is the sampling tensor."""
    rng = np.random.default_rng(0)
    h, w = grid
    phi, nearest = rng.random((2, 3, h, w, 2))
    expected = 0.0
    for n, i, j in np.ndindex(3, h, w):
        expected += ((phi[n, i, j] - nearest[n, i, j]) ** 2).sum()
        for y, x in ((i + 1, j), (i, j + 1)):
            if y < h and x < w:
                expected += smoothness * ((phi[n, i, j] - phi[n, y, x]) ** 2).sum()
    found = sampling_energy(torch.from_numpy(phi), torch.from_numpy(nearest), smoothness)
    torch.testing.assert_close(found.item(), expected / 3)
    best = torch.from_numpy(solve(nearest, smoothness)).requires_grad_()
    least = sampling_energy(best, torch.from_numpy(nearest), smoothness)
    least.backward()
    free = torch.ones(h, w, 2, dtype=torch.bool)
    free[[0, -1], :, 0] = free[:, [0, -1], 1] = False
    assert not (best.grad[:, free].abs() > 1e-12).any()
    phi[:, 0, :, 0], phi[:, -1, :, 0], phi[:, :, 0, 1], phi[:, :, -1, 1] = 0, 1, 0, 1
    assert sampling_energy(torch.from_numpy(phi), torch.from_numpy(nearest), smoothness) >= least
