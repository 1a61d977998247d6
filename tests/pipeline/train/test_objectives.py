"""The loss of a batch, held against each paper's objective written out with torch's own functions."""

import pytest
import torch
import torch.nn.functional as F

from fullres.models.catalogue import CATALOGUE
from fullres.models.spgnet import SPGNetOutput
from fullres.ops.losses import ohem_cross_entropy
from fullres.ops.rmi import rmi_loss
from fullres.pipeline.train.network import ModelConfig, initial_network
from fullres.pipeline.train.objectives import SegmentationLoss, objective
from tests.models.base import image

torch.set_num_threads(1)

CLASSES = 5
SIZE = (65, 96)  # no multiple of 32: cells at the border are cut


def network_of(name, auxiliary="cross_entropy", loss=None):
    torch.manual_seed(0)
    config = ModelConfig(name=name, width=1 / 8, auxiliary=auxiliary, loss=loss)
    return initial_network(config, CLASSES)


def labels_of(count=2):
    labels = torch.randint(CLASSES + 1, (count, *SIZE), generator=torch.Generator().manual_seed(0))
    return labels.where(labels != CLASSES, 255)


def loss_and_output(network, images, labels):
    """Of the same dropout."""
    torch.manual_seed(1)
    loss = SegmentationLoss(network)(images, labels)
    torch.manual_seed(1)
    return loss, network(images)


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=255)


def enlarged(head, align_corners):
    return F.interpolate(head, SIZE, mode="bilinear", align_corners=align_corners)


def shares(labels, scale):
    """Of each class, the ignored pixels last, in each cell, N x (classes + 1) x h x w; cells are padded with
    a class more, which is then taken out."""
    size = [-(-n // scale) * scale for n in SIZE]
    padded = torch.full((len(labels), *size), CLASSES + 1)
    padded[:, : SIZE[0], : SIZE[1]] = labels.where(labels != 255, CLASSES)
    counted = F.avg_pool2d(F.one_hot(padded).movedim(-1, 1).float(), scale)[:, : CLASSES + 1]
    return counted / counted.sum(1, keepdim=True)


def kl(head, labels, scale):
    """Mean over cells."""
    target = shares(labels, scale)
    return F.kl_div(head.log_softmax(1), target, reduction="none").sum(1).mean()


def against_the_rest(logits, labels):
    """Binary cross entropy, summed over classes, mean over labelled pixels."""
    truth = F.one_hot(labels.where(labels != 255, CLASSES), CLASSES + 1)[..., :CLASSES].movedim(-1, 1).float()
    every = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1)
    return every[labels != 255].mean()


@pytest.mark.parametrize("name", ["hrnet18", "unet"])
def test_cross_entropy(name):
    network, images, labels = network_of(name), image(2, SIZE), labels_of()
    loss, output = loss_and_output(network, images, labels)
    torch.testing.assert_close(loss, cross_entropy(output.logits, labels))


@pytest.mark.parametrize(
    ("name", "align_corners"),
    [
        *(("pspnet50", True), ("dilatedfcn50", True), ("upernet50", False), ("ann50", False)),
        *(("ccnet50", False), ("dmnet50", False), ("deeplabv3plus50", False)),
        *(("deeplabv3plus-xception", False), ("deeplabv3plus-mobilenet", False)),
    ],
)
def test_one_auxiliary_head(name, align_corners):
    network, images, labels = network_of(name), image(2, SIZE), labels_of()
    loss, output = loss_and_output(network, images, labels)
    (head,) = output.heads
    assert head.shape[1] == CLASSES
    expected = cross_entropy(output.logits, labels)
    expected = expected + 0.4 * cross_entropy(enlarged(head, align_corners), labels)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        *(("pspnet50", (4, 8, 8, 8)), ("upernet50", (4, 8, 16, 32)), ("deeplabv3plus50", (4, 8, 16, 16))),
        *(("deeplabv3plus-mobilenet", (4, 8, 16, 16)), ("ocrnet18", (4, 8, 16, 32))),
    ],
)
def test_class_probabilities_on_every_stage(name, scales):
    network, images, labels = network_of(name, "class_probability"), image(2, SIZE), labels_of()
    loss, output = loss_and_output(network, images, labels)
    heads = sum(kl(head, labels, scale) for head, scale in zip(output.heads, scales, strict=True))
    expected = cross_entropy(output.logits, labels) + 0.4 * heads
    if name == "ocrnet18":
        expected = expected + 0.4 * cross_entropy(output.soft_regions, labels)
    torch.testing.assert_close(loss, expected)


