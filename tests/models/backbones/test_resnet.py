import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.backbones.resnet import DEPTHS, ResNet
from fullres.models.catalogue import parameter_count
from fullres.models.weights import WeightsError, load_backbone
from tests.models.backbones.checks import (
    assert_all_trained,
    assert_features,
    assert_formats,
    assert_round_trip,
    assert_same_on_lattice,
)
from tests.models.checkpoints import random_state
from tests.networks import with_statistics

torch.set_num_threads(1)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvisions_checkpoints_fill_every_parameter(depth, tmp_path):
    published = random_state(f"torchvision_resnet{depth}")
    torch.save(published, tmp_path / "resnet.pth")
    backbone = ResNet(depth)
    load_backbone(backbone, tmp_path / "resnet.pth")
    loaded = backbone.state_dict()
    counters = {key for key in loaded if key.endswith("num_batches_tracked")}
    assert loaded.keys() - counters == published.keys() - {"fc.weight", "fc.bias"} - counters
    assert all(torch.equal(loaded[key], published[key]) for key in loaded.keys() - counters)


def test_another_depths_checkpoint_is_refused_and_changes_nothing(tmp_path):
    torch.save(random_state("torchvision_resnet34"), tmp_path / "resnet.pth")
    backbone = ResNet(18)
    before = {key: t.clone() for key, t in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match=r"unexpected: layer1\.2\.bn1\.bias, .* and 88 more"):
        load_backbone(backbone, tmp_path / "resnet.pth")
    assert all(torch.equal(t, before[key]) for key, t in backbone.state_dict().items())


@pytest.mark.parametrize(("depth", "channels"), [(18, [4, 8, 16, 32]), (50, [16, 32, 64, 128])])
@pytest.mark.parametrize("size", [(64, 96), (1, 1), (45, 33)])
def test_features_are_at_output_strides_4_to_32(depth, channels, size):
    backbone = ResNet(depth, 1 / 16).eval()
    assert backbone.channels == channels
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, *size))
    for feature, c, stride in zip(features, channels, (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, c, -(-size[0] // stride), -(-size[1] // stride))


def test_a_bottleneck_strides_on_its_3x3():
    backbone = ResNet(50, 1 / 16)
    block = backbone.layer2[0]
    assert [conv.stride for conv in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]


def test_the_pool_behind_conv1_can_be_another():
    image = torch.rand(1, 3, 32, 32)
    published = ResNet(18, 1 / 16).eval()
    other = ResNet(18, 1 / 16, pool=nn.AvgPool2d(2)).eval()
    other.load_state_dict(published.state_dict())
    with torch.no_grad():
        assert not torch.allclose(published(image)[0], other(image)[0])
        assert other(image)[0].shape == published(image)[0].shape


PUBLISHED = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
DEEP = {50: 25_680_808, 101: 44_672_936}


@pytest.mark.parametrize(
    ("depth", "deep", "published"),
    [(d, False, n) for d, n in PUBLISHED.items()] + [(d, True, n) for d, n in DEEP.items()],
)
def test_parameters_of_published_classifiers(depth, deep, published):
    with torch.device("meta"):
        backbone = ResNet(depth, deep_stem=deep)
        classifier = nn.Linear(backbone.channels[3], 1000)
    assert parameter_count(backbone) + parameter_count(classifier) == published


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_convolutions_and_the_classifier(depth):
    with torch.device("meta"):
        backbone = ResNet(depth, 1 / 16)
    names = [name for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d)]
    assert sum("downsample" not in name for name in names) + 1 == depth


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("output_stride", "strides"), [(8, (4, 8, 8, 8)), (16, (4, 8, 16, 16))])
def test_features_stop_at_the_output_stride(depth, deep, output_stride, strides):
    backbone = ResNet(depth, 1 / 16, output_stride=output_stride, deep_stem=deep).eval()
    assert_features(backbone, strides)


@pytest.mark.parametrize("size", [(64, 96), (45, 33)])
def test_dilation_is_that_of_pspnets_code(size):
    """hszhao/semseg, model/pspnet.py: strides of a ready network are taken out, dilation put in."""
    strided = with_statistics(ResNet(50, 1 / 16, deep_stem=True))
    dilated = ResNet(50, 1 / 16, output_stride=8, deep_stem=True).eval()
    dilated.load_state_dict(strided.state_dict())
    for layer, dilation in ((strided.layer3, 2), (strided.layer4, 4)):
        for name, module in layer.named_modules():
            if "conv2" in name:
                module.dilation, module.padding, module.stride = (dilation,) * 2, (dilation,) * 2, (1, 1)
            elif "downsample.0" in name:
                module.stride = (1, 1)
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        for own, expected in zip(dilated(image), strided(image), strict=True):
            assert torch.equal(own, expected)


@pytest.mark.parametrize(("depth", "first"), [(18, "conv1"), (50, "conv2")])
@pytest.mark.parametrize(("output_stride", "strides"), [(8, (4, 8, 8, 8)), (16, (4, 8, 16, 16))])
@pytest.mark.parametrize("size", [(64, 96), (45, 33), (7, 70)])
def test_but_for_first_blocks_a_dilated_network_is_the_strided_one_sampled_densely(
    depth, first, output_stride, strides, size
):
    """With the dilation before the layer on the convolution that had its stride, as mmsegmentation has it."""
    strided = with_statistics(ResNet(depth, 1 / 16)).double()
    dilated = ResNet(depth, 1 / 16, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    for layer in (dilated.layer3, dilated.layer4):
        conv = getattr(layer[0], first)
        if conv.dilation[0] > 1:
            conv.dilation = conv.padding = (conv.dilation[0] // 2,) * 2
    assert_same_on_lattice(dilated, strided, torch.rand(2, 3, *size, dtype=torch.float64), strides)


def test_the_deep_stem_is_three_3x3_convolutions():
    backbone = with_statistics(ResNet(18, 1 / 8, deep_stem=True))
    image = torch.rand(1, 3, 33, 40)
    with torch.no_grad():
        x = backbone.bn1(backbone.conv1(image)).clamp(min=0)
        assert x.shape == (1, 8, 17, 20)
        x = backbone.bn2(backbone.conv2(x)).clamp(min=0)
        x = backbone.bn3(backbone.conv3(x)).clamp(min=0)
        assert x.shape == (1, 16, 17, 20)
        expected = backbone.layer1(F.max_pool2d(x, 3, 2, 1))
        torch.testing.assert_close(backbone(image)[0], expected)


@pytest.mark.parametrize("arguments", [{}, {"output_stride": 8, "deep_stem": True}])
def test_formats_state_dict_and_gradients(arguments):
    backbone = with_statistics(ResNet(50, 1 / 8, **arguments))
    assert_formats(backbone)
    assert_round_trip(backbone, ResNet(50, 1 / 8, **arguments))
    assert_all_trained(backbone, torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 19}, "depth is 19: one of 18, 34, 50, 101, 152, 269"),
        ({"depth": 18, "output_stride": 4}, "output stride is 4: one of 8, 16, 32"),
        ({"depth": 18, "width": 1 / 100}, "width is 0.01: at least 1/64"),
    ],
)
def test_what_does_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)
