import pytest
import torch
import torch.nn.functional as F

from fullres.models.auxiliary import AuxiliaryHeads
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import parameter_count
from fullres.models.ccnet import CCNet, CrissCrossAttention
from tests.models.base import as_if_trained, check_export, check_network, image, settled
from tests.models.mmsegmentation import resnet50

torch.set_num_threads(1)

SIZES = [(5, 7), (1, 6), (6, 1), (1, 1)]


def ccnet(recurrence=2):
    backbone = ResNet(50, 1 / 16, output_stride=8, deep_stem=True)
    auxiliary = AuxiliaryHeads(backbone.channels, 6, (0, 1, 2, 3), channels=8)
    return CCNet(backbone, 5, channels=16, recurrence=recurrence, auxiliary=auxiliary)


def attention():
    return as_if_trained(lambda: CrissCrossAttention(16)).double()


def masked_attention(block, x):
    """All pixels' attention to all, those of other rows and columns forbidden."""
    height, width = x.shape[2:]
    query, key, value = (layer(x).flatten(2) for layer in (block.query, block.key, block.value))
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    crossed = (row[:, None] == row) | (column[:, None] == column)
    weights = (query.transpose(1, 2) @ key).masked_fill(~crossed, float("-inf")).softmax(2)
    assert int((weights[0] > 0).sum()) == height * width * (height + width - 1)
    context = torch.einsum("npk,nck->ncp", weights, value)
    return block.gamma * context.unflatten(2, (height, width)) + x


@pytest.mark.parametrize("size", SIZES)
def test_criss_cross_is_masked_full_attention(size):
    block, x = attention(), torch.randn(2, 16, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), masked_attention(block, x))


def test_gradient_of_criss_cross():
    block = attention()
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(form(x).square().sum(), [x, *block.parameters()])
        for form in (block, lambda x: masked_attention(block, x))
    ]
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected)


def test_twice_reaches_every_pixel():
    block = attention()
    x = torch.randn(1, 16, 5, 6, dtype=torch.float64, requires_grad=True)
    once = block(x)
    for out, reached in ((once, 5 + 6 - 1), (block(once), 5 * 6)):
        (gradient,) = torch.autograd.grad(out[0, :, 2, 3].sum(), x, retain_graph=True)
        assert int(gradient[0].any(0).sum()) == reached


@pytest.mark.parametrize("recurrence", [0, 1, 2])
def test_head(recurrence):
    network = settled(lambda: ccnet(recurrence)).double()
    x = image(1, (45, 33), torch.float64)

    def unit(x, layers):
        return layers[1](F.conv2d(x, layers[0].weight, padding=1)).relu()

    with torch.no_grad():
        c5 = network.backbone(x)[3]
        y = unit(c5, network.before)
        for _ in range(recurrence):
            y = masked_attention(network.attention, y)
        y = unit(torch.cat([c5, unit(y, network.behind)], 1), network.join)
        expected = F.interpolate(network.classifier[1](y), (45, 33), mode="bilinear")
        torch.testing.assert_close(network(x), expected)


def test_attention_starts_as_nothing():
    x = torch.randn(1, 16, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(CrissCrossAttention(16)(x), x)


def test_contract():
    check_network(ccnet, 5)


@pytest.mark.slow
def test_export():
    check_export(ccnet)


def test_parameters():
    """ResNet-50 with mmsegmentation's stem, its head by hand."""
    head = 9 * 512 * (2048 + 512 + 2560) + 3 * 1024  # three 3x3 convolutions with batch norm
    attention = 2 * (512 * 64 + 64) + 512 * 512 + 512 + 1
    with torch.device("meta"):
        backbone = resnet50()
        network = CCNet(backbone, 19)
    expected = parameter_count(backbone) + head + attention + 512 * 19 + 19
    assert parameter_count(network) == expected