def test_soft_regions():
    network, images, labels = network_of("ocrnet18"), image(2, SIZE), labels_of()
    loss, output = loss_and_output(network, images, labels)
    assert output.heads == ()
    expected = cross_entropy(output.logits, labels) + 0.4 * cross_entropy(output.soft_regions, labels)
    torch.testing.assert_close(loss, expected)


def hard_cross_entropy(logits, labels, least_kept):
    """Mean over the pixels whose true class has a probability below 0.9, or over `least_kept` if those are
    more."""
    every = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")[labels != 255]
    kept = max(least_kept, int((every.neg().exp() < 0.9).sum()))
    return every.sort(descending=True).values[:kept].mean()


@pytest.fixture
def few_kept(monkeypatch):
    """Crops of the tests have fewer pixels than mining keeps at least: of them it keeps this many."""
    kept = 1000
    monkeypatch.setattr(ohem_cross_entropy, "__defaults__", (0.9, kept, 255))
    return kept


def certain_of(network, labels):
    """Half of the labelled pixels' classes predicted with certainty: those are not among the hard ones."""
    share = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    truth = F.one_hot(labels.where(labels != 255, 0), CLASSES).movedim(-1, 1)
    return lambda logits: logits + 20.0 * truth * share[:, None]


@pytest.mark.parametrize(
    ("name", "auxiliary"),
    [
        *(("hrnet18", "none"), ("pspnet50", "cross_entropy"), ("pspnet50", "none"), ("ocrnet18", "none")),
        ("pspnet50", "class_probability"),
    ],
)
def test_hard_pixels_of_the_prediction_alone(name, auxiliary, few_kept):
    """Auxiliary heads keep the cross entropy of all pixels."""
    images, labels = image(2, SIZE), labels_of()
    network = network_of(name, auxiliary, "ohem")
    torch.manual_seed(1)
    output = network(images)
    output = output._replace(logits=certain_of(network, labels)(output.logits))
    align_corners = SegmentationLoss(network).align_corners
    loss = objective(output, labels, 255, align_corners, network.loss)
    plain = objective(output, labels, 255, align_corners, "cross_entropy")
    expected = plain - cross_entropy(output.logits, labels)
    expected = expected + hard_cross_entropy(output.logits, labels, few_kept)
    torch.testing.assert_close(loss, expected)
    assert loss > plain + 0.1


def test_spgnet_with_and_without_hard_pixels(few_kept):
    """At every stage; its paper's without being asked for."""
    images, labels = image(2, SIZE), labels_of()
    certain = certain_of(None, labels)
    for loss in (None, "ohem", "cross_entropy"):
        network = network_of("spgnet18x2", loss=loss)
        stages = tuple(map(certain, network(images).stages))
        found = objective(SPGNetOutput(stages), labels, loss=network.loss)
        if loss == "cross_entropy":
            expected = sum(cross_entropy(logits, labels) for logits in stages)
        else:
            expected = sum(hard_cross_entropy(logits, labels, few_kept) for logits in stages)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["seethroughnet48", "seethroughnet48-no-cpp"])
