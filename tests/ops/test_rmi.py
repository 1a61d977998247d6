import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullres.ops.rmi import binary_cross_entropy, rmi_loss

torch.set_num_threads(1)

K, IGNORE = 3, 255
LEAST = 0.5 * math.log(5e-4)  # minus the mutual information of a class that isn't there


def batch(seed, n=2, size=(14, 17), ignored=0.2):
    """Logits, and labels in patches of 4 pixels."""
    rng = np.random.default_rng(seed)
    height, width = size
    labels = rng.integers(0, K, (n, -(-height // 4), -(-width // 4)))
    labels[rng.random(labels.shape) < ignored] = IGNORE
    labels = labels.repeat(4, 1).repeat(4, 2)[:, :height, :width]
    return torch.from_numpy(2 * rng.standard_normal((n, K, *size))), torch.from_numpy(labels)


def one_hot(labels):
    """N x K x H x W, all 0 where ignored."""
    return torch.stack([labels == k for k in range(K)], 1).double()


def binary_cross_entropy_loop(logits, labels):
    total, count = 0.0, 0
    for n, y, x in np.ndindex(labels.shape):
        if labels[n, y, x] != IGNORE:
            count += 1
            for k in range(K):
                p = 1 / (1 + math.exp(-logits[n, k, y, x]))
                total -= math.log(p if labels[n, y, x] == k else 1 - p)
    return total / count


def pool(image):
    """Mean of every 4 x 4 pixels of the image with 2 zeros around it."""
    padded = np.pad(image, 2)
    size = [(length - 4) // 4 + 1 for length in padded.shape]
    pooled = np.empty(size)
    for i, j in np.ndindex(*size):
        pooled[i, j] = padded[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean()
    return pooled


def regions(image):
    """9 x regions: every 3 x 3 neighbourhood, less their mean."""
    height, width = image.shape
    drawn = [image[i : i + 3, j : j + 3].ravel() for i in range(height - 2) for j in range(width - 2)]
    drawn = np.array(drawn).T
    return drawn - drawn.mean(1, keepdims=True)


def information_loop(logits, labels):
    """Eq. 5's second sum, with the inverse as the RMI paper writes it."""
    total = 0.0
    for n in range(len(labels)):
        for k in range(K):
            known = labels[n] != IGNORE
            truth = regions(pool((labels[n] == k).astype(float)))
            prediction = regions(pool(known / (1 + np.exp(-logits[n, k])) + 1e-6))
            ridge = 5e-4 * np.eye(9)
            inverse = np.linalg.inv(prediction @ prediction.T + ridge)
            cross = truth @ prediction.T
            left = truth @ truth.T - cross @ inverse @ cross.T
            total += 0.5 * np.linalg.slogdet(left + ridge)[1] / 9
    return total / len(labels)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(8, 26), st.integers(8, 26))
def test_equals_plain_loops(seed, height, width):
    logits, labels = batch(seed, size=(height, width))
    labels[:, 0, 0] = 1
    bce = binary_cross_entropy_loop(logits.numpy(), labels.numpy())
    information = information_loop(logits.numpy(), labels.numpy())
    torch.testing.assert_close(binary_cross_entropy(logits, labels).item(), bce)
    torch.testing.assert_close(rmi_loss(logits, labels).item(), 0.5 * bce + 0.5 * information)


@pytest.mark.parametrize("loss", [rmi_loss, binary_cross_entropy])
def test_gradient(loss):
    logits, labels = batch(0, size=(13, 14))
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_covariances_are_double_whatever_comes_in(dtype, autocast):
    logits, labels = batch(1, size=(64, 96))
    logits = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = rmi_loss(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), rmi_loss(logits.detach().double(), labels), rtol=1e-5, atol=0)


def test_knowing_the_truth_is_best():
    """With the same covariance sum S in all blocks S - S (S + r)^-1 S + r is left, less than 2 r."""
    logits, labels = batch(2, size=(64, 96), ignored=0)
    sure = 40 * (one_hot(labels) - 0.5)
    best = rmi_loss(sure, labels)
    assert K * 0.5 * LEAST < best <= K * 0.25 * math.log(1e-3)
    assert best < rmi_loss(0.1 * sure, labels) < rmi_loss(logits, labels)
    assert rmi_loss(sure.roll(4, 3), labels) > best  # beside the truth


def test_regions_count_not_only_pixels():
    """Two predictions, each wrong at 16 pixels: one on a patch, one scattered."""
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, :, 32:] = 1
    truth = one_hot(labels)
    patch, scattered = truth.clone(), truth.clone()
    patch[:, :2, 8:12, 8:12] = patch[:, :2, 8:12, 8:12].flip(1)
    scattered[:, :2, 4::16, 4::16] = scattered[:, :2, 4::16, 4::16].flip(1)
    assert (patch != truth).sum() == (scattered != truth).sum()
    loss = [binary_cross_entropy(8 * p - 4, labels).item() for p in (patch, scattered)]
    assert loss[0] == pytest.approx(loss[1])
    assert abs(rmi_loss(8 * patch - 4, labels) - rmi_loss(8 * scattered - 4, labels)) > 0.01


def test_what_is_predicted_on_ignored_pixels_does_not_matter():
    logits, labels = batch(3)
    other = logits + 7 * (labels == IGNORE)[:, None]
    for loss in (rmi_loss, binary_cross_entropy):
        assert loss(other, labels).item() == loss(logits, labels).item()


@pytest.mark.parametrize("loss", [rmi_loss, binary_cross_entropy])
def test_an_ignored_image_is_as_if_it_were_not_there(loss):
    logits, labels = batch(4, n=3)
    labels[1] = IGNORE
    rest = [0, 2]
    torch.testing.assert_close(loss(logits, labels), loss(logits[rest], labels[rest]))


@pytest.mark.parametrize("loss", [rmi_loss, binary_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_but_ignored_pixels(loss, dtype):
    logits = batch(5)[0].to(dtype).requires_grad_()
    total = loss(logits, torch.full((2, 14, 17), IGNORE))
    total.backward()
    assert total == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0, 1e4])
def test_extreme_logits(scale, dtype):
    logits, labels = batch(6)
    logits = (scale * logits.sign()).to(dtype).requires_grad_()
    loss = rmi_loss(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_an_absent_class_adds_a_constant():
    logits, labels = batch(7, ignored=0)
    labels = labels.clamp(max=1)
    logits.requires_grad_()
    shared = rmi_loss(logits, labels) - 0.5 * binary_cross_entropy(logits, labels)
    present = rmi_loss(logits[:, :2], labels) - 0.5 * binary_cross_entropy(logits[:, :2], labels)
    torch.testing.assert_close((shared - present).item(), 0.5 * LEAST)
    shared.backward()
    torch.testing.assert_close(logits.grad[:, 2], torch.zeros(2, 14, 17).double(), rtol=0, atol=1e-15)


def test_an_ignored_id_among_the_classes():
    logits, labels = batch(8)
    swapped = torch.where(labels == IGNORE, 0, torch.where(labels == 0, 2, labels))
    merged = torch.where(labels == 0, 2, labels)
    for loss in (rmi_loss, binary_cross_entropy):
        torch.testing.assert_close(loss(logits, swapped, 0), loss(logits, merged))


def test_a_network_gone_wrong_shows():
    logits, labels = batch(9)
    logits[0, 0, 3, 3] = math.nan
    assert rmi_loss(logits, labels).isnan()


def test_labels_that_do_not_belong_are_refused():
    logits, labels = batch(10)
    labels[0, 0, 0] = K
    for loss in (rmi_loss, binary_cross_entropy):
        with pytest.raises(RuntimeError, match="index 3 is out of bounds"):
            loss(logits, labels)


def test_an_image_without_a_region_is_refused():
    logits, labels = batch(11, size=(7, 20))
    with pytest.raises(RuntimeError, match="maximum size for tensor at dimension 2 is 2"):
        rmi_loss(logits, labels)


def test_one_class_against_the_rest():
    logits, labels = batch(12, ignored=0)
    expected = F.binary_cross_entropy_with_logits(logits, one_hot(labels)) * K
    torch.testing.assert_close(binary_cross_entropy(logits, labels), expected)
