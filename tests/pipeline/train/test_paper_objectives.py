"""The papers' objectives, held against sums of losses."""

import pytest
import torch

from fullres.ops.class_probability import class_probability_tensor
from fullres.ops.losses import class_probability_kl, cross_entropy, ohem_cross_entropy
from fullres.ops.rmi import binary_cross_entropy, rmi_loss
from fullres.pipeline.train.objectives import (
    auxiliary_objective,
    class_probability_objective,
    seethroughnet_objective,
    spgnet_objective,
)
from tests.ops.batches import K, batch

torch.set_num_threads(1)


@pytest.mark.parametrize("heads", [0, 1, 4])
def test_auxiliary_heads(heads):
    (main, labels), *others = (batch(seed) for seed in range(heads + 1))
    auxiliary = [logits for logits, _ in others]
    expected = cross_entropy(main, labels)
    for head in auxiliary:
        expected = expected + 0.4 * cross_entropy(head, labels)
    torch.testing.assert_close(auxiliary_objective(main, auxiliary, labels), expected)


def test_stages():
    first, labels = batch(0)
    second, _ = batch(1)
    first[:, 0] += 20 * (labels == 0)  # mining leaves these out where more than `least_kept` are harder
    expected = cross_entropy(first, labels) + cross_entropy(second, labels)
    torch.testing.assert_close(spgnet_objective([first, second], labels, ohem=False), expected)
    first, second, labels = (x.repeat(1, *[1] * (x.dim() - 3), 32, 32) for x in (first, second, labels))
    mined_expected = ohem_cross_entropy(first, labels) + ohem_cross_entropy(second, labels)
    torch.testing.assert_close(spgnet_objective([first, second], labels), mined_expected)
    assert mined_expected > expected


@pytest.mark.parametrize("channels", [K, K + 1])
def test_class_probability_in_place_of_cross_entropy(channels):
    logits, labels = batch(0, size=(32, 64))
    targets = [class_probability_tensor(labels, scale, K) for scale in (4, 8, 16, 32)]
    heads = [batch(i, size=t.shape[2:], channels=channels)[0] for i, t in enumerate(targets)]
    kl = sum(class_probability_kl(h, t) for h, t in zip(heads, targets, strict=True))
    expected = cross_entropy(logits, labels) + 0.4 * kl
    torch.testing.assert_close(class_probability_objective(logits, heads, targets, labels), expected)
    regions = batch(9, size=(32, 64))[0]
    torch.testing.assert_close(
        class_probability_objective(logits, heads, targets, labels, [regions], weight=1.0),
        cross_entropy(logits, labels) + 0.4 * cross_entropy(regions, labels) + kl,
    )


def test_two_resolutions():
    labels = batch(0, size=(64, 64))[1]
    joint, half, full, auxiliary = (batch(seed, size=(64, 64))[0] for seed in range(4))
    pyramid = [class_probability_tensor(labels, scale, K) for scale in (4, 8, 16, 32)]
    targets = [*pyramid[:3], *pyramid[1:]]
    heads = [batch(i, size=t.shape[2:], channels=K + 1)[0] for i, t in enumerate(targets)]
    without = seethroughnet_objective(joint, half, full, [], [], labels)
    scales = binary_cross_entropy(half, labels) + binary_cross_entropy(full, labels)
    torch.testing.assert_close(without, rmi_loss(joint, labels) + 0.05 * scales)
    kl = sum(class_probability_kl(h, t) for h, t in zip(heads, targets, strict=True))
    torch.testing.assert_close(
        seethroughnet_objective(joint, half, full, heads, targets, labels, auxiliary),
        without + kl + 0.4 * binary_cross_entropy(auxiliary, labels),
    )


def test_a_head_without_a_target_is_refused():
    logits, labels = batch(0)
    target = class_probability_tensor(labels, 4, K)
    with pytest.raises(ValueError, match="shorter"):
        class_probability_objective(logits, [torch.zeros(2, K, 2, 3)] * 2, [target], labels)


def test_objectives_of_nothing_but_ignored_pixels():
    logits, labels = batch(0, ignored=1)
    logits.requires_grad_()
    target = class_probability_tensor(labels, 1, K)
    for total in (
        auxiliary_objective(logits, [logits], labels),
        spgnet_objective([logits, logits], labels),
        class_probability_objective(logits, [logits], [target], labels),
        seethroughnet_objective(logits, logits, logits, [logits], [target], labels, logits),
    ):
        logits.grad = None
        total.backward()
        assert total == 0
        assert not logits.grad.any()
