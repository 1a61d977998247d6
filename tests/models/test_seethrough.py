from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.backbones.hrnet import HRNet
from fullres.models.catalogue import parameter_count
from fullres.models.ocrnet import gather_regions
from fullres.models.seethrough import HEAD_SCALES, SeeThroughNet, attention_head, mix
from fullres.ops.class_probability import class_probability_pyramid
from fullres.pipeline.train.objectives import seethroughnet_objective
from tests.models import base

torch.set_num_threads(1)

CLASSES = 5
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]


def narrow(cpp=True, attention=True, align_corners=False):
    return SeeThroughNet(
        HRNet(48, 1 / 12, align_corners=align_corners), CLASSES, channels=16, cpp=cpp, attention=attention
    )


@pytest.mark.parametrize(("classes", "millions"), [(19, 72.1), (65, 72.2)])
def test_parameters_of_the_network_it_builds_on(classes, millions):
    """What NVIDIA's training log prints: the decoder stands in the place of OCR's auxiliary head."""
    with torch.device("meta"):
        network = SeeThroughNet(HRNet(48), classes)
        auxiliary = nn.Sequential(nn.Conv2d(720, 720, 1), nn.BatchNorm2d(720), nn.Conv2d(720, classes, 1))
    counted = parameter_count(network) - parameter_count(network.decoder) + parameter_count(auxiliary)
    assert round(counted / 1e6, 1) == millions


def test_layers_of_attention():
    layers = [m for m in attention_head(512, 256) if not isinstance(m, (nn.BatchNorm2d, nn.ReLU))]
    *convolutions, sigmoid = layers
    shapes = [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions]
    assert shapes == [(512, 256, (3, 3)), (256, 256, (3, 3)), (256, 1, (1, 1))]
    assert isinstance(sigmoid, nn.Sigmoid)


def test_the_mask_chooses():
    coarse, fine = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 8, 10)
    enlarged = F.interpolate(coarse, (8, 10), mode="bilinear")
    torch.testing.assert_close(mix(torch.ones(2, 1, 4, 5), coarse, fine, False), enlarged)
    torch.testing.assert_close(mix(torch.zeros(2, 1, 4, 5), coarse, fine, False), fine)


def test_nothing_is_detached():
    shapes = [(1, 1, 2, 3), (1, 2, 2, 3), (1, 2, 4, 5)]
    arguments = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *x: mix(*x, False), arguments)


@pytest.mark.parametrize(("size", "align_corners"), [((64, 96), False), ((45, 33), True)])
@pytest.mark.parametrize(("cpp", "attention"), SWITCHES)
def test_equations_3_and_4(size, cpp, attention, align_corners):
    network = base.settled(partial(narrow, cpp, attention, align_corners)).double()
    image = base.image(2, size, torch.float64)

    def resized(x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)

    def at_one_resolution(x):
        c = network.backbone(x)
        sizes = [f.shape[2:] for f in c]
        mixed = network.decoder.heads[3](c[3])
        maps = []
        for s in (2, 1, 0):
            mask = torch.full_like(mixed[:, :1], 0.5)
            if attention:
                mask = network.decoder.masks[s](torch.cat([c[s + 1], mixed], 1))
            head = network.decoder.heads[s](c[s])
            mixed = resized(mask * mixed, sizes[s]) + (1 - resized(mask, sizes[s])) * head
            maps.insert(0, mixed)
        pixels = network.conv3x3_ocr(torch.cat([c[0], *(resized(f, sizes[0]) for f in c[1:])], 1))
        context = network.ocr_distri_head(pixels, gather_regions(pixels, mixed))
        return resized(network.cls_head(context), x.shape[2:]), context, maps

    half_size = [(n + 1) // 2 for n in size]
    with torch.no_grad():
        half, context, half_maps = at_one_resolution(resized(image, half_size))
        full, _, full_maps = at_one_resolution(image)
        mask = resized(network.scale_attn(context), half_size)

        def joint(coarse, fine):
            return resized(mask * coarse, size) + (1 - resized(mask, size)) * fine

        logits = network(image)
        torch.testing.assert_close(logits, joint(half, full))
        for module in network.modules():  # all that training adds, with the statistics of evaluation
            module.training = module is network
        output = network(image)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.half, resized(half, size))
    torch.testing.assert_close(output.full, full)
    if cpp:
        assert output.auxiliary is None
        for own, expected in zip(output.heads, full_maps + half_maps, strict=True):
            assert own.shape[1] == CLASSES + 1
            torch.testing.assert_close(own, expected)
    else:
        assert output.heads == ()
        regions = joint(resized(half_maps[0], half_size), resized(full_maps[0], size))
        torch.testing.assert_close(output.auxiliary, regions)


@pytest.mark.parametrize("cpp", [True, False])
@pytest.mark.parametrize("size", [(64, 96), (45, 71)])
def test_the_objective_takes_what_training_returns(size, cpp):
    network = base.settled(partial(narrow, cpp)).train()
    output = network(base.image(2, size))
    labels = torch.randint(0, CLASSES, (2, *size))
    labels[:, :5] = 255
    pyramids = [
        dict(zip((4, 8, 16, 32), class_probability_pyramid(x, (4, 8, 16, 32), CLASSES), strict=True))
        for x in labels.numpy().astype("uint8")
    ]
    targets = [torch.stack([torch.from_numpy(p[scale]) for p in pyramids]) for scale in HEAD_SCALES]
    loss = seethroughnet_objective(
        output.logits,
        output.half,
        output.full,
        output.heads,
        targets if cpp else (),
        labels,
        output.auxiliary,
    )
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradients_of_the_joint_logits_reach_both_resolutions_and_all_masks():
    network = base.settled(narrow).train()
    network(base.image(2, (64, 96))).logits.square().mean().backward()
    for part in (network.scale_attn, network.decoder, network.backbone):
        assert all(p.grad.any() for p in part.parameters())


def test_only_half_resolution_makes_the_mask_between_resolutions():
    network = base.settled(narrow)
    sizes = []
    network.scale_attn.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2:]))
    with torch.no_grad():
        network(base.image(1, (64, 96)))
    assert sizes == [(8, 12)]


@pytest.mark.parametrize(("cpp", "attention"), [(True, True), (False, False)])
def test_network(cpp, attention):
    base.check_network(partial(narrow, cpp, attention), CLASSES)


@pytest.mark.parametrize("size", [(1, 1), (2, 7)])
def test_small_images(size):
    with torch.no_grad():
        logits = base.settled(narrow)(base.image(1, size))
    assert logits.shape == (1, CLASSES, *size)
    assert logits.isfinite().all()


@pytest.mark.slow
def test_export():
    base.check_export(narrow)
