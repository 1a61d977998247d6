import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullres.models import catalogue
from fullres.models.backbones.mobilenet import MobileNetV2
from fullres.models.backbones.resnet import ResNet
from fullres.models.backbones.xception import Xception
from fullres.models.count import count_macs
from fullres.models.full_resolution.split_merge import split_merge

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 8, 3), 8 * 3 * 9 * 5 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), 8 * 3 * 9 * 4 * 6),
        (nn.Conv2d(3, 6, (1, 5), groups=3), 6 * 1 * 5 * 7 * 7),
        (nn.Conv2d(3, 4, 3, dilation=2, padding=2), 4 * 3 * 9 * 7 * 11),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)), 12 * 5),
        (nn.Linear(11, 4, bias=False), 3 * 7 * 11 * 4),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Upsample(scale_factor=2)), 0),
    ],
)
def test_layers(layer, expected):
    assert count_macs(layer, 7, 11) == expected


@pytest.mark.parametrize(
    "grow",
    [
        lambda x: F.interpolate(x, (9, 4)),
        lambda x: F.interpolate(x, size=(9, 4), mode="bilinear"),
        lambda x: F.interpolate(x, size=[9, 4]),
        lambda x: F.interpolate(x, size=9),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(input=x, size=(3, 30), mode="bicubic"),
        lambda x: F.interpolate(x[..., None], size=(2, 3, 1))[..., 0],
        lambda x: F.relu(input=F.relu(F.interpolate(x, size=(9, 4)), inplace=True)),
    ],
)
def test_resized_features_have_the_size_that_they_are_given(grow):
    class Resized(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.convolution(grow(x))

    height, width = grow(torch.zeros(1, 3, 7, 11)).shape[2:]
    assert count_macs(Resized(), 7, 11) == 3 * 5 * height * width


def test_a_layer_used_twice_counts_twice():
    layer = nn.Conv2d(3, 3, 1)
    assert count_macs(nn.Sequential(layer, layer), 4, 5) == 2 * 9 * 20


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 1.814), (34, 3.664), (50, 4.089), (101, 7.801), (152, 11.514)]
)
def test_torchvisions_figures_for_resnets(depth, published):
    with torch.device("meta"):
        backbone = ResNet(depth)
    macs = count_macs(backbone, 224, 224) + backbone.channels[3] * 1000
    assert macs / 1e9 == pytest.approx(published, abs=6e-4)


def test_the_papers_figure_for_mobilenet():
    with torch.device("meta"):
        backbone = MobileNetV2()
    macs = count_macs(backbone, 224, 224) + 7 * 7 * 320 * 1280 + 1280 * 1000
    assert macs / 1e6 == pytest.approx(300, abs=1)


def test_spgnets_figure_for_pspnet():
    """2117.3 billion at 1025 x 2049 (SPGNet, Table 1): the backbone counted, the head by hand."""
    with torch.device("meta"):
        backbone = ResNet(101, output_stride=8, deep_stem=True)
    pyramid = (1 + 4 + 9 + 36) * 2048 * 512
    classifier = 129 * 257 * (9 * 4096 * 512 + 512 * 19)
    macs = count_macs(backbone, 1025, 2049) + pyramid + classifier
    assert macs / 1e9 == pytest.approx(2117.3, abs=0.05)


def test_deeplabs_figure_for_xception():
    """54.17 billion at 513 x 513 with separable convolutions in pyramid and decoder (DeepLabV3+, Table 5)."""

    def separable(before, after):
        return 9 * before + before * after

    with torch.device("meta"):
        backbone = Xception(output_stride=16)
    coarse = 2048 * 256 + 3 * separable(2048, 256) + 5 * 256 * 256
    fine = 256 * 48 + separable(304, 256) + separable(256, 256) + 256 * 21
    macs = count_macs(backbone, 513, 513) + 33 * 33 * coarse + 129 * 129 * fine
    assert macs / 1e9 == pytest.approx(54.17, rel=0.005)


def full_resolution():
    """Two convolutions with a split between them."""
    return split_merge(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(1, 2), nn.Conv2d(4, 5, 3, padding=1))
    )


def test_operations_of_a_tree_are_counted():
    """Both convolutions at every pixel: the first is computed for each of the four phases apart."""
    assert count_macs(full_resolution(), 7, 11) == 7 * 11 * 9 * (3 * 4 + 4 * 5)


class Twice(nn.Module):
    """One convolution under two names."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.other = self.one

    def forward(self, x):
        return self.other(self.one(x))


@pytest.mark.parametrize("build", [full_resolution, Twice, lambda: catalogue.build("fcn8s18", 5, 1 / 16)])
def test_the_network_stays_as_it_was(build):
    network = build().bfloat16()
    next(network.children()).eval()
    training = [m.training for m in network.modules()]
    before = {key: t.clone() for key, t in network.state_dict().items()}
    count_macs(network, 33, 40)
    assert [m.training for m in network.modules()] == training
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
    network.eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 33, 40).bfloat16()).device.type == "cpu"
