import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.backbones.hrnet import HRNet, HRNetV2
from fullres.models.backbones.resnet import Bottleneck, residual_layer
from fullres.models.catalogue import parameter_count
from tests.models.backbones.checks import (
    assert_all_trained,
    assert_features,
    assert_formats,
    assert_round_trip,
)
from tests.networks import with_statistics

torch.set_num_threads(1)


def narrow(**arguments):
    torch.manual_seed(0)
    return with_statistics(HRNet(48, 1 / 12, **arguments))


def published_forward(state, x, align_corners):
    """Written from the authors' code and the names of their checkpoints."""

    def unit(x, conv, bn, stride=1):
        w = state[f"{conv}.weight"]
        x = F.conv2d(x, w, None, stride, w.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{bn}.{name}"] for name in names))

    def block(x, name, convolutions):
        y = x
        for k in range(1, convolutions + 1):
            y = unit(y if k == 1 else y.relu(), f"{name}.conv{k}", f"{name}.bn{k}")
        if f"{name}.downsample.0.weight" in state:
            x = unit(x, f"{name}.downsample.0", f"{name}.downsample.1")
        return (x + y).relu()

    x = unit(x, "conv1", "bn1", 2).relu()
    x = unit(x, "conv2", "bn2", 2).relu()
    for k in range(4):
        x = block(x, f"layer1.{k}", 3)
    branches = [
        unit(x, "transition1.0.0", "transition1.0.1").relu(),
        unit(x, "transition1.1.0.0", "transition1.1.0.1", 2).relu(),
    ]
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        if stage > 2:
            name = f"transition{stage - 1}.{stage - 1}.0"
            branches.append(unit(branches[-1], f"{name}.0", f"{name}.1", 2).relu())
        for m in range(modules):
            for b in range(stage):
                for k in range(4):
                    branches[b] = block(branches[b], f"stage{stage}.{m}.branches.{b}.{k}", 2)
            fused = []
            for i in range(stage):
                total = branches[i]
                for j in range(stage):
                    name, y = f"stage{stage}.{m}.fuse_layers.{i}.{j}", branches[j]
                    if j > i:
                        y = unit(y, f"{name}.0", f"{name}.1")
                        total = total + F.interpolate(
                            y, branches[i].shape[2:], mode="bilinear", align_corners=align_corners
                        )
                    elif j < i:
                        for k in range(i - j):
                            y = unit(y if k == 0 else y.relu(), f"{name}.{k}.0", f"{name}.{k}.1", 2)
                        total = total + y
                fused.append(total.relu())
            branches = fused
    return branches


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (45, 33)])
def test_features_are_those_of_the_authors_code(align_corners, size):
    backbone = narrow(align_corners=align_corners).double()
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = published_forward(backbone.state_dict(), image, align_corners)
        for own, x in zip(backbone(image), expected, strict=True):
            torch.testing.assert_close(own, x)


def test_four_branches_from_stride_4_to_32():
    backbone = narrow()
    assert backbone.channels == [4, 8, 16, 32]
    assert_features(backbone, (4, 8, 16, 32))


def test_formats_state_dict_and_gradients():
    backbone = narrow()
    assert_formats(backbone)
    assert_round_trip(backbone, HRNet(48, 1 / 12))
    assert_all_trained(backbone, torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(("c", "published"), [(18, 21_299_004), (32, 41_232_680), (48, 77_469_864)])
def test_parameters_of_published_classifiers(c, published):
    """The ImageNet networks: a bottleneck on each branch, brought down into each other, 2048, 1000."""
    widths = (32, 64, 128, 256)
    with torch.device("meta"):
        backbone = HRNet(c)
        head = nn.ModuleList(
            [
                *(
                    residual_layer(Bottleneck, n, w, 1)
                    for n, w in zip(backbone.channels, widths, strict=True)
                ),
                *(nn.Conv2d(4 * w, 8 * w, 3, 2, 1) for w in widths[:3]),
                *(nn.BatchNorm2d(8 * w) for w in widths[:3]),
                *(nn.Conv2d(1024, 2048, 1), nn.BatchNorm2d(2048), nn.Linear(2048, 1000)),
            ]
        )
    assert parameter_count(backbone) + parameter_count(head) == published


def test_parameters_of_hrnetv2():
    with torch.device("meta"):
        assert parameter_count(HRNetV2(HRNet(48), 19)) == 65_859_379


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (1, 1), (45, 33)])
def test_hrnetv2_classifies_all_branches_at_stride_4(align_corners, size):
    network = with_statistics(HRNetV2(narrow(align_corners=align_corners), 5))
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        c2, *coarser = network.backbone(image)

        def enlarged(x, size):
            return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)

        joined = torch.cat([c2, *(enlarged(x, c2.shape[2:]) for x in coarser)], 1)
        scores = network(image)
        torch.testing.assert_close(scores, enlarged(network.last_layer(joined), size))
    assert scores.shape == (2, 5, *size)


def test_hrnetv2_trains_every_parameter():
    network = HRNetV2(narrow(), 5)
    network.train()(torch.rand(2, 3, 64, 64)).logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_width_that_does_not_exist():
    with pytest.raises(ValueError, match=r"HRNet-W18 width is 0\.01: at least 1/18"):
        HRNet(18, 0.01)
