"""Auxiliary heads and the losses on them, as training puts them together."""

import numpy as np
import pytest
import torch

from fullres.models.auxiliary import AuxiliaryHeads, enlarge
from fullres.models.backbones.hrnet import HRNet
from fullres.models.backbones.resnet import ResNet
from fullres.models.ocrnet import OCRNet
from fullres.models.pspnet import PSPNet
from fullres.ops.class_probability import class_probability
from fullres.pipeline.train.objectives import auxiliary_objective, class_probability_objective
from tests.models.base import image, settled

torch.set_num_threads(1)

CLASSES = 5


def pspnet(outputs):
    backbone = ResNet(50, 1 / 16, output_stride=8, deep_stem=True)
    heads = AuxiliaryHeads(backbone.channels, outputs, (0, 1, 2, 3), channels=8)
    return PSPNet(backbone, CLASSES, channels=16, auxiliary=heads)


def ocrnet(outputs):
    backbone = HRNet(48, 1 / 12)
    heads = AuxiliaryHeads(backbone.channels, outputs, (0, 1, 2, 3), channels=8)
    return OCRNet(backbone, CLASSES, channels=16, auxiliary=heads)


def labels_of(size):
    labels = np.random.default_rng(0).integers(0, CLASSES + 1, (2, *size), np.uint8)
    return np.where(labels == CLASSES, 255, labels).astype(np.uint8)


def assert_all_trained(network, loss):
    assert loss.isfinite()
    loss.backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("size", [(64, 96), (45, 33)])
@pytest.mark.parametrize("build", [pspnet, ocrnet])
def test_cross_entropy_of_four_heads(build, size):
    """The baselines of SeeThroughNet's Table 1."""
    network = settled(lambda: build(CLASSES)).train()
    output, labels = network(image(2, size)), torch.from_numpy(labels_of(size)).long()
    heads = enlarge(output.heads, labels.shape[-2:], network.align_corners)
    if build is ocrnet:
        heads.append(output.soft_regions)
    assert_all_trained(network, auxiliary_objective(output.logits, heads, labels))


@pytest.mark.parametrize("size", [(64, 96), (45, 33)])
@pytest.mark.parametrize(("build", "scales"), [(pspnet, (4, 8, 8, 8)), (ocrnet, (4, 8, 16, 32))])
@pytest.mark.parametrize("outputs", [CLASSES, CLASSES + 1])
def test_class_probabilities_of_four_heads(build, scales, outputs, size):
    """Heads are of their targets' size, whatever the image's."""
    network = settled(lambda: build(outputs)).train()
    output, labels = network(image(2, size)), labels_of(size)
    targets = [
        torch.from_numpy(np.stack([class_probability(x, scale, CLASSES) for x in labels])) for scale in scales
    ]
    own = (output.soft_regions,) if build is ocrnet else ()
    labels = torch.from_numpy(labels).long()
    assert_all_trained(
        network, class_probability_objective(output.logits, output.heads, targets, labels, own)
    )