def test_two_resolutions_without_rmi(name):
    """The cross entropy of Eq. 5 is left of it."""
    network, images, labels = network_of(name, loss="cross_entropy"), image(2, SIZE), labels_of()
    loss, output = loss_and_output(network, images, labels)
    paper = objective(output, labels)
    without = against_the_rest(output.logits, labels) - rmi_loss(output.logits, labels)
    torch.testing.assert_close(loss, paper + without)


@pytest.mark.parametrize(("name", "stages"), [("spgnet18", 1), ("spgnet18x2", 2)])
def test_every_stage_counts_alike(name, stages):
    """A batch of fewer pixels than hard example mining keeps at least."""
    network, images, labels = network_of(name), image(2, SIZE), labels_of()
    loss, output = loss_and_output(network, images, labels)
    assert len(output.stages) == stages
    torch.testing.assert_close(loss, sum(cross_entropy(logits, labels) for logits in output.stages))


def test_two_resolutions():
    network, images, labels = network_of("seethroughnet48"), image(2, SIZE), labels_of()
    loss, output = loss_and_output(network, images, labels)
    expected = rmi_loss(output.logits, labels)
    for head, scale in zip(output.heads, (4, 8, 16, 8, 16, 32), strict=True):
        expected = expected + kl(head, labels, scale)
    for logits in (output.half, output.full):
        expected = expected + 0.05 * against_the_rest(logits, labels)
    torch.testing.assert_close(loss, expected)


def test_all_phases_of_smp_are_every_pixel():
    network, images, labels = network_of("smp18").eval(), image(2, (9, 14)), labels_of()[:, :9, :14]
    logits = network(images)
    network.phases = (16, 4, 4, 4)
    network.training = True  # it alone: batch norm as in evaluation
    torch.testing.assert_close(SegmentationLoss(network)(images, labels), cross_entropy(logits, labels))


@pytest.mark.parametrize("name", ["fcn32s18", "fcn8s18"])
def test_fcn_at_every_pixel_or_on_a_lattice(name):
    network, images, labels = network_of(name).eval(), image(2, SIZE), labels_of()
    logits = network(images)
    network.training = True  # it alone: batch norm as in evaluation
    torch.testing.assert_close(SegmentationLoss(network)(images, labels), cross_entropy(logits, labels))
    lattices = [
        cross_entropy(logits[..., y::2, x::2], labels[..., y::2, x::2]) for y in (0, 1) for x in (0, 1)
    ]
    network.loss_stride = 2
    drawn = [SegmentationLoss(network)(images, labels) for _ in range(32)]
    found = [[bool((a - b).abs() < 1e-5) for b in lattices] for a in drawn]
    assert all(any(row) for row in found)
    assert all(any(column) for column in zip(*found, strict=True))


FAMILIES = (
    *("smp18", "fcn32s18", "fcn8s18", "pspnet50", "deeplabv3plus-mobilenet", "hrnet18", "ocrnet18"),
    *("spgnet18x2", "unet"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_labelled_is_no_loss(name):
    """But where the ignored share is predicted too, as by SeeThroughNet."""
    network = network_of(name)
    loss = SegmentationLoss(network)(image(2, SIZE), torch.full((2, *SIZE), 255))
    loss.backward()
    assert loss == 0
    assert [n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()] == []


def test_shrinking_is_traced_under_autocast():
    """The first step of a training in bf16 makes the tree."""
    network, images, labels = network_of("smp18"), image(2, SIZE), labels_of()
    with torch.autocast("cpu", torch.bfloat16):
        assert SegmentationLoss(network)(images, labels).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_network_takes_a_step(name):
    """A gradient on every parameter, and under bf16 autocast the same loss to its precision, which a hundred
    layers multiply on features of 3 x 3."""
    network, images, labels = network_of(name), image(2, SIZE), labels_of()
    torch.manual_seed(1)
    loss = SegmentationLoss(network)(images, labels)
    loss.backward()
    untouched = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert untouched == []
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = SegmentationLoss(network)(images, labels)
    torch.testing.assert_close(rounded, loss, rtol=0.25, atol=0.05)
