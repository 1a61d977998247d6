import pytest
import torch
import torch.nn.functional as F

from fullres.models.ann import AFNB, ANN, APNB
from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import parameter_count
from tests.models.base import as_if_trained, check_export, check_network, image, settled
from tests.models.mmsegmentation import resnet50

torch.set_num_threads(1)


def ann(align_corners=False):
    backbone = ResNet(50, 1 / 16, output_stride=8, deep_stem=True)
    auxiliary = AuxiliaryHeads(backbone.channels, 6, (0, 1, 2, 3), channels=8)
    return ANN(backbone, 5, channels=12, align_corners=align_corners, auxiliary=auxiliary)


def attention(block, low, high):
    """Query by query and key by key; keys are means over bins, from floor(i n / b) to ceil((i + 1) n / b)."""
    key, value = block.key(low), block.value(low)
    query = key if block.query is None else block.query(high)
    height, width = low.shape[2:]
    keys, values = [], []
    for bins in (1, 3, 6, 8):
        for i in range(bins):
            for j in range(bins):
                rows = slice(i * height // bins, -(-(i + 1) * height // bins))
                columns = slice(j * width // bins, -(-(j + 1) * width // bins))
                keys.append(key[:, :, rows, columns].mean((2, 3)))
                values.append(value[:, :, rows, columns].mean((2, 3)))
    assert len(keys) == 110
    context = torch.zeros_like(query)
    for i in range(high.shape[2]):
        for j in range(high.shape[3]):
            q = query[:, :, i, j]
            weights = torch.stack([(q * k).sum(1) / q.shape[1] ** 0.5 for k in keys], 1).softmax(1)
            context[:, :, i, j] = sum(weights[:, k, None] * v for k, v in enumerate(values))
    return block.out(context)


@pytest.mark.parametrize("size", [(9, 11), (3, 5)])
def test_fusion_of_two_stages(size):
    block = as_if_trained(lambda: AFNB(6, 8, 4)).double()
    low, high = (torch.randn(2, c, *size, dtype=torch.float64) for c in (6, 8))
    with torch.no_grad():
        expected = block.mix(torch.cat([attention(block.attention, low, high), high], 1))
        torch.testing.assert_close(block(low, high), expected)
    assert (expected < 0).any()


@pytest.mark.parametrize("size", [(9, 11), (3, 5)])
def test_self_attention(size):
    block = as_if_trained(lambda: APNB(6, 4)).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = block.mix(torch.cat([attention(block.attention, x, x), x], 1))
        torch.testing.assert_close(block(x), expected)
    assert (expected >= 0).all()


@pytest.mark.parametrize("align_corners", [False, True])
def test_network_is_fusion_then_self_attention(align_corners):
    network = settled(lambda: ann(align_corners)).double()
    x = image(1, (45, 33), torch.float64)
    with torch.no_grad():
        _, _, c4, c5 = network.backbone(x)
        y = network.fusion.mix(torch.cat([attention(network.fusion.attention, c4, c5), c5], 1))
        _, convolution, norm, _ = network.reduce
        y = norm(F.conv2d(y, convolution.weight, padding=1)).relu()
        y = network.context.mix(torch.cat([attention(network.context.attention, y, y), y], 1))
        scores = network.classifier[1](y)
        expected = F.interpolate(scores, (45, 33), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(network(x), expected)


def test_attention_starts_as_nothing():
    block = APNB(6, 4).eval()
    x = torch.randn(1, 6, 9, 11)
    with torch.no_grad():
        assert not block.attention(x, x).any()


def test_contract():
    check_network(ann, 5)


@pytest.mark.slow
def test_export():
    check_export(ann)


def test_mmsegmentations_figure():
    with torch.device("meta"):
        backbone = resnet50()
        network = ANN(backbone, 19, auxiliary=AuxiliaryHeads(backbone.channels, 19))
    assert parameter_count(network) / 1e6 == pytest.approx(46.23, abs=5e-3)
