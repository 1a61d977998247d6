import pytest
import torch
from torch import nn

from fullres.models.resnet import ResNet
from fullres.models.weights import WeightsError, load_backbone
from tests.models.checkpoints import random_state

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
    with pytest.raises(WeightsError, match=r"unexpected: .*layer1\.2\.conv1\.weight"):
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
