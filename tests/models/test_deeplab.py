from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.backbones.mobilenet import MobileNetV2
from fullres.models.backbones.resnet import ResNet
from fullres.models.backbones.xception import Xception
from fullres.models.catalogue import parameter_count
from fullres.models.count import count_macs
from fullres.models.deeplab import ASPP, DeepLabV3Plus
from tests.models.base import as_if_trained, check_export, check_network, image, settled
from tests.models.mmsegmentation import resnet50

torch.set_num_threads(1)


def resnet():
    return ResNet(50, 1 / 16, output_stride=8, deep_stem=True)


def deeplab(backbone=resnet, **arguments):
    features = backbone()
    auxiliary = AuxiliaryHeads(features.channels, 6, (0, 1, 2, 3), channels=8)
    return DeepLabV3Plus(features, 5, channels=12, auxiliary=auxiliary, **arguments)


def unit(x, layers, index, dilation=1, groups=1):
    """Convolution `index` of a row, its batch norm and ReLU, taps added one by one."""
    weight, norm = layers[index].weight, layers[index + 1]
    kernel = weight.shape[-1]
    reach = dilation * (kernel // 2)
    padded = F.pad(x, [reach] * 4)
    out = 0
    for i in range(kernel):
        for j in range(kernel):
            part = padded[:, :, i * dilation :, j * dilation :][:, :, : x.shape[2], : x.shape[3]]
            tap = weight[:, :, i, j]
            out = out + (
                part * tap[None, :, 0, None, None] if groups > 1 else torch.einsum("ncij,dc->ndij", part, tap)
            )
    mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    out = (out - mean) / (var + norm.eps).sqrt()
    return (out * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


def conv3x3(x, layers, dilation, separable):
    if separable:
        return unit(unit(x, layers, 0, dilation, groups=x.shape[1]), layers, 3)
    return unit(x, layers, 0, dilation)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("size", [(40, 51), (3, 2)])
def test_pyramid_is_five_convolutions_side_by_side(separable, size):
    aspp = as_if_trained(lambda: ASPP(6, 4, (6, 12, 18), separable, align_corners=False)).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    mean = unit(x.mean((2, 3), keepdim=True), aspp.image, 1).expand(-1, -1, *size)
    rates = [conv3x3(x, aspp.atrous[i], rate, separable) for i, rate in enumerate((6, 12, 18))]
    with torch.no_grad():
        torch.testing.assert_close(aspp(x), torch.cat([mean, unit(x, aspp.pixel, 0), *rates], 1))


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("projection", [1, 3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_decoder(separable, projection, align_corners):
    arguments = {"separable": separable, "projection": projection, "align_corners": align_corners}
    network = settled(partial(deeplab, **arguments)).double()
    x = image(1, (45, 33), torch.float64)

    def enlarged(x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)

    with torch.no_grad():
        c2, _, _, c5 = network.backbone(x)
        coarse = unit(network.aspp(c5), network.projection, 0)
        y = torch.cat([enlarged(coarse, c2.shape[2:]), unit(c2, network.low_level, 0)], 1)
        for layers in network.decoder:
            y = conv3x3(y, layers, 1, separable)
        torch.testing.assert_close(network(x), enlarged(network.classifier[1](y), (45, 33)))


@pytest.mark.parametrize(
    "build",
    [
        deeplab,
        lambda: deeplab(separable=False, projection=3, rates=(12, 24, 36)),
        lambda: deeplab(lambda: Xception(1 / 16, output_stride=16)),
        lambda: deeplab(lambda: MobileNetV2(1 / 4, output_stride=8)),
    ],
    ids=["resnet", "plain", "xception", "mobilenet"],
)
def test_contract(build):
    check_network(build, 5)


def test_export():
    check_export(deeplab)


def test_mmsegmentations_figure():
    with torch.device("meta"):
        backbone = resnet50()
        auxiliary = AuxiliaryHeads(backbone.channels, 19)
        network = DeepLabV3Plus(
            backbone, 19, channels=512, rates=(12, 24, 36), projection=3, auxiliary=auxiliary
        )
    assert parameter_count(network) / 1e6 == pytest.approx(43.59, abs=5e-3)


def test_the_papers_figure():
    """54.17 billion multiply-adds at 513 x 513, 21 classes (Table 5)."""
    with torch.device("meta"):
        network = DeepLabV3Plus(Xception(output_stride=16), 21)
    assert count_macs(network, 513, 513) / 1e9 == pytest.approx(54.17, rel=0.005)
