import pytest
import torch
import torch.nn.functional as F

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import parameter_count
from fullres.models.dmnet import DMNet, DynamicConvolution
from tests.models.base import as_if_trained, check_export, check_network, image, settled
from tests.models.mmsegmentation import resnet50

torch.set_num_threads(1)


def dmnet(align_corners=False):
    backbone = ResNet(50, 1 / 16, output_stride=8, deep_stem=True)
    auxiliary = AuxiliaryHeads(backbone.channels, 6, (0, 1, 2, 3), channels=8)
    return DMNet(backbone, 5, channels=12, align_corners=align_corners, auxiliary=auxiliary)


def filtered(block, x, kernel):
    """Image by image and channel by channel; a tap is the feature's mean over its bin, through the 1x1."""
    height, width = x.shape[2:]
    reduced = block.reduce(x)
    reach = kernel // 2
    padded = F.pad(reduced, [reach] * 4)
    out = torch.zeros_like(reduced)
    for n in range(x.shape[0]):
        for i in range(kernel):
            for j in range(kernel):
                rows = slice(i * height // kernel, -(-(i + 1) * height // kernel))
                columns = slice(j * width // kernel, -(-(j + 1) * width // kernel))
                mean = x[n, :, rows, columns].mean((1, 2))
                taps = block.filters.weight[:, :, 0, 0] @ mean + block.filters.bias
                for c, tap in enumerate(taps):
                    out[n, c] += tap * padded[n, c, i : i + height, j : j + width]
    return block.norm(out).relu()


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(9, 11), (2, 5)])
def test_dynamic_convolution(kernel, size):
    block = as_if_trained(lambda: DynamicConvolution(6, 4, kernel)).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), filtered(block, x, kernel))


def test_filters_are_each_images_own():
    """An image's output does not depend on the others of its batch."""
    block = as_if_trained(lambda: DynamicConvolution(6, 4, 3)).double()
    x = torch.randn(3, 6, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize("align_corners", [False, True])
def test_head(align_corners):
    network = settled(lambda: dmnet(align_corners)).double()
    x = image(2, (45, 33), torch.float64)
    with torch.no_grad():
        c5 = network.backbone(x)[3]
        scales = [filtered(block, c5, k) for block, k in zip(network.scales, (1, 3, 5, 7), strict=True)]
        y = F.conv2d(torch.cat([c5, *scales], 1), network.join[0].weight, padding=1)
        scores = network.classifier[1](network.join[1](y).relu())
        expected = F.interpolate(scores, (45, 33), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(network(x), expected)


def test_contract():
    check_network(dmnet, 5)


@pytest.mark.slow
def test_export():
    check_export(dmnet)


def test_mmsegmentations_figure():
    with torch.device("meta"):
        backbone = resnet50()
        network = DMNet(backbone, 19, auxiliary=AuxiliaryHeads(backbone.channels, 19))
    assert parameter_count(network) / 1e6 == pytest.approx(53.18, abs=5e-3)
